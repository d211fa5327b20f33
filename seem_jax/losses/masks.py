"""Mask losses at sampled points: cross-entropy and Dice, where the masks are least certain.

The masks are PointRend's and Mask2Former's (Kirillov et al. 2020, Cheng et al. 2022): the loss of a
mask is read at a fixed number of points, most of them where the prediction is close to zero.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from seem_jax.config import LossConfig
from seem_jax.kernels.mask_planes import sample_masks
from seem_jax.kernels.pixel_products import products_with_pixels
from seem_jax.kernels.point_sample import sample
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
    """(cross-entropy, Dice) of each matched mask, float32 [B, M], and where they were read.

    embedding [B, M, D] are the mask embeddings of the matched slots, mask_features [B, h, w, D]. The
    points are float32 [B, M, K, 2]; candidates and rest replace draws, see `uncertain_points`. The
    stride-4 logits are computed once, and kept neither for the choice nor for the gradient.
    """
    logits = stride4_logits(embedding, mask_features)
    points = uncertain_points(key, jax.lax.stop_gradient(logits), config, candidates, rest)
    truth = sample_masks(planes, refs, points)  # [B, M, K]
    read = read_maps(logits, points)
    return bce(read, truth), dice(read, truth), points


def uncertain_points(
    key: Array,
    logits: Array,
    config: LossConfig,
    candidates: Array | None = None,
    rest: Array | None = None,
) -> Array:
    """float32 [B, M, K, 2], points at which to read each mask's loss, from its logits [B, M, h, w].

    Of oversample * K uniform candidates, the share `importance` of K with the smallest |logit|, and
    uniform ones for the rest. candidates [B, M, oversample * K, 2] and rest [B, M, K - share, 2]
    replace the draws. Official get_uncertain_point_coords_with_randomness (point_features.py).
    """
    num_uncertain = int(config.importance * config.num_points)
    lead = logits.shape[:2]
    for_candidates, for_rest = jax.random.split(key)
    if candidates is None:
        num_candidates = int(config.num_points * config.oversample)
        candidates = jax.random.uniform(for_candidates, (*lead, num_candidates, 2))
    if rest is None:
        rest = jax.random.uniform(for_rest, (*lead, config.num_points - num_uncertain, 2))
    chosen = _largest(-jnp.abs(read_maps(logits, candidates)), num_uncertain)
    certain_not = jnp.take_along_axis(candidates, chosen[..., None], axis=2)
    return jnp.concatenate([certain_not, rest], axis=2)


def _largest(values: Array, count: int) -> Array:
    """int32 [B, M, count], where the largest of values [B, M, K] are, found by each device for its own
    images: left alone, XLA gathers the whole batch for a top_k."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in mesh.axis_names if axis != "tensor")
    parts = math.prod(mesh.shape[axis] for axis in axes)
    find = functools.partial(_top_places, count=count)
    if parts == 1 or values.shape[0] % parts:
        return find(values)
    spread = PartitionSpec(axes)
    return jax.shard_map(find, in_specs=spread, out_specs=spread, check_vma=False)(values)


def _top_places(values: Array, count: int) -> Array:
    return jax.lax.top_k(values, count)[1]


def stride4_logits(embedding: Array, mask_features: Array) -> Array:
    """float32 [B, M, h, w], the mask logits of embeddings [B, M, D] on features [B, h, w, D]."""
    return products_with_pixels(embedding, mask_features)


@jax.custom_vjp
def read_maps(maps: Array, points: Array) -> Array:
    """[B, M, K], each of the maps [B, M, h, w] read at its own points [B, M, K, 2].

    Linear in the maps, so the gradient keeps the points only; none passes to the points.
    """
    return _read(maps, points)


def _read(maps, points):
    return jax.vmap(lambda m, p: sample(m[..., None], p)[..., 0])(maps, points)


def _read_forward(maps, points):
    return _read(maps, points), (jnp.zeros((0, *maps.shape[1:]), maps.dtype), points)


def _read_backward(kept, gradient):
    like, points = kept
    maps = jnp.zeros((len(points), *like.shape[1:]), like.dtype)
    _, back = jax.vjp(lambda maps: _read(maps, points), maps)
    return back(gradient)[0], jnp.zeros_like(points)


read_maps.defvjp(_read_forward, _read_backward)
