"""Softmax attention over the pixels a slot sees. One door; "xla" is the definition.

The mask is taken from the logits of each slot's last mask at the resolution of the keys, so no boolean
copy of it has to be kept for every head. "chunked" and the Pallas kernels never write the matrix of
all scores: they keep its row sums for the gradient, and compute the scores again there.
"""

from __future__ import annotations

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np

NEVER = -1e30  # score of a pixel that is not seen; finite, so that differences stay numbers
CHUNK = 2048  # keys whose scores are held at once
# Up to so many bytes of scores (float32) their matrix is held whole on every device.
SMALL = 8 * 2**20
# What is taken above that, by device kind: the winner of `python -m seem_jax.benchmark
# --suite=kernels` where it has run. A table and not a trial at run time: all processes of a run must
# choose alike.
FASTEST = {"cpu": "chunked"}

_log = logging.getLogger(__name__)


def masked_attention(q, k, v, logits, *, implementation: str | None = None):
    """Attention of slots to pixels; float [B, A, N, E].

    q is float [B, A, N, E], k and v are float [B, A, S, E]. A slot sees the pixels at which its mask
    logits, float [B, N, S] and the same for all heads, are not negative; one that sees nothing
    attends everywhere (Mask2Former, Cheng et al. 2022). No gradient passes to the logits. Softmax
    and scores are float32. None takes what is fastest on this device (`choose`). Raises ValueError
    for an unknown implementation, and NotImplementedError with the reason where one that was named
    cannot take these arrays.
    """
    b, _, n, _ = q.shape
    if logits.shape != (b, n, k.shape[2]):
        raise ValueError(
            f"mask logits have shape {logits.shape}, but slots {q.shape} and pixels {k.shape} need "
            f"{(b, n, k.shape[2])}."
        )
    name = implementation or choose(q, k)
    if name not in IMPLEMENTATIONS:
        raise ValueError(
            f"unknown masked attention {name!r}; choose from {sorted(IMPLEMENTATIONS)}."
        )
    return IMPLEMENTATIONS[name](q, k, v, jax.lax.stop_gradient(logits))


def choose(q, k) -> str:
    """The implementation for these shapes on the default device; "xla" while scores are small."""
    if 4 * q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] < SMALL:
        return "xla"
    kind = jax.devices()[0].device_kind
    if kind not in FASTEST:
        _say_once(
            f"masked attention was not measured on {kind!r}: taking 'chunked'. To choose, run "
            "python -m seem_jax.benchmark --suite=kernels and set config.model.attention."
        )
    return FASTEST.get(kind, "chunked")


@functools.lru_cache(maxsize=16)
def _say_once(text: str) -> None:
    _log.warning(text)


def sees_nothing(logits):
    """bool [B, N, 1]: the slots without a pixel to see."""
    return ~(logits >= 0).any(-1, keepdims=True)


def _xla(q, k, v, logits):
    sees = (logits >= 0) | sees_nothing(logits)
    weights = jax.nn.softmax(_scores(q, k, sees), axis=-1).astype(v.dtype)
    return jnp.einsum("bans,base->bane", weights, v)


def _scores(q, k, sees):
    scores = jnp.einsum("bane,base->bans", q, k, preferred_element_type=jnp.float32)
    return jnp.where(sees[:, None], scores * (q.shape[-1] ** -0.5), NEVER)


def _chunked(q, k, v, logits):
    sees = (logits >= 0) | sees_nothing(logits)
    missing = -k.shape[2] % min(CHUNK, k.shape[2])
    if missing:
        k, v = (jnp.pad(x, ((0, 0), (0, 0), (0, missing), (0, 0))) for x in (k, v))
        sees = jnp.pad(sees, ((0, 0), (0, 0), (0, missing)))
    return _in_chunks(q, k, v, sees)


@jax.custom_vjp
def _in_chunks(q, k, v, sees):
    return chunked_forward(q, k, v, sees)[0]


def chunked_forward(q, k, v, sees):
    """(attention [B, A, N, E], log of the softmax's sums float32 [B, A, N, 1]), chunk by chunk.

    sees is bool [B, N, S]; every row sees something, and S is a whole number of chunks.
    """

    def turn(carry, start):
        highest, total, mixed = carry
        keys, values, seen = _chunk(k, v, sees, start)
        scores = _scores(q, keys, seen)
        now = jnp.maximum(highest, scores.max(-1, keepdims=True))
        share = jnp.where(seen[:, None], jnp.exp(scores - now), 0.0)
        fade = jnp.exp(highest - now)
        part = jnp.einsum(
            "bans,base->bane", share.astype(v.dtype), values, preferred_element_type=jnp.float32
        )
        total = total * fade + share.sum(-1, keepdims=True)
        return (now, total, mixed * fade + part), None

    row = jnp.zeros((*q.shape[:3], 1), jnp.float32)
    start = (row + NEVER, row, jnp.zeros(q.shape, jnp.float32))
    (highest, total, mixed), _ = jax.lax.scan(turn, start, _starts(k))
    return (mixed / total).astype(v.dtype), highest + jnp.log(total)


def chunked_backward(q, k, v, sees, out, sums, gradient):
    """Gradients of q, k and v from what `chunked_forward` gave; the scores are computed again."""
    scale = q.shape[-1] ** -0.5
    gradient = gradient.astype(jnp.float32)
    common = (gradient * out.astype(jnp.float32)).sum(-1, keepdims=True)  # [B, A, N, 1]
    low = gradient.astype(v.dtype)

    def product(letters, x, y):
        return jnp.einsum(letters, x, y, preferred_element_type=jnp.float32)

    def turn(for_q, start):
        keys, values, seen = _chunk(k, v, sees, start)
        share = jnp.where(seen[:, None], jnp.exp(_scores(q, keys, seen) - sums), 0.0)
        for_v = product("bans,bane->base", share.astype(v.dtype), low)
        change = share * (product("bane,base->bans", low, values) - common) * scale
        change = change.astype(q.dtype)
        for_k = product("bans,bane->base", change, q)
        for_q = for_q + product("bans,base->bane", change, keys)
        return for_q, (for_k.astype(k.dtype), for_v.astype(v.dtype))

    for_q, parts = jax.lax.scan(turn, jnp.zeros(q.shape, jnp.float32), _starts(k))
    for_k, for_v = (jnp.moveaxis(part, 0, 2).reshape(k.shape) for part in parts)
    return for_q.astype(q.dtype), for_k, for_v


def _starts(k):
    size = min(CHUNK, k.shape[2])
    return jnp.arange(0, k.shape[2], size, dtype=jnp.int32)


def _chunk(k, v, sees, start):
    """The keys, values and bits of the chunk that begins at `start`."""
    size = min(CHUNK, k.shape[2])
    cut = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=size)
    return cut(k, axis=2), cut(v, axis=2), cut(sees, axis=2)


def _in_chunks_forward(q, k, v, sees):
    out, sums = chunked_forward(q, k, v, sees)
    return out, (q, k, v, sees, out, sums)


def _in_chunks_backward(saved, gradient):
    return *chunked_backward(*saved, gradient), np.zeros(saved[3].shape, jax.dtypes.float0)


_in_chunks.defvjp(_in_chunks_forward, _in_chunks_backward)


def _pallas_tpu(q, k, v, logits):
    # Imported here, as below: the compilers for one device cost all others a second at the start.
    from seem_jax.kernels import masked_attention_tpu

    return masked_attention_tpu.attention(q, k, v, logits, sees_nothing(logits))


@jax.custom_vjp
def _pallas_gpu(q, k, v, logits):
    return _pallas_gpu_forward(q, k, v, logits)[0]


def _opened(logits):
    """The logits with 0 in the rows that see nothing, so that those see everything."""
    return jnp.where(sees_nothing(logits), jnp.zeros_like(logits), logits)


def _pallas_gpu_forward(q, k, v, logits):
    from seem_jax.kernels import masked_attention_gpu

    logits = _opened(logits)
    out, sums = masked_attention_gpu.forward(q, k, v, logits)
    return out, (q, k, v, logits >= 0, out, sums)


def _pallas_gpu_backward(saved, gradient):
    q, k, v, sees, out, sums = saved
    missing = -k.shape[2] % min(CHUNK, k.shape[2])
    padded = [jnp.pad(x, ((0, 0), (0, 0), (0, missing), (0, 0))) for x in (k, v)]
    bits = jnp.pad(sees, ((0, 0), (0, 0), (0, missing)))
    for_q, for_k, for_v = chunked_backward(q, *padded, bits, out, sums, gradient)
    size = k.shape[2]
    return for_q, for_k[:, :, :size], for_v[:, :, :size], jnp.zeros(sees.shape, jnp.float32)


_pallas_gpu.defvjp(_pallas_gpu_forward, _pallas_gpu_backward)


def library(q, k, v, logits, *, implementation: str = "cudnn"):
    """jax.nn.dot_product_attention; its cuDNN kernel takes half precision and, for gradients, even
    numbers of slots and pixels, so slots are padded to a multiple of 8."""
    missing = -q.shape[2] % 8
    sees = (logits >= 0) | sees_nothing(logits)
    sees = jnp.pad(sees, ((0, 0), (0, missing), (0, 0)), constant_values=True)
    sees = jnp.broadcast_to(sees[:, None], (*q.shape[:2], *sees.shape[1:]))
    padded = jnp.pad(q, ((0, 0), (0, 0), (0, missing), (0, 0)))
    out = jax.nn.dot_product_attention(
        *(x.swapaxes(1, 2) for x in (padded, k, v)), mask=sees, implementation=implementation
    )
    return out.swapaxes(1, 2)[:, :, : q.shape[2]]


def _tokamax(q, k, v, logits):
    """tokamax, where it is installed (Python 3.12 or newer): pip install tokamax."""
    try:
        import tokamax
    except ImportError as error:
        raise NotImplementedError(
            "the masked attention 'tokamax' needs the package tokamax: pip install tokamax "
            "(Python 3.12 or newer)."
        ) from error
    sees = ((logits >= 0) | sees_nothing(logits))[:, None]
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    return tokamax.dot_product_attention(q, k, v, mask=sees).swapaxes(1, 2)


IMPLEMENTATIONS = {
    "xla": _xla,
    "chunked": _chunked,
    "pallas_tpu": _pallas_tpu,
    "pallas_gpu": _pallas_gpu,
    "cudnn": library,
    "tokamax": _tokamax,
}
