"""3x3 convolutions of stride 1, the bulk of the pixel decoder's work. One door, several ways."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

# Channels and pixels from which on "winograd" is taken on a CPU.
WIDE, LARGE = 128, 64 * 64


def convolve(x, kernel, *, implementation: str | None = None):
    """3x3 convolution of stride 1 with zero padding ("same"); [B, H, W, C] -> [B, H, W, D].

    x is float [B, H, W, C]; kernel is float [3, 3, C, D] of the same dtype. "direct" is the
    convolution of XLA and defines the result; "shifted" adds up nine matrix products; "winograd"
    (Lavin and Gray 2016, arXiv 1509.09308, F(4x4, 3x3)) needs 2.25 products a pixel instead of 9, and
    H and W that are multiples of 4; its gradient is that of "direct". None takes "winograd" on a CPU
    where that pays and "direct" elsewhere, chosen when the program is lowered, so that one export holds
    both. Raises ValueError for an unknown implementation and for shapes that do not fit.
    """
    if x.ndim != 4 or kernel.shape[:3] != (3, 3, x.shape[-1]):
        raise ValueError(
            f"convolution of {x.shape} with a kernel {kernel.shape}: expected [B, H, W, C] and "
            "[3, 3, C, D]."
        )
    if implementation is None and _winograd_pays(x, kernel):
        return _winograd_on_cpu(x, kernel)
    name = implementation or "direct"
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"unknown implementation {name!r}; choose from {sorted(IMPLEMENTATIONS)}.")
    return IMPLEMENTATIONS[name](x, kernel)


def _winograd_pays(x, kernel) -> bool:
    """Whether a CPU should take "winograd": in float32, where maps and kernels are large enough for its
    sums to pay; half precision is too coarse for its factors."""
    large = min(kernel.shape[2:]) >= WIDE and x.shape[1] * x.shape[2] >= LARGE
    return large and not (x.shape[1] % TILE or x.shape[2] % TILE) and x.dtype == jnp.float32


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


# Lavin and Gray, F(4x4, 3x3): out = A^T [(G k G^T) * (B^T x B)] A for every tile of 4x4 pixels, from
# the 6x6 pixels x that it reads; the matrices belong to the points 0, 1, -1, 2, -2 and infinity.
TILE = 4
FROM_INPUT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
FROM_KERNEL = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
TO_OUTPUT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))
REACH = len(FROM_INPUT)  # pixels that a tile reads in each direction
BAND = 4096  # tiles whose products are held at once: those of a map of 256 x 256 pixels


def _winograd(x, kernel):
    b, h, w, _ = x.shape
    if h % TILE or w % TILE:
        raise ValueError(f"'winograd' got a map of {h} x {w} pixels: it takes multiples of {TILE}.")
    factors = jnp.asarray(np.array(FROM_KERNEL, np.float32), kernel.dtype)
    weights = jnp.einsum(
        "ij,kl,jlcd->ikcd", factors, factors, kernel, precision=jax.lax.Precision.HIGHEST
    )  # [6, 6, C, D]
    rows = _rows_of_a_band(h // TILE, b * w // TILE)  # of tiles
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))

    def band(start):
        height = TILE * rows + REACH - TILE
        part = jax.lax.dynamic_slice_in_dim(padded, start, height, axis=1)
        return _winograd_band(part, weights, rows, w // TILE)

    starts = jnp.arange(0, h, TILE * rows, dtype=jnp.int32)
    bands = jax.lax.map(band, starts)  # [n, B, 4 rows, W, D]
    return jnp.moveaxis(bands, 0, 1).reshape(b, h, w, -1)


def _winograd_band(x, weights, rows, columns):
    """The convolution of the pixels [B, 4 rows + 2, 4 columns + 2, C] that some rows of tiles read."""
    # The rows (columns) of the tiles lie four apart, from offsets 0 to 5 on.
    tall = [x[:, i : i + TILE * rows : TILE] for i in range(REACH)]
    tall = _mix(FROM_INPUT, tall)
    products = []
    for i, line in enumerate(tall):
        wide = [line[:, :, j : j + TILE * columns : TILE] for j in range(REACH)]
        tiles = _mix(FROM_INPUT, wide)  # 6 of [B, rows, columns, C]
        products.append(
            [jnp.einsum("brqc,cd->brqd", tile, weights[i, j]) for j, tile in enumerate(tiles)]
        )
    lines = [_mix(TO_OUTPUT, [line[j] for line in products]) for j in range(REACH)]  # [j][row]
    out = [_mix(TO_OUTPUT, [lines[j][i] for j in range(REACH)]) for i in range(TILE)]
    stacked = jnp.stack([jnp.stack(line, 3) for line in out], 2)
    b, d = x.shape[0], weights.shape[-1]
    return stacked.reshape(b, TILE * rows, TILE * columns, d)  # from [B, rows, 4, columns, 4, D]


def _rows_of_a_band(rows: int, tiles_per_row: int) -> int:
    """As many rows of tiles as fit into a band, of those numbers that divide `rows`."""
    fitting = [n for n in range(1, rows + 1) if rows % n == 0 and n * tiles_per_row <= BAND]
    return max(fitting, default=1)


def _mix(matrix, parts):
    """The sums of the parts that the rows of a small matrix ask for; its zeros cost nothing."""
    return [
        sum(factor * part for factor, part in zip(row, parts, strict=True) if factor)
        for row in matrix
    ]


def _with_gradient_of_direct(compute):
    """A function with the values of `compute` and the gradient of the definition."""
    function = jax.custom_vjp(compute)
    function.defvjp(
        lambda x, kernel: (compute(x, kernel), (x, kernel)),
        lambda given, gradient: jax.vjp(_direct, *given)[1](gradient),
    )
    return function


@_with_gradient_of_direct
def _winograd_on_cpu(x, kernel):
    return jax.lax.platform_dependent(x, kernel, cpu=_winograd, default=_direct)


IMPLEMENTATIONS = {
    "direct": _direct,
    "shifted": _shifted,
    "winograd": _with_gradient_of_direct(_winograd),
}
