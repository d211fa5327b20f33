"""Mask losses at sampled points: cross-entropy and Dice, where the masks are least certain.

The masks are PointRend's and Mask2Former's (Kirillov et al. 2020, Cheng et al. 2022): the loss of a
mask is read at a fixed number of points, most of them where the prediction is close to zero.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from seem_jax.config import LossConfig
from seem_jax.kernels.by_valid import by_valid
from seem_jax.kernels.mask_planes import sample_masks
from seem_jax.kernels.pixel_products import products_with_pixels
from seem_jax.kernels.point_sample import sample_map
from seem_jax.kernels.smallest import smallest
from seem_jax.types import Array, MaskRefs


def bce(logits: Array, truth: Array) -> Array:
    """[...], the mean binary cross-entropy over the last axis (official sigmoid_ce_loss)."""
    return (jax.nn.softplus(logits) - truth * logits).mean(-1)


def dice(logits: Array, truth: Array) -> Array:
    """[...], soft Dice over the last axis: 0 is perfect, near 1 disjoint (official dice_loss).

    The +1 smoothing is MaskFormer's, so that values compare with the official code's.
    """
    prob = jax.nn.sigmoid(logits)
    overlap = 2 * (prob * truth).sum(-1)
    return 1 - (overlap + 1) / (prob.sum(-1) + truth.sum(-1) + 1)


def matched_losses(
    key: Array,
    embedding: Array,
    mask_features: Array,
    planes: Array,
    refs: MaskRefs,
    config: LossConfig,
    candidates: Array | None = None,
    rest: Array | None = None,
) -> tuple[Array, Array, Array]:
    """(cross-entropy, Dice) of each valid mask, float32 [B, M], and where they were read.

    embedding [B, M, D] are the mask embeddings of the matched slots, mask_features [B, h, w, D]. The
    points are float32 [B, M, K, 2]; candidates and rest replace random ones, see `uncertain_points`. The
    stride-4 logits are computed once, and kept neither for the choice nor for the gradient. Points are
    drawn, chosen and read for valid masks only: most places for a mask are empty.
    """
    logits = stride4_logits(embedding, mask_features)
    for_points, for_shifts = jax.random.split(key)
    num_candidates = int(config.num_points * config.oversample)
    num_rest = config.num_points - _num_uncertain(config)
    shared = jax.random.uniform(for_points, (len(planes), num_candidates + num_rest, 2))
    shifts = jax.random.uniform(for_shifts, (*refs.valid.shape, 1, 2))

    def choose(rows, planes, shared):
        shifts, logits, candidates, rest, refs = rows
        # Random numbers cost more than their use, so an image draws once, and each mask shifts the points,
        # across the borders, by a vector of its own: within a mask they stay uniform and independent.
        own = (shared[:, None] + shifts) % 1.0
        candidates = own[:, :, :num_candidates] if candidates is None else candidates
        rest = own[:, :, num_candidates:] if rest is None else rest
        points = uncertain_points(logits, candidates, rest, config)
        return points, sample_masks(planes, refs, points)

    rows = (shifts, jax.lax.stop_gradient(logits), candidates, rest, refs)
    points, truth = by_valid(choose, refs.valid, rows, planes, shared)
    read = read_maps(logits, points, refs.valid)
    return bce(read, truth), dice(read, truth), points


def uncertain_points(logits: Array, candidates: Array, rest: Array, config: LossConfig) -> Array:
    """float32 [B, M, K, 2], points at which to read each mask's loss, from its logits [B, M, h, w].

    Of the uniform candidates [B, M, oversample * K, 2], the share `importance` of K with the smallest
    |logit|; then rest [B, M, K - share, 2]. Official get_uncertain_point_coords_with_randomness
    (point_features.py).
    """
    # What is not a number is taken first, so that the loss shows it.
    chosen = smallest(jnp.abs(_read(logits, candidates)), _num_uncertain(config))
    certain_not = jnp.take_along_axis(candidates, chosen[..., None], axis=2)
    return jnp.concatenate([certain_not, rest], axis=2)


def _num_uncertain(config: LossConfig) -> int:
    return int(config.importance * config.num_points)


def stride4_logits(embedding: Array, mask_features: Array) -> Array:
    """float32 [B, M, h, w], the mask logits of embeddings [B, M, D] on features [B, h, w, D]."""
    return products_with_pixels(embedding, mask_features)


@jax.custom_vjp
def read_maps(maps: Array, points: Array, valid: Array) -> Array:
    """[B, M, K], each valid map of [B, M, h, w] read at its own points [B, M, K, 2]; 0 for the others.

    Linear in the maps, so the gradient keeps the points only; none passes to the points.
    """
    return by_valid(lambda rows: _read(*rows), valid, (maps, points))


def _read(maps, points):
    return jax.vmap(jax.vmap(sample_map))(maps, points)


def _read_forward(maps, points, valid):
    return read_maps(maps, points, valid), (
        jnp.zeros((0, *maps.shape[1:]), maps.dtype),
        points,
        valid,
    )


def _read_backward(kept, gradient):
    like, points, valid = kept

    def back(rows):
        points, gradient = rows
        maps = jnp.zeros((*points.shape[:2], *like.shape[2:]), like.dtype)
        return jax.vjp(lambda maps: _read(maps, points), maps)[1](gradient)[0]

    return by_valid(back, valid, (points, gradient)), jnp.zeros_like(points), None


read_maps.defvjp(_read_forward, _read_backward)
