"""Bilinear reads of a map at points, by the rules of PyTorch's grid_sample with zero padding."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from seem_jax.types import Array


def sample(features: Array, points: Array, align_corners: bool = False) -> Array:
    """[B, K, D], the features [B, h, w, D] read at points [B, K, 2], (x, y) in [0, 1].

    Pixel centres lie at ``(i + 0.5) / size``, or at ``i / (size - 1)`` with `align_corners`. Outside
    the map the features are 0. The result has the dtype of the features; the sum runs in float32.
    """
    if features.ndim != 4 or points.ndim != 3 or points.shape[-1] != 2:
        raise ValueError(
            f"features have shape {features.shape} and points {points.shape}; "
            "expected [B, h, w, D] and [B, K, 2]."
        )
    batch, height, width, depth = features.shape
    index, weight = corners(points, height, width, align_corners)  # [B, K, 4]
    flat = features.reshape(batch, height * width, depth)
    total = jnp.zeros((*points.shape[:2], depth), jnp.float32)
    for corner in range(4):  # four reads of [B, K, D] instead of one of [B, K, 4, D]
        read = take(flat, index[..., corner]).astype(jnp.float32)
        total += weight[..., corner, None] * read
    return total.astype(features.dtype)


def sample_map(values: Array, points: Array) -> Array:
    """[K], `sample` of a map of one channel, [h, w], at points [K, 2]: faster, for points in [0, 1] only."""
    height, width = values.shape
    flat = jnp.pad(values, 1).reshape(-1).astype(jnp.float32)  # zeros around it
    pixel, right_share, bottom_share = _in_padded(points, height, width)

    def read(offset):
        return flat.at[pixel + offset].get(mode="promise_in_bounds")

    upper = (1 - right_share) * read(0) + right_share * read(1)
    lower = (1 - right_share) * read(width + 2) + right_share * read(width + 3)
    return ((1 - bottom_share) * upper + bottom_share * lower).astype(values.dtype)


def spread_on_maps(values: Array, points: Array, height: int, width: int) -> Array:
    """float32 [N, h, w], the transpose of `sample_map` for N maps: values [N, K] added where each map is read
    at its points [N, K, 2].
    """
    pixel, right_share, bottom_share = _in_padded(points, height, width)
    size = (height + 2) * (width + 2)
    # All maps in one row: an index of several numbers would first have to be put together.
    pixel = pixel + size * jnp.arange(len(values), dtype=jnp.int32)[:, None]
    flat = jnp.zeros(len(values) * size, jnp.float32)
    for row, row_share in ((0, 1 - bottom_share), (width + 2, bottom_share)):
        for column, share in ((0, 1 - right_share), (1, right_share)):
            flat = flat.at[(pixel + row + column).reshape(-1)].add(
                (values * row_share * share).reshape(-1), mode="promise_in_bounds"
            )
    return flat.reshape(-1, height + 2, width + 2)[:, 1:-1, 1:-1]


def _in_padded(points: Array, height: int, width: int) -> tuple[Array, Array, Array]:
    """(upper left of the four pixels around each point, int32 [...], and the shares of the right and of the
    lower ones) of points [..., 2] in [0, 1]; a map has a frame of zeros here, and its rows lie in one.
    """
    x = points[..., 0].astype(jnp.float32) * width - 0.5
    y = points[..., 1].astype(jnp.float32) * height - 0.5
    left, top = jnp.floor(x), jnp.floor(y)
    pixel = (top.astype(jnp.int32) + 1) * (width + 2) + left.astype(jnp.int32) + 1
    return pixel, x - left, y - top


def corners(
    points: Array, height: int, width: int, align_corners: bool = False
) -> tuple[Array, Array]:
    """The four pixels around each point, and their weights: int32 and float32 [..., 4].

    points are [..., 2]. A pixel is ``row * width + column``; one outside of the map is replaced by a
    pixel inside with weight 0, so every index may be read.
    """
    x, y = points[..., 0].astype(jnp.float32), points[..., 1].astype(jnp.float32)
    if align_corners:
        x, y = x * (width - 1), y * (height - 1)
    else:
        x, y = x * width - 0.5, y * height - 0.5
    left, top = jnp.floor(x), jnp.floor(y)
    right_share, bottom_share = x - left, y - top
    index, weight = [], []
    for row, row_share in ((top, 1 - bottom_share), (top + 1, bottom_share)):
        for column, column_share in ((left, 1 - right_share), (left + 1, right_share)):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            pixel = jnp.clip(row, 0, height - 1) * width + jnp.clip(column, 0, width - 1)
            index.append(pixel.astype(jnp.int32))
            weight.append(jnp.where(inside, row_share * column_share, 0.0))
    return jnp.stack(index, -1), jnp.stack(weight, -1)


def take(rows: Array, index: Array) -> Array:
    """[B, ..., *], the rows [B, S, *] at index int32 [B, ...] of the same image, all within bounds."""
    return jax.vmap(lambda r, i: r.at[i].get(mode="promise_in_bounds"))(rows, index)
