"""Masked attention for NVIDIA GPUs from Hopper on, as a Pallas kernel by Mosaic GPU: the forward pass.

One warpgroup takes 64 slots of one head and walks over the pixels. Copies of the next blocks run while
it computes; products are asynchronous ones of the tensor cores, in half precision.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

SLOTS, PIXELS = 64, 128  # of a block
STAGES = 2  # blocks of pixels on their way at once
NEVER = -1e30


def forward(q, k, v, logits):
    """(attention [B, A, N, E], log of the softmax's sums float32 [B, A, N, 1]).

    logits are float [B, N, S]; every row must have one that is not negative. Raises
    NotImplementedError unless q, k and v are of one half precision and E is a multiple of 64.
    """
    b, a, n, e = q.shape
    if q.dtype not in (jnp.bfloat16, jnp.float16) or k.dtype != q.dtype or v.dtype != q.dtype:
        raise NotImplementedError(
            f"the masked attention 'pallas_gpu' got {q.dtype}, {k.dtype} and {v.dtype}: it takes "
            "bfloat16 or float16 (config.model.dtype)."
        )
    if e % 64:
        raise NotImplementedError(
            f"the masked attention 'pallas_gpu' got heads of width {e}: it takes multiples of 64."
        )
    slots, pixels = -n % SLOTS, -k.shape[2] % PIXELS
    q = jnp.pad(q, ((0, 0), (0, 0), (0, slots), (0, 0)))
    k, v = (jnp.pad(x, ((0, 0), (0, 0), (0, pixels), (0, 0))) for x in (k, v))
    logits = jnp.pad(logits.astype(jnp.float32), ((0, 0), (0, slots), (0, 0)))
    logits = jnp.pad(logits, ((0, 0), (0, 0), (0, pixels)), constant_values=-1.0)
    out, sums = _call(q, k, v, logits)
    return out[:, :, :n], sums[:, :, :n, None]


def _call(q, k, v, logits):
    b, a, n, e = q.shape
    steps = k.shape[2] // PIXELS
    stages = min(STAGES, steps)

    def half(*shape):
        layout = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
        return plgpu.SMEM(shape, q.dtype, transforms=layout)

    single = (plgpu.TilingTransform((8, 32)), plgpu.SwizzleTransform(128))
    return plgpu.kernel(
        lambda *refs: _kernel(*refs, steps=steps, stages=stages),
        out_type=[
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct((b, a, n), jnp.float32),
        ],
        grid=(b, a, n // SLOTS),
        grid_names=("image", "head", "slots"),
        scratch_types=[
            half(SLOTS, e),
            half(stages, PIXELS, e),
            half(stages, PIXELS, e),
            plgpu.SMEM((stages, SLOTS, PIXELS), jnp.float32, transforms=single),
            plgpu.SMEM((SLOTS,), jnp.float32),
            plgpu.Barrier(),
            *(plgpu.Barrier(num_barriers=stages) for _ in range(3)),
        ],
        kernel_name="masked_attention",
    )(q, k, v, logits)


def _kernel(
    q,
    k,
    v,
    logits,
    out,
    sums,
    q_here,
    k_here,
    v_here,
    logits_here,
    sums_here,
    *barriers,
    steps,
    stages,
):
    image, head = jax.lax.axis_index("image"), jax.lax.axis_index("head")
    rows = pl.ds(jax.lax.axis_index("slots") * SLOTS, SLOTS)
    q_came, k_came, v_came, logits_came = barriers
    width = q_here.shape[-1]
    rows_of = plgpu.Layout.WGMMA.reduce(1)

    def fetch(step, slot):
        columns = pl.ds(step * PIXELS, PIXELS)
        plgpu.copy_gmem_to_smem(k.at[image, head, columns], k_here.at[slot], k_came.at[slot])
        plgpu.copy_gmem_to_smem(
            logits.at[image, rows, columns], logits_here.at[slot], logits_came.at[slot]
        )
        plgpu.copy_gmem_to_smem(v.at[image, head, columns], v_here.at[slot], v_came.at[slot])

    plgpu.copy_gmem_to_smem(q.at[image, head, rows], q_here, q_came)
    for stage in range(stages):
        fetch(stage, stage)
    plgpu.barrier_wait(q_came)

    def turn(step, carry):
        mixed, highest, total = carry
        slot = jax.lax.rem(step, jnp.int32(stages))

        def products(scores):
            plgpu.wgmma(scores, q_here, plgpu.transpose_ref(k_here.at[slot], (1, 0)))
            return scores[...]

        plgpu.barrier_wait(k_came.at[slot])
        scores = pl.run_scoped(products, plgpu.ACC((SLOTS, PIXELS), jnp.float32))
        plgpu.barrier_wait(logits_came.at[slot])
        keep = plgpu.load(logits_here.at[slot], (), layout=plgpu.Layout.WGMMA) >= 0
        scores = jnp.where(keep, scores * (width**-0.5), NEVER)
        now = jnp.maximum(highest, scores.max(axis=1))
        share = jnp.exp(scores - jax.lax.broadcast_in_dim(now, scores.shape, [0]))
        share = jnp.where(keep, share, 0.0)  # also where a row has seen nothing yet
        fade = jnp.exp(highest - now)
        mixed = mixed * jax.lax.broadcast_in_dim(fade, mixed.shape, [0])
        total = total * fade + share.sum(axis=1)
        plgpu.barrier_wait(v_came.at[slot])

        def mix(mixed):
            plgpu.wgmma(mixed, share.astype(q.dtype), v_here.at[slot])

        mixed = pl.run_state(mix)(plgpu.ACC.init(mixed))
        plgpu.commit_smem()  # all reads of this slot are done before a copy overwrites it

        @pl.when(step + stages < steps)
        def _():
            fetch(step + stages, slot)

        return mixed, now, total

    start = (
        plgpu.layout_cast(jnp.zeros((SLOTS, width), jnp.float32), plgpu.Layout.WGMMA),
        plgpu.layout_cast(jnp.full((SLOTS,), NEVER, jnp.float32), rows_of),
        plgpu.layout_cast(jnp.zeros((SLOTS,), jnp.float32), rows_of),
    )
    mixed, highest, total = jax.lax.fori_loop(0, steps, turn, start)
    mixed = mixed / jax.lax.broadcast_in_dim(total, mixed.shape, [0])
    q_here[...] = mixed.astype(q.dtype)
    sums_here[...] = highest + jnp.log(total)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(q_here, out.at[image, head, rows])
    plgpu.copy_smem_to_gmem(sums_here, sums.at[image, head, rows])
    plgpu.wait_smem_to_gmem(0)
