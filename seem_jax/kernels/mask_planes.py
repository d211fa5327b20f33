"""Masks out of shared byte planes (`types.MaskRefs`), whole or at points."""

from __future__ import annotations

import jax.numpy as jnp

from seem_jax.kernels.point_sample import corners, take
from seem_jax.types import Array, MaskRefs


def dense(planes: Array, refs: MaskRefs) -> Array:
    """bool [B, M, H, W], the masks of uint8 planes [B, R, H, W]; one that is not valid is empty."""
    return _holds(take(planes, refs.plane), refs)


def sample_masks(planes: Array, refs: MaskRefs, points: Array) -> Array:
    """float32 [B, M, K], the masks read bilinearly at points; the same as `sample` of the dense masks.

    points are [B, K, 2], shared by the masks of an image, or [B, M, K, 2], own ones for each mask.
    """
    batch, num_planes, height, width = planes.shape
    index, weight = corners(points, height, width)  # [B, (M,) K, 4]
    if points.ndim == 3:
        by_pixel = planes.reshape(batch, num_planes, height * width).swapaxes(1, 2)
        weight = weight[:, None]

        def read(corner):
            return take(take(by_pixel, index[..., corner]).swapaxes(1, 2), refs.plane)

    elif points.ndim == 4:
        flat = planes.reshape(batch, num_planes * height * width)
        start = refs.plane[:, :, None] * (height * width)

        def read(corner):
            return take(flat, index[..., corner] + start)

    else:
        raise ValueError(f"points have shape {points.shape}; expected [B, K, 2] or [B, M, K, 2].")
    # Corner by corner: an innermost axis of four would be slow.
    return sum(
        jnp.where(_holds(read(corner), refs), weight[..., corner], 0.0) for corner in range(4)
    )


def _holds(chosen: Array, refs: MaskRefs) -> Array:
    """bool [B, M, ...], where the bytes [B, M, ...] of each mask's plane say "inside"."""
    more = range(2, chosen.ndim)
    select, value, valid = (jnp.expand_dims(x, more) for x in (refs.select, refs.value, refs.valid))
    return ((chosen & select) == value) & valid
