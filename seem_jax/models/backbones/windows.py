"""Square windows of a feature map, as attention within them wants it."""

from __future__ import annotations

import jax.numpy as jnp


def split_windows(x, size: int):
    """[B * windows, size * size, C] of a map [B, h, w, C], zero-padded right and below."""
    b, h, w, c = x.shape
    rows, columns = -(-h // size), -(-w // size)
    x = jnp.pad(x, ((0, 0), (0, rows * size - h), (0, columns * size - w), (0, 0)))
    x = x.reshape(b, rows, size, columns, size, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b * rows * columns, size * size, c)


def join_windows(windows, size: int, height: int, width: int):
    """The map [B, height, width, C] that `split_windows` took apart, without its padding."""
    rows, columns = -(-height // size), -(-width // size)
    c = windows.shape[-1]
    x = windows.reshape(-1, rows, columns, size, size, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, rows * size, columns * size, c)[:, :height, :width]
