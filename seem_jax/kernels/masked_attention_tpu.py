"""Masked attention for TPU as Pallas kernels: the forward pass, and two for the gradient.

The scores of a block of slots and a block of pixels live in vector memory only (Dao et al. 2022, arXiv
2205.14135). The mask is compared inside, from logits shared by the heads.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

BLOCK_SLOTS, BLOCK_PIXELS = 128, 512
NEVER = -1e30


def attention(q, k, v, logits, empty, *, interpret=False):
    """float [B, A, N, E]; arrays as `masked_attention`, empty bool [B, N, 1] marks rows to open.

    `interpret` runs the kernels as plain JAX, on any device.
    """
    b, a, n, e = q.shape
    slots, pixels = -n % min(BLOCK_SLOTS, _up(n, 16)), -k.shape[2] % BLOCK_PIXELS
    pad = functools.partial(_pad, slots=slots, pixels=pixels)
    # Rows of padding see everything, so that their sums stay finite; nobody reads them.
    logits = pad(logits.astype(jnp.float32), (None, "slots", "pixels"))
    empty = pad(empty.astype(jnp.int32), (None, "slots", None))
    q = pad(q, (None, None, "slots", None))
    k, v = (pad(x, (None, None, "pixels", None)) for x in (k, v))
    sizes = (min(BLOCK_SLOTS, n + slots), BLOCK_PIXELS, k.shape[2] - pixels)
    return _attention(sizes, interpret, q, k, v, logits, empty)[:, :, :n]


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _pad(x, axes, slots, pixels):
    missing = {"slots": slots, "pixels": pixels, None: 0}
    return jnp.pad(x, [(0, missing[axis]) for axis in axes])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(sizes, interpret, q, k, v, logits, empty):
    return _forward(sizes, interpret, q, k, v, logits, empty)[0]


def _specs(sizes, pixels_first: bool):
    """BlockSpecs by name; grid (B, A, slots, pixels), or (B, A, pixels, slots)."""
    rows, columns, _ = sizes

    def spec(block, place):
        def index(b, a, i, j):
            s, p = (j, i) if pixels_first else (i, j)
            return place(b, a, s, p)

        return pl.BlockSpec(block, index)

    one = pl.Squeezed()

    def of_slots(width):
        return spec((one, one, rows, width), lambda b, a, s, p: (b, a, s, 0))

    def of_pixels(width):
        return spec((one, one, columns, width), lambda b, a, s, p: (b, a, p, 0))

    return {
        "slots": of_slots,
        "pixels": of_pixels,
        "logits": spec((one, rows, columns), lambda b, a, s, p: (b, s, p)),
        "empty": spec((one, rows, 1), lambda b, a, s, p: (b, s, 0)),
    }


def _forward(sizes, interpret, q, k, v, logits, empty):
    b, a, n, e = q.shape
    rows, columns, num_pixels = sizes
    steps = k.shape[2] // columns
    spec = _specs(sizes, pixels_first=False)
    kernel = functools.partial(
        _forward_kernel, scale=e**-0.5, columns=columns, num_pixels=num_pixels, steps=steps
    )
    return pl.pallas_call(
        kernel,
        grid=(b, a, n // rows, steps),
        in_specs=[
            spec["slots"](e),
            spec["pixels"](e),
            spec["pixels"](e),
            spec["logits"],
            spec["empty"],
        ],
        out_specs=[spec["slots"](e), spec["slots"](1)],
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, v.dtype),
            jax.ShapeDtypeStruct((b, a, n, 1), jnp.float32),
        ],
        scratch_shapes=[pltpu.VMEM((rows, width), jnp.float32) for width in (1, 1, e)],
        compiler_params=_params(),
        interpret=interpret,
        name="masked_attention",
    )(q, k, v, logits, empty)


def _params():
    order = ("parallel", "parallel", "parallel", "arbitrary")
    return pltpu.CompilerParams(dimension_semantics=order)


def _forward_kernel(
    q, k, v, logits, empty, out, sums, highest, total, mixed, *, scale, columns, num_pixels, steps
):
    step = pl.program_id(3)

    @pl.when(step == 0)
    def _():
        highest[...] = jnp.full_like(highest, NEVER)
        total[...] = jnp.zeros_like(total)
        mixed[...] = jnp.zeros_like(mixed)

    scores, keep = _block_scores(q, k, logits, empty, step * columns, num_pixels, scale)
    before = highest[...]
    now = jnp.maximum(before, scores.max(-1, keepdims=True))
    share = jnp.where(keep, jnp.exp(scores - now), 0.0)  # also where a row has seen nothing yet
    fade = jnp.exp(before - now)
    highest[...] = now
    total[...] = total[...] * fade + share.sum(-1, keepdims=True)
    mixed[...] = mixed[...] * fade + _dot(share.astype(v.dtype), v[...], (1, 0))

    @pl.when(step == steps - 1)
    def _():
        out[...] = (mixed[...] / total[...]).astype(out.dtype)
        sums[...] = highest[...] + jnp.log(total[...])


def _block_scores(q, k, logits, empty, first, num_pixels, scale):
    scores = _dot(q[...], k[...], (1, 1)) * scale
    column = first + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
    keep = ((logits[...] >= 0) | (empty[...] > 0)) & (column < num_pixels)
    return jnp.where(keep, scores, NEVER), keep


def _dot(x, y, axes):
    """float32 product of two matrices, contracted along these axes."""
    return jax.lax.dot_general(
        x, y, (((axes[0],), (axes[1],)), ((), ())), preferred_element_type=jnp.float32
    )


def _attention_forward(sizes, interpret, q, k, v, logits, empty):
    out, sums = _forward(sizes, interpret, q, k, v, logits, empty)
    return out, (q, k, v, logits, empty, out, sums)


def _attention_backward(sizes, interpret, saved, gradient):
    q, k, v, logits, empty, out, sums = saved
    common = (gradient.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1, keepdims=True)
    given = (q, k, v, logits, empty, gradient.astype(q.dtype), sums, common)
    for_q = _gradient_call(sizes, interpret, given, of_pixels=False)[0]
    for_k, for_v = _gradient_call(sizes, interpret, given, of_pixels=True)
    none = np.zeros(empty.shape, jax.dtypes.float0)
    return for_q, for_k, for_v, jnp.zeros_like(logits), none


def _gradient_call(sizes, interpret, given, of_pixels: bool):
    """Gradients of the keys and values, or of the queries: what does not move is summed up."""
    q, k = given[:2]
    b, a, n, e = q.shape
    rows, columns, num_pixels = sizes
    blocks = (n // rows, k.shape[2] // columns)
    spec = _specs(sizes, pixels_first=of_pixels)
    slots, pixels = spec["slots"], spec["pixels"]
    results, out_spec, height = (
        ((k, k), pixels(e), columns) if of_pixels else ((q,), slots(e), rows)
    )
    grid = (b, a, *(reversed(blocks) if of_pixels else blocks))
    kernel = functools.partial(
        _gradient_kernel,
        scale=e**-0.5,
        columns=columns,
        num_pixels=num_pixels,
        steps=grid[3],
        of_pixels=of_pixels,
    )
    return pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=[
            slots(e),
            pixels(e),
            pixels(e),
            spec["logits"],
            spec["empty"],
            slots(e),
            slots(1),
            slots(1),
        ],
        out_specs=[out_spec for _ in results],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in results],
        scratch_shapes=[pltpu.VMEM((height, e), jnp.float32) for _ in results],
        compiler_params=_params(),
        interpret=interpret,
        name="masked_attention_pixels_gradient" if of_pixels else "masked_attention_slots_gradient",
    )(*given)


def _gradient_kernel(
    q,
    k,
    v,
    logits,
    empty,
    gradient,
    sums,
    common,
    *rest,
    scale,
    columns,
    num_pixels,
    steps,
    of_pixels,
):
    step = pl.program_id(3)
    results, totals = rest[: len(rest) // 2], rest[len(rest) // 2 :]

    @pl.when(step == 0)
    def _():
        for total in totals:
            total[...] = jnp.zeros_like(total)

    first = pl.program_id(2 if of_pixels else 3) * columns
    scores, keep = _block_scores(q, k, logits, empty, first, num_pixels, scale)
    share = jnp.where(keep, jnp.exp(scores - sums[...]), 0.0)
    change = share * (_dot(gradient[...], v[...], (1, 1)) - common[...]) * scale
    change = change.astype(q.dtype)
    if of_pixels:
        totals[0][...] += _dot(change, q[...], (0, 0))
        totals[1][...] += _dot(share.astype(q.dtype), gradient[...], (0, 0))
    else:
        totals[0][...] += _dot(change, k[...], (1, 0))

    @pl.when(step == steps - 1)
    def _():
        for result, total in zip(results, totals, strict=True):
            result[...] = total[...].astype(result.dtype)


_attention.defvjp(_attention_forward, _attention_backward)
