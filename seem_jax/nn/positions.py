"""Positions of the pixels of a feature map."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np


def sine_positions(height: int, width: int, channels: int):
    """Two-dimensional sine positions, float32 [height, width, channels].

    The first half of the channels encodes the row, the second the column; within a half sines
    and cosines alternate. Rows and columns count from 1 and are scaled so that the last is
    2 pi. Values of DETR (Carion et al. 2020), official PositionEmbeddingSine(normalize=True).
    Only the two axes are constants of the program; the map itself would be 32 MB at 128 x 128.
    """
    if channels % 4:
        raise ValueError(f"{channels} channels of sine positions; expected a multiple of 4.")
    half = channels // 2
    rows = _axis(height, half)[:, None]  # [h, 1, D/2]
    columns = _axis(width, half)[None]  # [1, w, D/2]
    shape = (height, width, half)
    parts = [jnp.broadcast_to(jnp.asarray(part), shape) for part in (rows, columns)]
    return jnp.concatenate(parts, axis=-1)


def _axis(length, channels):
    place = np.arange(1, length + 1) / (length + 1e-6) * 2 * np.pi
    period = 10000.0 ** (2 * (np.arange(channels) // 2) / channels)
    angle = place[:, None] / period[None]  # [length, channels]
    even = np.arange(channels) % 2 == 0
    return np.where(even[None], np.sin(angle), np.cos(angle)).astype(np.float32)
