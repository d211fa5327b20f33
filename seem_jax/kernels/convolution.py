"""3x3 convolutions of stride 1, the bulk of the pixel decoder's work. One door, several ways."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def convolve(x, kernel, *, implementation: str | None = None):
    """3x3 convolution of stride 1 with zero padding ("same"); [B, H, W, C] -> [B, H, W, D].

    x is float [B, H, W, C]; kernel is float [3, 3, C, D] of the same dtype. "direct" is the
    convolution of XLA and defines the result; "shifted" adds up nine matrix products; "winograd"
    (Lavin and Gray 2016, arXiv 1509.09308, F(2x2, 3x3)) needs 4 products a pixel instead of 9, and
    even H and W. None takes "direct": suite `kernels` of the benchmark has not shown another one to
    be faster yet. Raises ValueError for an unknown implementation and for shapes that do not fit.
    """
    if x.ndim != 4 or kernel.shape[:3] != (3, 3, x.shape[-1]):
        raise ValueError(
            f"convolution of {x.shape} with a kernel {kernel.shape}: expected [B, H, W, C] and "
            "[3, 3, C, D]."
        )
    name = implementation or "direct"
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"unknown implementation {name!r}; choose from {sorted(IMPLEMENTATIONS)}.")
    return IMPLEMENTATIONS[name](x, kernel)


def _direct(x, kernel):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _shifted(x, kernel):
    h, w = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    total = sum(
        jnp.einsum(
            "bhwc,cd->bhwd",
            padded[:, i : i + h, j : j + w],
            kernel[i, j],
            preferred_element_type=jnp.float32,
        )
        for i in range(3)
        for j in range(3)
    )
    return total.astype(x.dtype)


# Lavin and Gray, section 4.1: out = A^T [(G k G^T) * (B^T x B)] A for every tile of 2x2 pixels.
FROM_INPUT = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))
FROM_KERNEL = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))
TO_OUTPUT = ((1, 1, 1, 0), (0, 1, -1, -1))


def _winograd(x, kernel):
    b, h, w, _ = x.shape
    if h % 2 or w % 2:
        raise ValueError(f"'winograd' got a map of {h} x {w} pixels: it takes even numbers.")
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    # The four rows (columns) of a tile lie two apart in the image, from offsets 0 to 3 on.
    rows = _mix(FROM_INPUT, [padded[:, i : i + h : 2] for i in range(4)])
    tiles = [
        _mix(FROM_INPUT, [row[:, :, j : j + w : 2] for j in range(4)]) for row in rows
    ]  # 4 x 4 of [B, H/2, W/2, C]
    factors = jnp.asarray(np.array(FROM_KERNEL, np.float32), kernel.dtype)
    weights = jnp.einsum("ij,kl,jlcd->ikcd", factors, factors, kernel)  # [4, 4, C, D]
    products = [
        [jnp.einsum("bhwc,cd->bhwd", tiles[i][j], weights[i, j]) for j in range(4)]
        for i in range(4)
    ]
    columns = [_mix(TO_OUTPUT, row) for row in products]  # 4 x 2
    out = [_mix(TO_OUTPUT, [column[j] for column in columns]) for j in range(2)]  # out[j][i]
    stacked = jnp.stack([jnp.stack([out[j][i] for j in range(2)], 3) for i in range(2)], 2)
    return stacked.reshape(b, h, w, -1)  # from [B, H/2, 2, W/2, 2, D]


def _mix(matrix, parts):
    """The sums of the parts that the rows of a small matrix ask for; its zeros cost nothing."""
    mixed = []
    for row in matrix:
        total = None
        for factor, part in zip(row, parts, strict=True):
            if factor == 0:
                continue
            if total is None:
                total = part if factor > 0 else -part
            else:
                total = total + part if factor > 0 else total - part
        mixed.append(total)
    return mixed


IMPLEMENTATIONS = {"direct": _direct, "shifted": _shifted, "winograd": _winograd}
