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


def colour(number: int, shade: int = 0) -> Colour:
    """The number-th of endless well separated hues, in one of three shades."""
    rgb = colorsys.hsv_to_rgb(number * GOLDEN_RATIO % 1.0, 0.85, (1.0, 0.6, 0.8)[shade % 3])
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
    return out.round().astype(np.uint8)


def spotlight(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A copy in which all but the bool mask [H, W] is grey and dim, and its rim is magenta."""
    grey = 0.45 * image.mean(-1, keepdims=True)
    out = np.where(mask[..., None], image, grey).astype(np.uint8)
    out[_rim(mask)] = MAGENTA
    return out


def _rim(mask: np.ndarray) -> np.ndarray:
    """The outermost pixels of a mask, more of them in a large picture."""
    thick = max(3, 2 * (max(mask.shape) // 200) + 1)
    inner = cv2.erode(mask.astype(np.uint8), np.ones((thick, thick), np.uint8), borderValue=0)
    return mask & (inner == 0)


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


def names(image: np.ndarray, masks: Sequence[np.ndarray], texts: Sequence[str]) -> np.ndarray:
    """A copy with each text at the innermost place of its mask; masks without pixels get none."""
    canvas = Image.fromarray(image)
    pen = ImageDraw.Draw(canvas)
    size = max(11, max(image.shape[:2]) // 22)
    for mask, text in zip(masks, texts, strict=True):
        if not mask.any():
            continue
        depth = cv2.distanceTransform(np.pad(mask.astype(np.uint8), 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
        y, x = np.unravel_index(depth.argmax(), depth.shape)
        _tag(pen, canvas.size, text, (int(x), int(y)), size)
    return np.asarray(canvas)


def _tag(pen: ImageDraw.ImageDraw, frame, text: str, centre: tuple[int, int], size: int) -> None:
    """Dark letters on white about a centre, moved so far that they stay inside the frame."""
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font(size))
    width, height = right - left + 6, bottom - top + 4
    x = min(max(centre[0] - width // 2, 0), max(frame[0] - width, 0))
    y = min(max(centre[1] - height // 2, 0), max(frame[1] - height, 0))
    pen.rectangle((x, y, x + width - 1, y + height - 1), fill=WHITE)
    pen.text((x + 3 - left, y + 2 - top), text, fill=INK, font=font(size))


@functools.lru_cache(maxsize=32)
def font(size: int) -> ImageFont.ImageFont:
    """The font that comes with Pillow, in pixels."""
    return ImageFont.load_default(size)
