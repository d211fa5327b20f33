"""Depthwise convolution: every channel has its own k x k filter. One door, two ways to compute it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def depthwise(x, kernel, *, implementation: str | None = None):
    """Depthwise convolution of stride 1 with zero padding ("same"); [B, H, W, C], dtype of x.

    x is float [B, H, W, C]; kernel is float [k, k, 1, C] of the same dtype, k odd (layout of
    `jax.lax.conv_general_dilated` with HWIO and one group per channel). "grouped" is that
    convolution and defines the result; "shifted" adds up k*k shifted copies. None takes
    "shifted" on CPU and "grouped" elsewhere. Raises ValueError for an unknown implementation
    and for shapes that do not fit.
    """
    k = kernel.shape[0]
    if k % 2 == 0 or kernel.shape != (k, k, 1, x.shape[-1]):
        raise ValueError(
            f"depthwise kernel of shape {kernel.shape} for {x.shape[-1]} channels: expected "
            f"[k, k, 1, {x.shape[-1]}] with k odd."
        )
    name = implementation or ("shifted" if jax.default_backend() == "cpu" else "grouped")
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"unknown implementation {name!r}; choose from {sorted(IMPLEMENTATIONS)}.")
    return IMPLEMENTATIONS[name](x, kernel)


def _grouped(x, kernel):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def _pad(x, k):
    pad = k // 2
    return jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))


@jax.custom_vjp
def _shifted(x, kernel):
    k = kernel.shape[0]
    h, w = x.shape[1:3]
    padded = _pad(x, k).astype(jnp.float32)
    taps = kernel.astype(jnp.float32)[:, :, None]  # [k, k, 1, 1, C]
    out = sum(
        padded[:, i : i + h, j : j + w] * taps[i, j][None] for i in range(k) for j in range(k)
    )
    return out.astype(x.dtype)


def _shifted_forward(x, kernel):
    return _shifted(x, kernel), (x, kernel)


def _shifted_backward(saved, grad):
    """The derivatives. Those that JAX finds take 3 times as long to run and to compile on CPU."""
    x, kernel = saved
    k = kernel.shape[0]
    padded = _pad(x, k)

    def tap(offset):
        zero = jnp.zeros_like(offset[0])
        window = jax.lax.dynamic_slice(padded, (zero, offset[0], offset[1], zero), x.shape)
        product = window.astype(jnp.float32) * grad.astype(jnp.float32)
        return product.sum((0, 1, 2)).astype(kernel.dtype)

    offsets = np.stack(np.divmod(np.arange(k * k, dtype=np.int32), np.int32(k)), -1)  # [k*k, 2]
    grad_kernel = jax.lax.map(tap, jnp.asarray(offsets)).reshape(kernel.shape)
    return _shifted(grad, kernel[::-1, ::-1]), grad_kernel


_shifted.defvjp(_shifted_forward, _shifted_backward)

IMPLEMENTATIONS = {"grouped": _grouped, "shifted": _shifted}
