"""Picture sheets: rows of an example, columns of input, prompt, truth and prediction; one PNG each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from seem_jax.demo import draw

TILE = 256  # pixels, longer edge of a picture
GAP = 10
TEXT = 15  # pixels, size of the captions
LINE = 20  # pixels, height of a line of them
NOWHERE = np.zeros((0, 2), np.float32)


@dataclasses.dataclass
class Row:
    """One example: pictures uint8 [h, w, 3] in the order of the columns, and a caption."""

    pictures: list[np.ndarray]
    caption: str


class Sheet:
    """Examples of a task, row by row."""

    def __init__(self, columns: Sequence[str]):
        self.columns = list(columns)
        self.rows: list[Row] = []

    def add(self, pictures: Sequence[np.ndarray], caption: str) -> None:
        if len(pictures) != len(self.columns):
            raise ValueError(f"{len(pictures)} pictures for the columns {self.columns}.")
        self.rows.append(Row([draw.fit(picture, TILE) for picture in pictures], caption))

    def save(self, path: Path) -> None:
        """Writes the sheet as PNG; a sheet without rows is not written."""
        if not self.rows:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        self.image().save(path)

    def image(self) -> Image.Image:
        """The whole sheet."""
        heights = [max(p.shape[0] for p in row.pictures) + LINE + GAP for row in self.rows]
        width = GAP + len(self.columns) * (TILE + GAP)
        canvas = Image.new("RGB", (width, LINE + 2 * GAP + sum(heights)), draw.WHITE)
        pen = ImageDraw.Draw(canvas)
        for k, title in enumerate(self.columns):
            pen.text((GAP + k * (TILE + GAP), GAP), title, fill=draw.INK, font=draw.font(TEXT + 1))
        top = LINE + 2 * GAP
        for row, height in zip(self.rows, heights, strict=True):
            pen.text(
                (GAP, top - 2),
                _cut(pen, row.caption, width - 2 * GAP),
                fill=draw.INK,
                font=draw.font(TEXT),
            )
            for k, picture in enumerate(row.pictures):
                canvas.paste(Image.fromarray(picture), (GAP + k * (TILE + GAP), top + LINE))
            top += height
        return canvas


def _cut(pen: ImageDraw.ImageDraw, text: str, width: int) -> str:
    """The text, shortened with an ellipsis where it is wider than `width` pixels."""
    if pen.textlength(text, font=draw.font(TEXT)) <= width:
        return text
    while text and pen.textlength(text + "...", font=draw.font(TEXT)) > width:
        text = text[:-1]
    return text + "..."


def named(
    image: np.ndarray,
    masks: Sequence[np.ndarray],
    texts: Sequence[str],
    colours: Sequence[draw.Colour],
) -> np.ndarray:
    """The picture at tile size with masks in their colours and their names."""
    big = [draw.fit(mask, TILE) for mask in masks]
    return draw.names(draw.overlay(draw.fit(image, TILE), big, colours), big, texts)


def answered(
    image: np.ndarray,
    mask: np.ndarray | None,
    where: np.ndarray = NOWHERE,
    positive: np.ndarray = NOWHERE,
) -> np.ndarray:
    """The picture at tile size with one mask lit (None: all of it) and clicks, (x, y) [K, 2]."""
    big = draw.fit(image, TILE)
    if mask is not None:
        big = draw.spotlight(big, draw.fit(mask, TILE))
    return draw.points(big, where, positive)
