"""Resizing as the official code does it: bilinear on the device, whole chains as two small matrices."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np


def upsample(values: jax.Array, factor: int) -> jax.Array:
    """Bilinear enlargement by a whole factor, half-pixel centres; [..., h, w] -> [..., h f, w f].

    The same as `jax.image.resize(..., "bilinear")` and as torch with align_corners=False. Every
    f-th pixel mixes its two neighbours with the same weights, so no matrix product is needed.
    """
    for axis in (values.ndim - 2, values.ndim - 1):
        pad = [(0, 0)] * values.ndim
        pad[axis] = (1, 1)
        size = values.shape[axis]
        padded = jnp.pad(values, pad, mode="edge")
        before, here, after = (
            jax.lax.slice_in_dim(padded, k, k + size, axis=axis) for k in range(3)
        )
        phases = []
        for phase in range(factor):
            shift = (phase + 0.5) / factor - 0.5  # pixels, in (-0.5, 0.5)
            other = after if shift > 0 else before
            phases.append(here * (1 - abs(shift)) + other * abs(shift))
        shape = (*values.shape[:axis], size * factor, *values.shape[axis + 1 :])
        values = jnp.stack(phases, axis=axis + 1).reshape(shape)
    return values


def shrink(maps: jax.Array, factor: int) -> jax.Array:
    """Bilinear reduction by a whole factor, half-pixel centres; [B, h f, w f, D] -> [B, h, w, D].

    The same as `jax.image.resize(..., "bilinear", antialias=False)`, which takes a matrix product for
    it. Here a pixel is the mean of the 2x2 pixels in the middle of its f x f, or for an odd factor the
    one in the middle. Raises ValueError for a map that the factor does not divide.
    """
    height, width = maps.shape[1:3]
    if height % factor or width % factor:
        raise ValueError(f"a map of {height} x {width} pixels does not shrink by {factor}.")
    middle = sorted({(factor - 1) // 2, factor // 2})
    picked = [maps[:, i::factor, j::factor] for i in middle for j in middle]
    return sum(picked[1:], start=picked[0]) * (1 / len(picked))


@functools.lru_cache(maxsize=256)
def bilinear_matrix(out: int, size: int) -> np.ndarray:
    """float32 [out, size], torch "bilinear" with align_corners=False and no antialiasing."""
    centre = np.maximum((np.arange(out) + 0.5) * size / out - 0.5, 0.0)
    low = np.minimum(np.floor(centre).astype(int), size - 1)
    high = np.minimum(low + 1, size - 1)
    share = centre - low
    matrix = np.zeros((out, size))
    np.add.at(matrix, (np.arange(out), low), 1 - share)
    np.add.at(matrix, (np.arange(out), high), share)
    return matrix.astype(np.float32)


@functools.lru_cache(maxsize=256)
def bicubic_matrix(out: int, size: int) -> np.ndarray:
    """float32 [out, size], antialiased Keys cubic (a = -0.5) as in Pillow and torch antialias=True.

    The kernel widens by the shrink factor and its weights sum to one inside the image.
    """
    scale = max(size / out, 1.0)
    centre = (np.arange(out) + 0.5) * size / out
    low = np.maximum(np.floor(centre - 2 * scale + 0.5), 0)
    high = np.minimum(np.floor(centre + 2 * scale + 0.5), size)
    pixel = np.arange(size)
    distance = np.abs((pixel[None] + 0.5 - centre[:, None]) / scale)
    inner = (1.5 * distance - 2.5) * distance**2 + 1
    outer = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weight = np.where(distance < 1, inner, np.where(distance < 2, outer, 0.0))
    weight *= (pixel[None] >= low[:, None]) & (pixel[None] < high[:, None])
    return (weight / weight.sum(1, keepdims=True)).astype(np.float32)
