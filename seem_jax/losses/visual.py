"""Loss of the visual prompts: one of a prompt's own slots answers it (official name: spatial)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from seem_jax.types import Array

FORBIDDEN = 1e9  # far beyond any logit or cost, yet finite, so that padding rows stay finite


def prompt_logits(pooled: Array, mask_embedding: Array) -> Array:
    """float32 [B, P, N], the product of every prompt [B, P, D] with every visual slot [B, N, D]."""
    return jnp.einsum(
        "bpd,bnd->bpn", pooled.astype(jnp.float32), mask_embedding.astype(jnp.float32)
    )


def class_cost(logits: Array) -> Array:
    """[B, P, N], minus the share of a slot among its prompt's own; `FORBIDDEN` for others' slots.

    logits are [B, P, N] of `prompt_logits`. Official spatial_forward (matcher.py).
    """
    num_prompts, num_slots = logits.shape[1:]
    owner = jnp.arange(num_slots) // (num_slots // num_prompts)
    own = jnp.broadcast_to(
        owner[None, None] == jnp.arange(num_prompts)[None, :, None], logits.shape
    )
    share = jax.nn.softmax(jnp.where(own, logits, -FORBIDDEN), axis=-1)
    return jnp.where(own, -share, FORBIDDEN)


def class_loss(logits: Array, matched: Array, prompt_valid: Array) -> Array:
    """Scalar cross-entropy over all visual slots of an image, mean over the matched prompts.

    logits are [B, P, N], matched int32 [B, P] (-1: the prompt has nothing to find). The slots of
    prompts that are not prompt_valid, bool [B, P], take no part. Official loss_spatials (criterion.py).
    """
    num_prompts, num_slots = logits.shape[1:]
    takes_part = jnp.repeat(prompt_valid, num_slots // num_prompts, axis=-1)[:, None]  # [B, 1, N]
    seen = jnp.where(takes_part, logits, -FORBIDDEN)
    named = jax.nn.log_softmax(seen, axis=-1)
    loss = -jnp.take_along_axis(named, jnp.maximum(matched, 0)[..., None], axis=-1)[..., 0]
    counted = matched >= 0
    return jnp.where(counted, loss, 0.0).sum() / jnp.maximum(counted.sum(dtype=jnp.float32), 1.0)
