"""First drawings of the official interactive evaluation: one stroke from the deepest pixel, a curve.

Source: simpleclick_sampler.py, forward_circle, forward_scribble and forward_polygon. Those of
training (seem_jax/data/strokes.py) begin anywhere and have several strokes.
"""

from __future__ import annotations

import numpy as np

from seem_jax.data import strokes

KINDS = ("circle", "scribble", "polygon")
PRESETS = {"circle": strokes.CIRCLES, "scribble": strokes.SCRIBBLES}


def draw(
    kind: str, mask: np.ndarray, deepest: tuple[int, int], rng: np.random.Generator
) -> np.ndarray:
    """The pixels, int32 [K, 2] of (column, row), of a drawing of one of KINDS on an object.

    mask is bool [H, W] of the image without padding, deepest the (column, row) where a stroke
    begins. A stroke that was shaken off its object is empty.
    """
    if kind == "polygon":
        return _polygon(mask, rng)
    presets = PRESETS[kind]
    walk = presets[int(rng.integers(len(presets)))]
    return strokes.strokes_from(mask, np.array([deepest], np.int32), walk, rng)


def _polygon(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A closed curve through 1 to 9 pixels, whose shares of the image's width and height are taken as
    shares of the object's box: so it lies in the box, but not on the pixels. The official quirk."""
    pixels = np.argwhere(mask)[:, ::-1]  # (column, row)
    left, top = pixels.min(0)
    width, height = pixels.max(0) - pixels.min(0) + 1
    count = int(rng.integers(1, min(strokes.MAX_CORNERS, len(pixels)) + 1))
    chosen = pixels[rng.choice(len(pixels), count, replace=False)]
    corners = chosen / (np.array(mask.shape[::-1]) + 1)
    curve = np.clip(strokes.closed_curve(corners), 0, 1) * np.array([width - 1, height - 1])
    return np.unique(curve.astype(np.int32), axis=0) + np.array([left, top], np.int32)
