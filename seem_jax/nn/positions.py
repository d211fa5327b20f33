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


def sine_at(points, height: int, width: int, channels: int):
    """`sine_positions` of a map [height, width] at points [..., 2], float32 [..., channels].

    points are (x, y) in [0, 1], read with aligned corners: 0 is the middle of the first pixel and 1
    that of the last, so a point on a pixel has the position of that pixel.
    """
    half = channels // 2
    period = _period(half).astype(np.float32)
    even = np.arange(half) % 2 == 0
    parts = []
    for at, size in ((points[..., 1], height), (points[..., 0], width)):
        place = (at * (size - 1) + 1) / (size + 1e-6) * (2 * np.pi)
        angle = jnp.expand_dims(place, -1) / jnp.expand_dims(period, range(place.ndim))
        wave = jnp.where(jnp.expand_dims(even, range(place.ndim)), jnp.sin(angle), jnp.cos(angle))
        parts.append(wave)
    return jnp.concatenate(parts, axis=-1)


def _period(channels):
    return 10000.0 ** (2 * (np.arange(channels) // 2) / channels)


def _axis(length, channels):
    place = np.arange(1, length + 1) / (length + 1e-6) * 2 * np.pi
    angle = place[:, None] / _period(channels)[None]  # [length, channels]
    even = np.arange(channels) % 2 == 0
    return np.where(even[None], np.sin(angle), np.cos(angle)).astype(np.float32)
