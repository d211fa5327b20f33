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
    return _attend(q, k, v, reads)


@jax.custom_vjp
def _attend(q, k, v, reads):
    return _attend_forward(q, k, v, reads)[0]


def _attend_forward(q, k, v, reads):
    scores = jnp.einsum("bane,base->bans", q, k, preferred_element_type=jnp.float32)
    scores = scores * (q.shape[-1] ** -0.5)
    if reads is None:
        weights = jax.nn.softmax(scores, axis=-1)
    else:
        seen = reads[:, None]  # [B or 1, 1, N, S]
        scores = jnp.where(seen, scores, -1e30)
        weights = jnp.where(seen, jax.nn.softmax(scores, axis=-1), 0.0)
    out = jnp.einsum("bans,base->bane", weights.astype(v.dtype), v)
    return out, (q, k, v, reads, weights, out)


def _attend_backward(kept, gradient):
    """The softmax's gradient needs, for each row, the sum of its weights times their gradients. That is the
    row of the output times its gradient: a sum over E numbers instead of one over S."""
    q, k, v, reads, weights, out = kept

    def product(letters, x, y):
        return jnp.einsum(letters, x, y, preferred_element_type=jnp.float32)

    common = (gradient.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1, keepdims=True)
    for_v = product("bans,bane->base", weights.astype(v.dtype), gradient)
    change = weights * (product("bane,base->bans", gradient, v) - common) * (q.shape[-1] ** -0.5)
    change = change.astype(q.dtype)
    for_q = product("bans,base->bane", change, k).astype(q.dtype)
    for_k = product("bans,bane->base", change, q).astype(k.dtype)
    return for_q, for_k, for_v.astype(v.dtype), None


_attend.defvjp(_attend_forward, _attend_backward)


def attend_kept(q, k, v, reads, span: slice, keys, values, valid):
    """`attend` with reads, in which the rows of `span` also read kept keys and values of their own.

    span holds P groups of m rows; group p reads keys and values [B, A, P, n, E] of its p where
    valid, bool [B, P, n]. Returns [B, A, N, E].
    """
    scale = q.shape[-1] ** -0.5
    scores = jnp.einsum("bane,base->bans", q, k, preferred_element_type=jnp.float32) * scale
    scores = jnp.where(reads[:, None], scores, -1e30)
    b, a, p, n, e = keys.shape
    grouped = q[:, :, span].reshape(b, a, p, -1, e)
    own = (
        jnp.einsum("bapme,bapne->bapmn", grouped, keys, preferred_element_type=jnp.float32) * scale
    )
    kept = valid[:, None, :, None]  # [B, 1, P, 1, n]
    own = jnp.where(kept, own, -1e30)
    m = own.shape[3]

    def joined(rows, groups, join):
        """rows [B, A, N, ...], joined in the span with groups [B, A, P, m, ...]."""
        groups = groups.reshape(b, a, p * m, *groups.shape[4:])
        return rows.at[:, :, span].set(join(rows[:, :, span], groups))

    top = joined(scores.max(-1), own.max(-1), jnp.maximum)
    scores = jnp.where(reads[:, None], jnp.exp(scores - top[..., None]), 0.0)
    own = jnp.where(kept, jnp.exp(own - top[:, :, span].reshape(b, a, p, m, 1)), 0.0)
    total = joined(scores.sum(-1), own.sum(-1), jnp.add)
    total = jnp.where(total > 0, total, 1.0)
    own = own / total[:, :, span].reshape(b, a, p, m, 1)
    out = jnp.einsum("bans,base->bane", (scores / total[..., None]).astype(v.dtype), v)
    read = jnp.einsum("bapmn,bapne->bapme", own.astype(values.dtype), values)
    return joined(out, read, jnp.add)


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

    def with_kept(self, queries, keys, values, reads, span: slice, kept):
        """As the call, where the rows of `span` also read kept = (keys, values, valid); see
        `attend_kept`."""
        k, v = self.keys_values(keys, values)
        q = split_heads(self.query(queries), self.num_heads)
        return self.out(merge_heads(attend_kept(q, k, v, reads, span, *kept)))

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
