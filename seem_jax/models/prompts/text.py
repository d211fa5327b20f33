"""Phrases -> decoder tokens."""

from __future__ import annotations

import jax.numpy as jnp

from seem_jax.types import TextTokens


def text_tokens(tokens, token_valid, phrase_valid, prompt, group=None) -> TextTokens:
    """The token embeddings of all phrases of an image as one row of decoder tokens.

    tokens [B, G, J, V], token_valid bool [B, G, J], phrase_valid bool [B, G], prompt int32 [B, G]
    (the visual prompt given with the phrase, or -1). With group int32 [B, G], phrases of equal text
    are read once, as officially (seem_model_v1.py, prepare_targets).
    """
    b, g, j, v = tokens.shape
    valid = token_valid & phrase_valid[:, :, None]
    if group is not None:
        earlier = jnp.tril(jnp.ones((g, g), bool), -1)[None]
        same = (group[:, :, None] == group[:, None, :]) & phrase_valid[:, None, :] & earlier
        valid = valid & ~same.any(-1)[:, :, None]
    prompt = jnp.broadcast_to(prompt[:, :, None], (b, g, j))
    return TextTokens(
        tokens=tokens.reshape(b, g * j, v),
        valid=valid.reshape(b, g * j),
        prompt=prompt.reshape(b, g * j).astype(jnp.int32),
    )
