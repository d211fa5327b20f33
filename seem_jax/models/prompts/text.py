"""Phrases -> decoder tokens."""

from __future__ import annotations

import jax.numpy as jnp

from seem_jax.types import TextTokens


def different_texts(group, phrase_valid, max_texts: int):
    """(rows int32 [B, T], valid bool [B, T], text_of int32 [B, G]) of phrases with equal texts.

    group int32 [B, G] numbers the texts of an image, phrase_valid is bool [B, G]. Rows are the phrases
    that say each text first, of at most T = min(G, max_texts) different ones, in order; text_of says
    which of these each phrase has (0 for padding).
    """
    earlier = jnp.tril(jnp.ones((group.shape[1],) * 2, bool), -1)[None]
    same = (group[:, :, None] == group[:, None, :]) & phrase_valid[:, None, :]  # [B, G, G]
    first = phrase_valid & ~(same & earlier).any(-1)
    number = jnp.cumsum(first, axis=1, dtype=jnp.int32)  # of texts up to here, [B, G]
    row = jnp.arange(min(group.shape[1], max_texts), dtype=jnp.int32)
    begins = first[:, None] & (number[:, None] == row[None, :, None] + 1)  # [B, T, G]
    rows = jnp.argmax(begins, axis=2).astype(jnp.int32)
    valid = begins.any(2)
    said = jnp.take_along_axis(same, rows[:, None, :], axis=2) & valid[:, None, :]  # [B, G, T]
    return rows, valid, jnp.argmax(said, axis=2).astype(jnp.int32)


def text_tokens(tokens, token_valid, phrase_valid, prompt) -> TextTokens:
    """The token embeddings of all texts of an image as one row of decoder tokens, T = G J.

    tokens [B, G, J, V], token_valid bool [B, G, J], phrase_valid bool [B, G], prompt int32 [B, G]
    (the visual prompt given with the phrase, or -1).
    """
    valid = token_valid & phrase_valid[:, :, None]
    b, g, j, v = tokens.shape
    prompt = jnp.broadcast_to(prompt[:, :, None], (b, g, j))
    return TextTokens(
        tokens=tokens.reshape(b, g * j, v),
        valid=valid.reshape(b, g * j),
        prompt=prompt.reshape(b, g * j).astype(jnp.int32),
    )
