"""Phrases -> decoder tokens."""

from __future__ import annotations

import jax.numpy as jnp

from seem_jax.types import TextTokens


def text_tokens(
    tokens, token_valid, phrase_valid, prompt, group=None, max_texts: int | None = None
) -> TextTokens:
    """The token embeddings of all phrases of an image as one row of decoder tokens.

    tokens [B, G, J, V], token_valid bool [B, G, J], phrase_valid bool [B, G], prompt int32 [B, G]
    (the visual prompt given with the phrase, or -1). With group int32 [B, G], phrases of equal text
    are read once, as officially (seem_model_v1.py, prepare_targets), and where there are at most
    `max_texts` different ones, the row holds no more than those: T = min(G, max_texts) J.
    """
    valid = token_valid & phrase_valid[:, :, None]
    if group is not None:
        earlier = jnp.tril(jnp.ones((group.shape[1],) * 2, bool), -1)[None]
        same = (group[:, :, None] == group[:, None, :]) & phrase_valid[:, None, :] & earlier
        repeats = same.any(-1) | ~phrase_valid  # [B, G]
        valid = valid & ~repeats[:, :, None]
        if max_texts is not None and max_texts < group.shape[1]:
            rows = jnp.argsort(repeats, axis=1, stable=True)[:, :max_texts]
            tokens = jnp.take_along_axis(tokens, rows[:, :, None, None], axis=1)
            valid = jnp.take_along_axis(valid, rows[:, :, None], axis=1)
            prompt = jnp.take_along_axis(prompt, rows, axis=1)
    b, g, j, v = tokens.shape
    prompt = jnp.broadcast_to(prompt[:, :, None], (b, g, j))
    return TextTokens(
        tokens=tokens.reshape(b, g * j, v),
        valid=valid.reshape(b, g * j),
        prompt=prompt.reshape(b, g * j).astype(jnp.int32),
    )
