"""Multi-scale deformable attention (Zhu et al. 2021, arXiv 2010.04159): reads at a few points.

Each query reads every level's map bilinearly at points of its own choice and adds up what it
found, weighted. One door, two ways to compute it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from seem_jax.kernels.point_sample import corners, take
from seem_jax.types import Array

CHUNK = 512  # queries whose dense weights are held at once


def deformable_attention(
    values: tuple[Array, ...],
    points: Array,
    weights: Array,
    *,
    implementation: str | None = None,
) -> Array:
    """[B, N, A, E] in the dtype of the values; the sum runs in float32.

    values holds a map [B, h, w, A, E] per level; points [B, N, A, L, K, 2] are (x, y) in [0, 1] of
    the map (pixel centres at half pixels, zero outside); weights are [B, N, A, L, K]. "gather"
    reads the corners of each point and defines the result; "dense" multiplies the maps by the
    matrix of all reads, a chunk of queries at a time. None takes "dense" on TPU, where gathers run
    one row after the other, and "gather" elsewhere. Raises ValueError for shapes that do not fit.
    """
    b, n, a, levels, k, two = points.shape
    if two != 2 or weights.shape != (b, n, a, levels, k) or len(values) != levels:
        raise ValueError(
            f"points {points.shape}, weights {weights.shape} and {len(values)} maps; expected "
            "[B, N, A, L, K, 2], [B, N, A, L, K] and L maps."
        )
    name = implementation or ("dense" if jax.default_backend() == "tpu" else "gather")
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"unknown implementation {name!r}; choose from {sorted(IMPLEMENTATIONS)}.")
    compute = IMPLEMENTATIONS[name]
    total = jnp.zeros((b, a, n, values[0].shape[-1]), jnp.float32)
    for level, value in enumerate(values):
        height, width = value.shape[1:3]
        flat = value.reshape(b, height * width, a, -1).transpose(0, 2, 1, 3)  # [B, A, S, E]
        index, share = corners(points[:, :, :, level], height, width)  # [B, N, A, K, 4]
        share = share * weights[:, :, :, level, :, None].astype(jnp.float32)
        index, share = (x.transpose(0, 2, 1, 3, 4).reshape(b, a, n, 4 * k) for x in (index, share))
        total += compute(flat, index, share)
    return total.transpose(0, 2, 1, 3).astype(values[0].dtype)


def _gather(flat, index, share):
    """[B, A, N, E] float32: sum over the reads R of share [B, A, N, R] times flat[index]."""
    b, a, s, e = flat.shape
    flat, index, share = (x.reshape(b * a, *x.shape[2:]) for x in (flat, index, share))
    total = jnp.zeros((*index.shape[:2], e), jnp.float32)
    # One read at a time: several at once take as many times the memory.
    for read in range(index.shape[-1]):
        total += share[..., read, None] * take(flat, index[..., read]).astype(jnp.float32)
    return total.reshape(b, a, -1, e)


def _dense(flat, index, share):
    """`_gather` as one matrix product per chunk of queries."""
    b, a, s, e = flat.shape
    n = index.shape[2]
    chunks = -(-n // CHUNK)

    def split(x):
        x = jnp.pad(x, ((0, 0), (0, 0), (0, chunks * CHUNK - n), (0, 0)))
        return jnp.moveaxis(x.reshape(b, a, chunks, CHUNK, -1), 2, 0)

    def part(chunk):
        index, share = chunk  # [B, A, CHUNK, R]
        place = jnp.arange(s, dtype=jnp.int32)
        matrix = jnp.zeros((b, a, CHUNK, s), jnp.float32)
        for read in range(index.shape[-1]):
            here = index[..., read, None] == place[None, None, None]
            matrix += jnp.where(here, share[..., read, None], 0.0)
        return jnp.einsum(
            "bans,base->bane", matrix.astype(flat.dtype), flat, preferred_element_type=jnp.float32
        )

    out = jax.lax.map(part, (split(index), split(share)))  # [chunks, B, A, CHUNK, E]
    return jnp.moveaxis(out, 0, 2).reshape(b, a, chunks * CHUNK, e)[:, :, :n]


IMPLEMENTATIONS = {"gather": _gather, "dense": _dense}
