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
from seem_jax.kernels.point_sample import sample, sample_map, spread_on_maps
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
    given = () if candidates is None else (candidates, rest)
    drawn = () if given else _draw(key, len(planes), config)
    uncertain = _num_uncertain(config)

    def choose(rows, planes, *drawn):
        logits, given, refs = rows
        if given:
            points = uncertain_points(logits, *given, uncertain)
        else:
            points = mirrored_points(logits, *drawn, uncertain)
        return points, sample_masks(planes, refs, points)

    rows = (jax.lax.stop_gradient(logits), given, refs)
    points, truth = by_valid(choose, refs.valid, rows, planes, *drawn)
    read = read_maps(logits, points, refs.valid)
    return bce(read, truth), dice(read, truth), points


def _num_uncertain(config: LossConfig) -> int:
    return int(config.importance * config.num_points)


def _draw(key: Array, batch: int, config: LossConfig) -> tuple[Array, Array]:
    """(candidates [B, N, 2], rest [B, R, 2]) for all masks of an image: random numbers cost more than their use."""
    number = int(config.num_points * config.oversample)
    rest = config.num_points - _num_uncertain(config)
    drawn = jax.random.uniform(key, (batch, number + rest, 2))
    return drawn[:, :number], drawn[:, number:]


def uncertain_points(logits: Array, candidates: Array, rest: Array, count: int) -> Array:
    """float32 [B, M, K, 2], points at which to read each mask's loss, from its logits [B, M, h, w].

    Of the uniform candidates [B, M, N, 2], `count` with the smallest |logit|; then rest, [B, M, K - count,
    2]. Official get_uncertain_point_coords_with_randomness (point_features.py).
    """
    # What is not a number is taken first, so that the loss shows it.
    chosen = smallest(jnp.abs(_read(logits, candidates)), count)
    certain_not = jnp.take_along_axis(candidates, chosen[..., None], axis=2)
    return jnp.concatenate([certain_not, rest], axis=2)


def mirrored_points(logits: Array, candidates: Array, rest: Array, count: int) -> Array:
    """`uncertain_points` where the masks of an image share candidates [B, N, 2] and rest [B, K - count, 2],
    which each sees in a mirror of its own: within a mask they stay uniform and independent.

    A mirrored map at a point is the map at the mirrored point, so one read of rows serves all masks.
    """
    masks, square = logits.shape[1], logits.shape[2] == logits.shape[3]
    way = jnp.arange(masks, dtype=jnp.int32) % (8 if square else 4)
    read = sample(jnp.moveaxis(_mirrored_maps(logits, way), 1, -1), candidates)
    chosen = smallest(jnp.moveaxis(jnp.abs(read), 2, 1), count)  # [B, M, count]
    certain_not = jax.vmap(lambda points, at: points[at])(candidates, chosen)
    rest = jnp.broadcast_to(rest[:, None], (len(rest), masks, *rest.shape[1:]))
    return mirror(jnp.concatenate([certain_not, rest], axis=2), way[None, :, None])


def mirror(points: Array, way: Array) -> Array:
    """Points [..., 2] of the unit square in one of its eight mirrors, int32 [...]: x and y change places (4), and
    x (1) and y (2) run backwards. 0 leaves them."""
    x, y = points[..., 0], points[..., 1]
    swapped = way & 4 > 0
    x, y = jnp.where(swapped, y, x), jnp.where(swapped, x, y)
    x, y = jnp.where(way & 1 > 0, 1 - x, x), jnp.where(way & 2 > 0, 1 - y, y)
    return jnp.stack([x, y], axis=-1)


def _mirrored_maps(maps: Array, way: Array) -> Array:
    """Maps [B, M, h, w], which at any point are what the given ones are at its `mirror` in the way of each, int32
    [M]."""
    way = way[None, :, None, None]
    maps = jnp.where(way & 1 > 0, maps[..., ::-1], maps)
    maps = jnp.where(way & 2 > 0, maps[..., ::-1, :], maps)
    return (
        jnp.where(way & 4 > 0, maps.swapaxes(2, 3), maps)
        if maps.shape[2] == maps.shape[3]
        else maps
    )


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
        batch, masks, number = gradient.shape
        maps = spread_on_maps(
            gradient.reshape(-1, number), points.reshape(-1, number, 2), *like.shape[2:]
        )
        return maps.reshape(batch, masks, *like.shape[2:]).astype(like.dtype)

    return by_valid(back, valid, (points, gradient)), jnp.zeros_like(points), None


read_maps.defvjp(_read_forward, _read_backward)
