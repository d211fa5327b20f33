"""Drawn points -> tokens: what the features of an image say at the points."""

from __future__ import annotations

import jax.numpy as jnp

from seem_jax.kernels.point_sample import sample
from seem_jax.nn.positions import sine_at
from seem_jax.types import Features, VisualPrompts, VisualTokens


def read_points(
    features: Features,
    prompts: VisualPrompts,
    num_prompts: int,
    projections,
    sign_embedding,
    empty_pooled: float,
    located=None,
    opposed: bool = False,
) -> VisualTokens:
    """Tokens of the drawn points, read from `features` (the image they were drawn on).

    projections holds one [D, D] matrix per level (official mask_sptial_embed), sign_embedding is
    [2, D]: row 0 for "this object", row 1 for "not this" (official pn_indicator). Reading is linear,
    so points are sampled first and projected after. A prompt without positive points pools to
    empty_pooled. Coordinates are pixel / size read with aligned corners, as officially.

    located, bool [B, P], adds sine positions to the tokens of some prompts, for features whose mask
    features hold such positions too; the pooled value of the others is then freed of them. With None,
    as officially, there are no explicit positions anywhere.

    With opposed, a token of "not this" is minus what is there (and where), plus its row: what a slot adds
    for a point that it wants, it takes away for one that it does not, without having to learn so.
    Officially the rows alone tell the two apart.
    """
    positive = prompts.positive[..., None]  # [B, K, 1]
    levels = tuple(
        sample(level, prompts.points, align_corners=True) @ projection.astype(level.dtype)
        for level, projection in zip(features.levels, projections)
    )
    pooled = sample(features.mask, prompts.points, align_corners=True)  # [B, K, D]
    pooled = pooled.astype(jnp.float32)
    if located is not None:
        said = jnp.take_along_axis(located, prompts.prompt, axis=1)[..., None]  # [B, K, 1]
        levels = tuple(
            tokens + jnp.where(said, _positions(prompts, level), 0.0).astype(tokens.dtype)
            for level, tokens in zip(features.levels, levels)
        )
        pooled = pooled - jnp.where(said, 0.0, _positions(prompts, features.mask))
    if opposed:
        levels = tuple(jnp.where(positive, tokens, -tokens) for tokens in levels)
    sign = jnp.where(positive, sign_embedding[0], sign_embedding[1])  # [B, K, D]
    levels = tuple(tokens + sign.astype(tokens.dtype) for tokens in levels)
    prompt_ids = jnp.arange(num_prompts, dtype=jnp.int32)
    member = (prompts.prompt[:, None, :] == prompt_ids[None, :, None]) & prompts.valid[:, None, :]
    wanted = (member & prompts.positive[:, None, :]).astype(jnp.float32)  # [B, P, K]
    count = wanted.sum(-1, keepdims=True)  # [B, P, 1]
    mean = jnp.einsum("bpk,bkd->bpd", wanted, pooled) / jnp.maximum(count, 1.0)
    return VisualTokens(
        levels=levels,
        prompt=jnp.where(prompts.valid, prompts.prompt, -1),
        valid=prompts.valid,
        pooled=jnp.where(count > 0, mean, empty_pooled),
        prompt_valid=member.any(-1),
    )


def _positions(prompts: VisualPrompts, level):
    """float32 [B, K, D], where the points lie on a map [B, h, w, D]."""
    return sine_at(prompts.points, *level.shape[1:])
