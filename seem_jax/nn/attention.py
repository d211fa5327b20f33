"""Multi-head attention with projections, split so that keys and values can be kept and reused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from seem_jax.kernels.masked_attention import masked_attention


def split_heads(x, num_heads):
    """[B, N, A*E] -> [B, A, N, E]."""
    b, n, d = x.shape
    return x.reshape(b, n, num_heads, d // num_heads).transpose(0, 2, 1, 3)


def merge_heads(x):
    """[B, A, N, E] -> [B, N, A*E]."""
    b, a, n, e = x.shape
    return x.transpose(0, 2, 1, 3).reshape(b, n, a * e)


def attend(q, k, v, reads=None):
    """Softmax attention, float32 softmax; a row that reads nothing gives 0 (as the official code).

    q is [B, A, N, E], k and v are [B, A, S, E]; reads is bool [B or 1, N, S] (all heads alike) or
    None. Returns [B, A, N, E].
    """
    scores = jnp.einsum("bane,base->bans", q, k, preferred_element_type=jnp.float32)
    scores = scores * (q.shape[-1] ** -0.5)
    if reads is None:
        weights = jax.nn.softmax(scores, axis=-1)
    else:
        reads = reads[:, None]  # [B or 1, 1, N, S]
        scores = jnp.where(reads, scores, -1e30)
        weights = jnp.where(reads, jax.nn.softmax(scores, axis=-1), 0.0)
    return jnp.einsum("bans,base->bane", weights.astype(v.dtype), v)


class Attention(nn.Module):
    """Queries, keys, values and output each have a [D, D] projection (torch: in_proj, out_proj)."""

    width: int
    num_heads: int
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        def dense(axes):
            return nn.Dense(
                self.width,
                dtype=self.dtype,
                kernel_init=nn.with_logical_partitioning(nn.initializers.xavier_uniform(), axes),
                bias_init=nn.with_logical_partitioning(nn.initializers.zeros_init(), axes[1:]),
            )

        self.query = dense(("embed", "heads"))
        self.key = dense(("embed", "heads"))
        self.value = dense(("embed", "heads"))
        self.out = dense(("heads", "embed"))

    def __call__(self, queries, keys, values, reads=None):
        """queries [B, N, D]; keys, values [B, S, D]; reads bool [B or 1, N, S]. Gives [B, N, D]."""
        k, v = self.keys_values(keys, values)
        q = split_heads(self.query(queries), self.num_heads)
        return self.out(merge_heads(attend(q, k, v, reads)))

    def keys_values(self, keys, values):
        """The projected keys and values [B, A, S, E]: all of an image that a layer needs to know."""
        k = split_heads(self.key(keys), self.num_heads)
        return k, split_heads(self.value(values), self.num_heads)

    def look(self, queries, k, v, sees, implementation=None):
        """Attention over projected pixels; a slot that sees nothing looks everywhere. [B, N, D]."""
        q = split_heads(self.query(queries), self.num_heads)
        return self.out(merge_heads(masked_attention(q, k, v, sees, implementation=implementation)))
