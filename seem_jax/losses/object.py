"""Loss of the object slots: each names one segment of the image, or "no object"."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from seem_jax.losses.text import normalise
from seem_jax.types import Array


def class_logits(class_embedding: Array, table: Array, logit_scale: Array) -> Array:
    """float32 [..., C], the scaled cosine of embeddings [..., V] with the rows of a normalised table.

    The scale is not clamped here (official compute_similarity, vlpencoder.py).
    """
    return jnp.exp(logit_scale) * (normalise(class_embedding) @ table.T)


def class_cost(logits: Array, label: Array) -> Array:
    """[B, M, Q], minus the probability that slot q of logits [B, Q, C] gives to label [B, M]."""
    prob = jax.nn.softmax(logits, axis=-1).swapaxes(1, 2)  # [B, C, Q]
    return -jnp.take_along_axis(prob, label[:, :, None], axis=1)


def class_loss(logits: Array, label: Array, matched: Array, no_object: float) -> Array:
    """Scalar cross-entropy of logits [B, Q, C], weighted mean over all slots of the batch.

    Slot matched[b, m] shall say label[b, m], both int32 [B, M], -1 for no slot; the others say
    class C - 1, with weight `no_object` instead of 1. Official loss_labels (criterion.py).
    """
    num_slots, num_classes = logits.shape[1:]
    slot = jnp.where(matched < 0, num_slots, matched)  # beyond the end: dropped
    wanted = jax.vmap(
        lambda s, value: (
            jnp.full(num_slots, num_classes - 1, jnp.int32).at[s].set(value, mode="drop")
        )
    )(slot, label)  # [B, Q]
    loss = -jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), wanted[..., None], axis=-1)
    weight = jnp.where(wanted == num_classes - 1, no_object, 1.0)
    return (loss[..., 0] * weight).sum() / weight.sum()
