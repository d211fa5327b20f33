"""What X-Decoder's decoder does otherwise than SEEM's (official modeling/interface/xdecoder.py).

SEEM starts from its weights and does not decode like it, so these rules stand here and not in the
model: with them the runner can hold our parameters against numbers of X-Decoder itself.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from seem_jax.models.decoder.decoder import NUM_LEVELS, Decoder, DecoderLayer
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


def class_query(call, args, kwargs, context):
    """An interceptor: the last object query is one of the class of the whole image.

    It and the others do not read each other, and it answers with a mixture of the others by
    similarity.
    """
    module = context.module
    if isinstance(module, DecoderLayer) and context.method_name == "read":
        *given, reads = args
        last = jnp.arange(reads.shape[-1]) == reads.shape[-1] - 1
        return call(*given, reads & (last[:, None] == last[None, :])[None], **kwargs)
    if isinstance(module, Decoder) and context.method_name == "predict":
        slots = module.norm(*args)
        unit = slots / (jnp.linalg.norm(slots, axis=-1, keepdims=True) + 1e-7)
        share = jax.nn.softmax(unit[:, -1:] @ unit[:, :-1].swapaxes(1, 2), axis=-1)
        slots = jnp.concatenate([slots[:, :-1], share @ slots[:, :-1]], axis=1)
        return module.mask_mlp(slots), slots @ module.class_embedding
    return call(*args, **kwargs)
