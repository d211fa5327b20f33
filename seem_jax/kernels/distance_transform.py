"""How deep each pixel lies inside a region: the measures that choose a click.

Pixels beyond the image border count as outside. Everything is exact, batched and of static shape.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

# exp(-|offset| / 0.35) of the straight and of the diagonal neighbours (kornia 0.7.0, h = 0.35).
KORNIA_H = 0.35
STRAIGHT, DIAGONAL = (np.float32(np.exp(-(d**0.5) / KORNIA_H)) for d in (1.0, 2.0))


def chebyshev_distance(region: jax.Array) -> jax.Array:
    """Steps of a chess king to the nearest pixel outside; int32 [..., H, W], 0 outside.

    region is bool [..., H, W]. With M = min(D, s) the minimum of M over the (2s + 1)-square is
    min(max(D - s, 0), s), so min(D, 2s) = M + that minimum: the reach doubles each round, in
    shifts only (1.6 to 3 times faster on a CPU than the two-pass scan over rows, 1024 to 96 pixels).
    """
    deepest = (min(region.shape[-2:]) + 1) // 2
    distance, reach = region.astype(jnp.int16), 1
    while reach < deepest:
        distance = distance + _square_min(distance, reach)
        reach *= 2
    return distance.astype(jnp.int32)


def _square_min(values: jax.Array, radius: int) -> jax.Array:
    """Minimum over the square of side 2 radius + 1 about each pixel; zero beyond the border.

    radius is a power of two: runs of doubling length, then two overlapping runs.
    """
    for axis in (values.ndim - 2, values.ndim - 1):
        size = values.shape[axis]
        pad = [(0, 0)] * values.ndim
        pad[axis] = (radius, radius)
        run, length = jnp.pad(values, pad), 1
        while length < 2 * radius:
            run = _pair_min(run, length, axis)
            length *= 2
        values = jax.lax.slice_in_dim(_pair_min(run, 1, axis), 0, size, axis=axis)
    return values


def _pair_min(run: jax.Array, shift: int, axis: int) -> jax.Array:
    size = run.shape[axis]
    return jnp.minimum(
        jax.lax.slice_in_dim(run, 0, size - shift, axis=axis),
        jax.lax.slice_in_dim(run, shift, size, axis=axis),
    )


def kornia_distance(region: jax.Array) -> jax.Array:
    """The official distance transform of a region; float32 [..., H, W], 0 outside.

    region is bool [..., H, W]. Closed form of kornia 0.7.0 `distance_transform` (kernel 3, h 0.35),
    which iterates convolutions: with D the Chebyshev distance,
    floor(3 (D - 1) / 2) - 0.35 ln(sum over neighbours with smaller D of exp(-|offset| / 0.35)).
    """
    height, width = region.shape[-2:]
    # Padded before and not after: XLA:CPU would compute the distance inside of the pad, 7 times slower.
    border = [(0, 0)] * (region.ndim - 2) + [(1, 1), (1, 1)]
    around = chebyshev_distance(jnp.pad(region, border))
    distance = around[..., 1:-1, 1:-1]

    def nearer(row: int, column: int) -> jax.Array:
        neighbour = around[..., row : row + height, column : column + width]
        return (neighbour < distance).astype(jnp.float32)

    # Counted, then weighted: equal neighbourhoods give equal floats, so plateaus stay exact ties.
    straight = nearer(0, 1) + nearer(1, 0) + nearer(1, 2) + nearer(2, 1)
    diagonal = nearer(0, 0) + nearer(0, 2) + nearer(2, 0) + nearer(2, 2)
    spread = jnp.where(region, straight * STRAIGHT + diagonal * DIAGONAL, 1.0)
    shell = (3 * (distance - 1) // 2).astype(jnp.float32)
    return jnp.where(region, shell - np.float32(KORNIA_H) * jnp.log(spread), 0.0)


def squared_euclidean_distance(region: jax.Array) -> jax.Array:
    """Exact squared Euclidean distance to the nearest pixel outside; int32 [..., H, W].

    region is bool [..., H, W]. Distances along columns first, then the lower envelope of the
    parabolas along each row (Felzenszwalb and Huttenlocher 2012), found by trying every column.
    """
    height, width = region.shape[-2:]
    down, across = region.ndim - 2, region.ndim - 1
    row = jax.lax.broadcasted_iota(jnp.int32, region.shape, down)
    column = jax.lax.broadcasted_iota(jnp.int32, region.shape, across)
    above = jax.lax.cummax(jnp.where(region, -1, row), axis=down)
    below = jax.lax.cummin(jnp.where(region, height, row), axis=down, reverse=True)
    vertical = jnp.minimum(row - above, below - row) ** 2  # [..., H, W]

    def try_column(k: jax.Array, best: jax.Array) -> jax.Array:
        at_k = jax.lax.dynamic_slice_in_dim(vertical, k, 1, axis=across)
        return jnp.minimum(best, at_k + (column - k) ** 2)

    border = jnp.minimum(column + 1, width - column) ** 2
    return jax.lax.fori_loop(0, width, try_column, border)
