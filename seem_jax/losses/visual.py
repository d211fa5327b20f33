"""Loss of the visual prompts: one of a prompt's own slots answers it (official name: spatial)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from seem_jax.config import LossConfig
from seem_jax.losses.matcher import mask_cost
from seem_jax.types import Array


def prompt_logits(mask_embedding: Array, pooled: Array) -> Array:
    """float32 [B, P, N], the product of every visual slot [B, N, D] with every prompt [B, P, D]."""
    return jnp.einsum(
        "bpd,bnd->bpn", pooled.astype(jnp.float32), mask_embedding.astype(jnp.float32)
    )


def match(logits: Array, mask_logits: Array, truth: Array, config: LossConfig) -> Array:
    """int32 [B, P], for each prompt the cheapest of its own slots, as index into all N = P * S.

    logits are [B, P, N] of `prompt_logits`, mask_logits [B, N, K] and truth [B, P, K] are read at the
    same points. Prompts have no slot in common, so the cheapest assignment is one argmin each.
    Official spatial_forward (matcher.py).
    """
    b, p, n = logits.shape
    own = _own(logits)  # [B, P, S]
    by_prompt = mask_logits.reshape(b, p, n // p, -1)  # [B, P, S, K]
    cost = mask_cost(by_prompt, truth[:, :, None], config)[:, :, 0]
    cost -= config.cost_class * jax.nn.softmax(own, axis=-1)
    start = jnp.arange(p, dtype=jnp.int32)[None] * (n // p)
    return start + jnp.argmin(cost, axis=-1).astype(jnp.int32)


def class_loss(logits: Array, matched: Array, prompt_valid: Array, counted: Array) -> Array:
    """Scalar cross-entropy over all visual slots of an image, mean over the prompts that count.

    logits are [B, P, N], matched int32 [B, P]. The slots of prompts that are not prompt_valid
    (bool [B, P]) take no part; `counted` are the prompts with a mask to find. Official loss_spatials.
    """
    slots = jnp.repeat(prompt_valid, logits.shape[-1] // logits.shape[1], axis=-1)  # [B, N]
    slots = jnp.broadcast_to(slots[:, None], logits.shape)
    at_match = jnp.take_along_axis(logits, matched[..., None], axis=-1)[..., 0]
    seen = jnp.where(slots, logits, -1e9)  # finite, so that rows without any slot stay finite
    loss = jax.nn.logsumexp(seen, axis=-1) - at_match
    return jnp.where(counted, loss, 0.0).sum() / jnp.maximum(counted.sum(dtype=jnp.float32), 1.0)


def _own(logits: Array) -> Array:
    """[B, P, S], of [B, P, N = P * S] the logits of each prompt with its own slots."""
    b, p, n = logits.shape
    by_owner = logits.reshape(b, p, p, n // p)
    return jnp.take_along_axis(by_owner, jnp.arange(p)[None, :, None, None], axis=2)[:, :, 0]
