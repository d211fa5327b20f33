"""One layer of the SEEM decoder: slots look at the image, read each other and pass a feed-forward."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from seem_jax.config import DecoderConfig
from seem_jax.nn.attention import Attention
from seem_jax.nn.blocks import MLP, LayerNorm
from seem_jax.types import Array


@struct.dataclass
class LayerInputs:
    """What one layer reads that other layers do not."""

    keys: Array  # of the image, [B, A, S, E]
    values: Array  # [B, A, S, E]
    memory_owner: Array | None  # int32 [B, num_memory], the prompt of each memory slot
    kept_keys: Array | None  # of kept tokens, [B, A, P, n, E]
    kept_values: Array | None  # [B, A, P, n, E]


class DecoderLayer(nn.Module):
    """Slots look at pixels, read each other, then pass a feed-forward; norms after the residuals."""

    config: DecoderConfig
    attention: str
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        width, heads = self.config.width, self.config.num_heads
        self.cross_attention = Attention(width, heads, self.dtype)
        self.self_attention = Attention(width, heads, self.dtype)
        self.feed_forward = MLP((self.config.mlp_width, width), dtype=self.dtype)
        self.cross_norm = LayerNorm(dtype=self.dtype)
        self.self_norm = LayerNorm(dtype=self.dtype)
        self.feed_forward_norm = LayerNorm(dtype=self.dtype)

    def image_keys_values(self, pixels, positions, mark):
        """What this layer needs of an image, [B, A, S, E] twice; the same in every round.

        mark [D] is the embedding of the level, which the pixels [B, S, D] do not hold yet.
        """
        return self.cross_attention.keys_values(pixels + positions, pixels, mark)

    def look(self, slots, positions, keys, values, mask_logits):
        """Slots [B, N, D] after looking at the pixels of their last mask (logits [B, N, S])."""
        update = self.cross_attention.look(
            slots + positions, keys, values, mask_logits, self.attention or None
        )
        return self.cross_norm(slots + update)

    def read(self, slots, positions, columns, column_positions, reads):
        """Slots [B, N, D] after reading columns [B, C, D] and the feed-forward."""
        update = self.self_attention(slots + positions, columns + column_positions, columns, reads)
        return self._pass_on(slots, update)

    def read_kept(self, slots, positions, reads, span, kept):
        """`read`, where the columns are the slots and the rows of `span` also read kept tokens."""
        given = slots + positions
        return self._pass_on(
            slots, self.self_attention.with_kept(given, given, slots, reads, span, kept)
        )

    def token_keys_values(self, tokens):
        """The keys and values [B, A, K, E] of drawn tokens [B, K, D], which are their own positions."""
        return self.self_attention.keys_values(tokens + tokens, tokens)

    def _pass_on(self, slots, update):
        slots = self.self_norm(slots + update)
        return self.feed_forward_norm(slots + self.feed_forward(slots))
