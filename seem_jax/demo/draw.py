"""Masks, outlines, points and names over an image, for people to look at. NumPy and Pillow."""

from __future__ import annotations

import colorsys
import functools
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]  # RGB, 0 to 255

GREEN: Colour = (0, 200, 80)
RED: Colour = (230, 40, 40)
MAGENTA: Colour = (255, 0, 220)
WHITE: Colour = (255, 255, 255)
INK: Colour = (30, 30, 34)
GOLDEN_RATIO = 0.61803398875  # steps of it around the colour circle never come close to each other
FIRST_HUE = 0.58  # a blue: the first mask must look like neither a positive nor a negative mark


def colour(number: int, shade: int = 0) -> Colour:
    """The number-th of endless well separated hues, in one of three shades."""
    rgb = colorsys.hsv_to_rgb(
        (FIRST_HUE + number * GOLDEN_RATIO) % 1.0, 0.85, (1.0, 0.6, 0.8)[shade % 3]
    )
    red, green, blue = (round(255 * part) for part in rgb)
    return red, green, blue


def fit(image: np.ndarray, side: int) -> np.ndarray:
    """uint8 [H, W, 3] (or a bool mask [H, W]) with its longer edge `side` pixels, shape kept.

    Small pictures stay pixelated, so that one sees what the model saw.
    """
    height, width = image.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    method = cv2.INTER_NEAREST if scale >= 1 or image.dtype == bool else cv2.INTER_AREA
    return cv2.resize(image.astype(np.uint8), size, interpolation=method).astype(image.dtype)


def overlay(
    image: np.ndarray,
    masks: Sequence[np.ndarray],
    colours: Sequence[Colour] | None = None,
    alpha: float = 0.45,
) -> np.ndarray:
    """A copy of uint8 [H, W, 3] with bool masks [H, W] tinted and outlined, the last on top."""
    out = image.astype(np.float32)
    colours = colours or [colour(k) for k in range(len(masks))]
    for mask, rgb in zip(masks, colours, strict=True):
        tint = np.asarray(rgb, np.float32)
        out[mask] = (1 - alpha) * out[mask] + alpha * tint[None]
        out[_rim(mask)] = tint
        if _thickness(mask) > 3:  # a light edge shows where tint and picture are alike
            out[_rim(mask, 3)] = WHITE
    return out.round().astype(np.uint8)


def spotlight(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A copy in which all but the bool mask [H, W] is grey and dim, and its rim is magenta."""
    grey = 0.45 * image.mean(-1, keepdims=True)
    out = np.where(mask[..., None], image, grey).astype(np.uint8)
    out[_rim(mask)] = MAGENTA
    return out


def _rim(mask: np.ndarray, thick: int = 0) -> np.ndarray:
    """The outermost pixels of a mask, as a square brush of `thick` pixels on its edge marks them."""
    thick = thick or _thickness(mask)
    inner = cv2.erode(mask.astype(np.uint8), np.ones((thick, thick), np.uint8), borderValue=0)
    return mask & (inner == 0)


def _thickness(mask: np.ndarray) -> int:
    """Pixels, odd; more in a large picture."""
    return max(3, 2 * (max(mask.shape) // 200) + 1)


def points(
    image: np.ndarray, where: np.ndarray, positive: np.ndarray, radius: int = 0
) -> np.ndarray:
    """A copy with discs at (x, y) in [0, 1), float [K, 2]: green for positive, red for negative."""
    out = image.copy()
    height, width = image.shape[:2]
    radius = radius or max(3, max(height, width) // 50)
    for (x, y), good in zip(where, positive, strict=True):
        centre = (int(x * width), int(y * height))
        cv2.circle(out, centre, radius + 2, WHITE, -1, cv2.LINE_AA)
        cv2.circle(out, centre, radius, GREEN if good else RED, -1, cv2.LINE_AA)
    return out


def line(
    image: np.ndarray, where: np.ndarray, *, positive: bool = True, closed: bool = False
) -> np.ndarray:
    """A copy with a line through (x, y) in [0, 1], float [K, 2], in the colours of `points`."""
    out = image.copy()
    height, width = image.shape[:2]
    corners = np.round(where * [[width - 1, height - 1]]).astype(np.int32)[:, None]
    thick = max(2, max(height, width) // 240)
    for colour, more in ((WHITE, 2), (GREEN if positive else RED, 0)):
        cv2.polylines(out, [corners], closed, colour, thick + more, cv2.LINE_AA)
    return out


def names(
    image: np.ndarray,
    masks: Sequence[np.ndarray],
    texts: Sequence[str],
    clear: Sequence[Sequence[float]] = (),
) -> np.ndarray:
    """A copy with each text at the innermost place of its mask; masks without pixels get none.

    Letters stay off the places (x, y) in [0, 1] of `clear` and off each other, the last mask
    choosing first. They stand above a mask that they would cover, or beside it.
    """
    canvas = Image.fromarray(image)
    pen = ImageDraw.Draw(canvas)
    size = max(11, max(image.shape[:2]) // 22)
    taken: list[tuple[int, int, int, int]] = []  # x0, y0, x1, y1 of texts, the last included
    spots: list[tuple[str, int, int]] = []  # with where a pen begins
    for mask, text in reversed(list(zip(masks, texts, strict=True))):
        if not mask.any():
            continue
        left, top, right, bottom = pen.textbbox((0, 0), text, font=font(size))
        width, height = right - left + 6, bottom - top + 4
        room = _room(mask, clear, taken, width, height)
        x, y = _innermost(room) if room.any() else _above(mask, height)
        x = min(max(x - width // 2, 0), max(canvas.size[0] - width, 0))
        y = min(max(y - height // 2, 0), max(canvas.size[1] - height, 0))
        taken.append((x, y, x + width - 1, y + height - 1))
        spots.append((text, x + 3 - left, y + 2 - top))
    for box, (text, x, y) in reversed(list(zip(taken, spots, strict=True))):
        pen.rectangle(box, fill=WHITE)
        pen.text((x, y), text, fill=INK, font=font(size))
    return np.asarray(canvas)


def _room(
    mask: np.ndarray,
    clear: Sequence[Sequence[float]],
    taken: Sequence[tuple[int, int, int, int]],
    width: int,
    height: int,
) -> np.ndarray:
    """bool [H, W], where in a mask the centre of a text may lie; nowhere in a mask that it would hide.

    taken are the boxes (x0, y0, x1, y1), in pixels and with both ends, of other texts.
    """
    if mask.sum() < width * height:
        return np.zeros_like(mask)
    room = mask.copy()
    half_x, half_y = width // 2 + 1, height // 2 + 1
    for x0, y0, x1, y1 in taken:
        rows = slice(max(y0 - half_y, 0), y1 + half_y + 1)
        room[rows, max(x0 - half_x, 0) : x1 + half_x + 1] = False
    reach_x, reach_y = width // 2 + height // 2, height  # with half a letter of air
    for x, y in clear:
        column, row = int(x * mask.shape[1]), int(y * mask.shape[0])
        rows = slice(max(row - reach_y, 0), row + reach_y + 1)
        room[rows, max(column - reach_x, 0) : column + reach_x + 1] = False
    return room


def _innermost(mask: np.ndarray) -> tuple[int, int]:
    """(x, y) of the pixel that is farthest from the edge of a mask."""
    depth = cv2.distanceTransform(np.pad(mask.astype(np.uint8), 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return int(x), int(y)


def _above(mask: np.ndarray, height: int) -> tuple[int, int]:
    """(x, y) of the centre of a text of this height above a mask, or below where there is no room."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    gap = height // 2 + 3
    y = int(rows[0]) - gap if rows[0] >= height + 3 else int(rows[-1]) + gap
    return int(columns[0] + columns[-1]) // 2, y


@functools.lru_cache(maxsize=32)
def font(size: int) -> ImageFont.ImageFont:
    """The font that comes with Pillow, in pixels."""
    return ImageFont.load_default(size)
