"""What X-Decoder's decoder does otherwise than SEEM's (official modeling/interface/xdecoder.py).

SEEM starts from its weights and does not decode like it, so these rules stand here and not in the
model: with them the runner can hold our parameters against numbers of X-Decoder itself.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from seem_jax.config import NUM_LEVELS
from seem_jax.models.decoder.decoder import Decoder
from seem_jax.models.decoder.layer import DecoderLayer
from seem_jax.types import Features


def smooth_levels(features: Features) -> Features:
    """Attention masks are made by antialiased bicubic resizing, which is linear as ours is."""
    batch, _, _, width = features.mask.shape
    sizes = [level.shape[1:3] for level in features.levels]
    levels = [
        jax.image.resize(features.mask, (batch, *size, width), "cubic", antialias=True)
        for size in sizes
    ]
    assert len(levels) == NUM_LEVELS
    return features.replace(mask_levels=tuple(x.reshape(batch, -1, width) for x in levels))


def rules_for(num_queries: int):
    """An interceptor for a decoder with that many object queries, the last being one of the class.

    It and the others do not read each other, and it answers with a mixture of the others by
    similarity. With phrases, all but it are copied for them; these copies and all text tokens, padding
    too, read each other, and the first copy looks at the whole image. Our decoder copies one more
    query, which nobody reads here.
    """

    def change(call, args, kwargs, context):
        module, method = context.module, context.method_name
        if isinstance(module, DecoderLayer) and method == "look":
            *given, logits = args
            return call(*given, seen_logits(logits, num_queries), **kwargs)
        if isinstance(module, DecoderLayer) and method == "read":
            *given, reads = args
            group = _groups(reads.shape[-1], num_queries)
            same = group[:, None] == group[None, :]
            return call(*given, jnp.broadcast_to(same[None], reads.shape), **kwargs)
        if isinstance(module, Decoder) and method == "predict":
            slots = _with_class(module.norm(*args), num_queries)
            return module.mask_mlp(slots), slots @ module.class_embedding
        return call(*args, **kwargs)

    return change


def seen_logits(logits, num_queries: int):
    """Mask logits [B, N, S] under which slots look: the first copy for phrases sees every pixel."""
    first = jnp.arange(logits.shape[1]) == num_queries
    return jnp.where(first[None, :, None], 1.0, logits)


def _groups(number: int, num_queries: int):
    """int [number]: slots that read each other have the same number."""
    slot = jnp.arange(number)
    group = jnp.where(slot < num_queries, 0, 1)
    group = jnp.where(slot == num_queries - 1, 2, group)
    return jnp.where(slot == 2 * num_queries - 1, 3, group)


def _with_class(slots, num_queries: int):
    """The normalised slots [B, N, D] with the answer of the class in the last object query."""
    unit = slots / (jnp.linalg.norm(slots, axis=-1, keepdims=True) + 1e-7)
    objects, last = slice(num_queries - 1), slice(num_queries - 1, num_queries)
    share = jax.nn.softmax(unit[:, last] @ unit[:, objects].swapaxes(1, 2), axis=-1)
    return slots.at[:, last].set(share @ slots[:, objects])
