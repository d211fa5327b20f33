"""The text encoder: a transformer over token ids (CLIP's, Radford et al. 2021).

Numbers as the official modeling/language/LangEncoder/transformer.py.
"""

from __future__ import annotations

import functools

import jax.numpy as jnp
from flax import linen as nn

from seem_jax.config import TextConfig
from seem_jax.nn.attention import Attention
from seem_jax.nn.blocks import MLP, LayerNorm, quick_gelu, truncated_normal


class TextEncoder(nn.Module):
    """The last hidden states of sentences, before the projection to the text space."""

    config: TextConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, token_ids, token_valid):
        """token_ids int32 [N, J], token_valid bool [N, J]. Gives [N, J, width].

        A causal encoder reads to the left only, so what stands at valid tokens depends neither
        on padding nor on J, and token_valid is not needed. Otherwise nobody reads padding.
        Raises ValueError for sentences longer than the context; an id outside of the vocabulary
        gives NaN.
        """
        config = self.config
        length = token_ids.shape[1]
        if length > config.context_length:
            raise ValueError(
                f"sentences of {length} tokens; expected at most "
                f"text.context_length = {config.context_length}: cut them when tokenising."
            )
        init = nn.initializers.normal(config.token_deviation)
        init = nn.with_logical_partitioning(init, ("vocab", "embed"))
        table = self.param("token_embedding", init, (config.vocab_size, config.width))
        init = nn.with_logical_partitioning(truncated_normal, (None, "embed"))
        places = self.param("position_embedding", init, (config.context_length, config.width))
        x = jnp.take(table, token_ids, axis=0) + places[None, :length]  # [N, J, W]
        x = x.astype(self.dtype)

        reads = token_valid[:, None, :]  # [N, 1, J]
        if config.causal:
            reads = jnp.tril(jnp.ones((1, length, length), bool))
        for layer in range(config.num_layers):
            x = TextLayer(config, self.dtype, name=f"layer_{layer}")(x, reads)
        return LayerNorm(1e-12, self.dtype, name="norm")(x)


class TextLayer(nn.Module):
    """Tokens read each other, then pass a feed-forward; norms before, as in CLIP."""

    config: TextConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, reads):
        """x [N, J, W]; reads bool [N or 1, J or 1, J]."""
        config = self.config
        norm = functools.partial(LayerNorm, 1e-12, self.dtype)
        attention = Attention(config.width, config.num_heads, self.dtype, name="attention")
        widths = (4 * config.width, config.width)
        feed_forward = MLP(widths, quick_gelu, dtype=self.dtype, name="feed_forward")
        y = norm(name="attention_norm")(x)
        x = x + attention(y, y, y, reads)
        return x + feed_forward(norm(name="feed_forward_norm")(x))


def pool(tokens, token_valid, pooling: str):
    """One vector [N, V] per sentence, of its tokens [N, J, V]; token_valid is bool [N, J].

    "end" takes the last valid token, which is the end token (officially: the largest id). "mean"
    averages the words: the valid tokens but the first and the last one, or all valid tokens where
    that leaves none. A sentence without valid tokens gives its first token, or 0 for "mean".
    """
    place = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]  # [1, J]
    last = jnp.where(token_valid, place, 0).max(1, keepdims=True)  # [N, 1]
    if pooling == "end":
        return jnp.take_along_axis(tokens, last[:, :, None], axis=1)[:, 0]
    if pooling != "mean":
        raise ValueError(f'unknown pooling {pooling!r}; choose "end" or "mean".')
    words = token_valid & (place > 0) & (place < last)
    words = jnp.where(words.any(1, keepdims=True), words, token_valid).astype(jnp.float32)
    share = words / jnp.maximum(words.sum(1, keepdims=True), 1)  # [N, J]
    return jnp.einsum("nj,njv->nv", share.astype(tokens.dtype), tokens)
