"""Masks as bits: a word holds the same pixel of up to 8, 16 or 32 masks, so pixel work is that much less.

Sums and unions over an image are written as halves of it put together: XLA:CPU makes vector operations of
these, but goes through a reduction of small integers one by one.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

WORDS = (jnp.uint8, jnp.uint16, jnp.uint32)
MOST_HALVES = 7  # 128 ones fit into a byte


def pack(masks: jax.Array) -> jax.Array:
    """Words [..., G, H, W] of bool masks [..., P, H, W]: bit p of the first holds mask p, and so on."""
    number = masks.shape[-3]
    dtype = next((d for d in WORDS if number <= jnp.iinfo(d).bits), WORDS[-1])
    bits = jnp.iinfo(dtype).bits
    groups = []
    for start in range(0, number, bits):
        word = masks[..., start, :, :].astype(dtype)
        for place in range(1, min(bits, number - start)):
            word = word | (masks[..., start + place, :, :].astype(dtype) << place)
        groups.append(word)
    return jnp.stack(groups, -3)


def unpack(words: jax.Array, number: int) -> jax.Array:
    """0 or 1 [..., P, H, W], the masks that `pack` took, in the type of the words."""
    bits, one = jnp.iinfo(words.dtype).bits, words.dtype.type(1)
    masks = [(words[..., p // bits, :, :] >> (p % bits)) & one for p in range(number)]
    return jnp.stack(masks, -3)


def choose(flags: jax.Array, yes: jax.Array, no: jax.Array) -> jax.Array:
    """Words of yes in the masks where flags, bool [..., P]; those of no in the others."""
    chosen = pack(flags[..., None, None])  # [..., G, 1, 1]
    return (yes & chosen) | (no & ~chosen)


def count(masks: jax.Array) -> jax.Array:
    """int32 [...], the pixels of bool masks, or of 0 and 1, [..., H, W]."""
    return _halved(masks.astype(jnp.uint8), jnp.add).sum((-2, -1), dtype=jnp.int32)


def some(words: jax.Array) -> jax.Array:
    """Words [..., G, 1, 1]: a bit is set where its mask has a pixel."""
    halved = _halved(words, jnp.bitwise_or)
    axes = (words.ndim - 2, words.ndim - 1)
    return jax.lax.reduce(halved, words.dtype.type(0), jax.lax.bitwise_or, axes)[..., None, None]


def _halved(values: jax.Array, both) -> jax.Array:
    """The rows of [..., H, W] put together while their number is even, at most 7 times."""
    for _ in range(MOST_HALVES):
        rows = values.shape[-2]
        if rows % 2:
            break
        halves = (jax.lax.slice_in_dim(values, k, k + rows // 2, axis=-2) for k in (0, rows // 2))
        values = both(*halves)
    return values
