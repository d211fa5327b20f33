"""Loss of the text prompts: which slot answers which phrase (official name: grounding)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from seem_jax.config import LossConfig
from seem_jax.types import Array, Phrases

MAX_SCALE = 100.0  # of the phrase similarities, as officially


def normalise(embedding: Array) -> Array:
    """float32 [..., V], the embedding at length 1; the gradient is finite even where it is 0."""
    embedding = embedding.astype(jnp.float32)
    length = jnp.sqrt(jnp.square(embedding).sum(-1, keepdims=True) + 1e-30)
    return embedding / (length + 1e-7)


def phrase_logits(
    class_embedding: Array,
    mask_embedding: Array,
    phrase_embedding: Array,
    prompt: Array,
    pooled: Array | None,
    logit_scale: Array,
) -> Array:
    """float32 [..., Q, G], how well text slot q answers phrase g; the answer is the argmax over Q.

    class_embedding [..., Q, V] and phrase_embedding [..., G, V] need not be normalised. A phrase that
    came with a drawn prompt (prompt [..., G], -1 for none) adds the product of the slot's
    mask_embedding [..., Q, D] with pooled [..., P, D] of that prompt, over sqrt(D): the sum of
    similarities of the SEEM paper's matching. Without drawn prompts (pooled None, or prompt -1) the
    numbers are those of the official vl_similarity.
    """
    scale = jnp.minimum(jnp.exp(logit_scale), MAX_SCALE)
    text, phrase = normalise(class_embedding), normalise(phrase_embedding)
    logits = scale * jnp.einsum("...qv,...gv->...qg", text, phrase)
    if pooled is None:
        return logits
    drawn = jnp.take_along_axis(pooled, jnp.maximum(prompt, 0)[..., None], axis=-2)  # [..., G, D]
    drawn = jnp.where(prompt[..., None] >= 0, drawn.astype(jnp.float32), 0.0)
    visual = jnp.einsum("...qd,...gd->...qg", mask_embedding.astype(jnp.float32), drawn)
    return logits + visual / mask_embedding.shape[-1] ** 0.5


def class_cost(logits: Array) -> Array:
    """[B, G, Q], minus the share that each slot has in a phrase, from logits [B, Q, G]."""
    return -jax.nn.softmax(logits, axis=1).swapaxes(1, 2)


def class_loss(logits: Array, matched: Array, phrases: Phrases, config: LossConfig) -> Array:
    """Scalar cross-entropy over the slots, of logits [B, Q, G] and matched slots [B, G] (-1: none).

    Phrases of an image with the same text share their matched slots in equal parts. Mean over the
    phrases of an image, weighted by what they are (sentences or class names), then over the images
    that have phrases. Official loss_groundings (criterion.py).
    """
    valid = phrases.masks.valid
    num_slots, dtype = logits.shape[1], jnp.float32
    slot_of = jax.nn.one_hot(matched, num_slots, dtype=dtype)  # [B, G, Q], zeros for -1
    same = phrases.group[:, :, None] == phrases.group[:, None, :]
    same = (same & valid[:, :, None] & valid[:, None, :]).astype(dtype)
    same = same / jnp.maximum(same.sum(-1, keepdims=True), 1.0)
    wanted = jnp.einsum("bgk,bkq->bgq", same, slot_of)
    loss = -(wanted * jax.nn.log_softmax(logits, axis=1).swapaxes(1, 2)).sum(-1)  # [B, G]
    number = valid.sum(-1, dtype=dtype)  # [B]
    mean = jnp.where(valid, loss, 0.0).sum(-1) / jnp.maximum(number, 1.0)
    weight = jnp.where(phrases.is_class, config.class_name_weight, config.sentence_weight)
    return (mean * weight).sum() / jnp.maximum((number > 0).sum(dtype=dtype), 1.0)
