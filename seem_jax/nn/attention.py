"""Multi-head attention with projections, split so that keys and values can be kept and reused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from seem_jax.kernels.masked_attention import masked_attention
from seem_jax.nn.blocks import per_channel


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


class Projection(nn.Module):
    """x @ kernel + bias, [..., width] to [..., width]; `linear` leaves out the bias."""

    width: int
    axes: tuple[str, str]
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        init, zeros = nn.initializers.xavier_uniform(), nn.initializers.zeros_init()
        shape = (self.width, self.width)
        self.kernel = self.param("kernel", nn.with_logical_partitioning(init, self.axes), shape)
        bias = nn.with_logical_partitioning(zeros, self.axes[1:])
        self.bias = self.param("bias", bias, (self.width,))

    def __call__(self, x):
        x = self.linear(x)
        return x + per_channel(self.bias, x)

    def linear(self, x):
        return x.astype(self.dtype) @ self.kernel.astype(self.dtype)


class Attention(nn.Module):
    """Queries, keys, values and output each have a [D, D] projection (torch: in_proj, out_proj)."""

    width: int
    num_heads: int
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        self.query = Projection(self.width, ("embed", "heads"), self.dtype)
        self.key = Projection(self.width, ("embed", "heads"), self.dtype)
        self.value = Projection(self.width, ("embed", "heads"), self.dtype)
        self.out = Projection(self.width, ("heads", "embed"), self.dtype)

    def __call__(self, queries, keys, values, reads=None):
        """queries [B, N, D]; keys, values [B, S, D]; reads bool [B or 1, N, S]. Gives [B, N, D]."""
        k, v = self.keys_values(keys, values)
        q = split_heads(self.query(queries), self.num_heads)
        return self.out(merge_heads(attend(q, k, v, reads)))

    def keys_values(self, keys, values, mark=None):
        """The projected keys and values [B, A, S, E]: all of an image that a layer needs to know.

        mark [D] is added to all keys and values, after the projections: they are linear, and where
        the image itself takes no gradient, that of the mark then needs no product with every pixel.
        """
        k, v = self.key(keys), self.value(values)
        if mark is not None:
            k = k + per_channel(self.key.linear(mark), k)
            v = v + per_channel(self.value.linear(mark), v)
        return split_heads(k, self.num_heads), split_heads(v, self.num_heads)

    def look(self, queries, k, v, mask_logits, implementation=None):
        """Attention over the projected pixels whose mask_logits [B, N, S] are not negative. [B, N, D].

        A slot that sees nothing looks everywhere.
        """
        q = split_heads(self.query(queries), self.num_heads)
        seen = masked_attention(q, k, v, mask_logits, implementation=implementation)
        return self.out(merge_heads(seen))
