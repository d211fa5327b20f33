"""Which of many numbers are the smallest: one door, two implementations.

The uncertain points of a mask loss are a quarter of 37,632 candidates, for every mask and layer. XLA:CPU's top_k
is slow for so many: docs/speed.md.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from seem_jax.types import Array


def smallest(values: Array, count: int) -> Array:
    """int32 [..., count], where the `count` smallest of values, float32 [..., N], lie, in rising order.

    The values are 0 or more, or NaN, which comes before all numbers; of equal ones the first are taken. The
    implementation is that of the backend for which the program is lowered.
    """
    if not 0 <= count <= values.shape[-1]:
        raise ValueError(f"count is {count}; expected 0 to the {values.shape[-1]} values of a row.")
    return jax.lax.platform_dependent(
        values,
        cpu=lambda values: by_bisection(values, count),
        default=lambda values: by_top_k(values, count),
    )


def by_top_k(values: Array, count: int) -> Array:
    """The definition."""
    # -NaN would sort last.
    _, chosen = jax.lax.top_k(jnp.where(jnp.isnan(values), jnp.inf, -values), count)
    return jnp.sort(chosen, axis=-1)


def by_bisection(values: Array, count: int) -> Array:
    """The same by the binary digits of the largest value that is taken, then of the last place among its
    equals."""
    *outer, number = values.shape
    values = values.reshape(-1, number).astype(jnp.float32)
    # Numbers from 0 on have the order of their bits.
    bits = jax.lax.bitcast_convert_type(values, jnp.int32)
    key = jnp.where(jnp.isnan(values), 0, bits + 1)
    place = jnp.arange(number, dtype=jnp.int32)[None]
    rows = len(values)

    threshold = _largest(lambda tried: _count(key < tried[:, None]) < count, rows, 31)[:, None]
    below, equal = key < threshold, key == threshold
    wanted = count - _count(below)
    last = _largest(
        lambda tried: _count(equal & (place < tried[:, None])) < wanted, rows, number.bit_length()
    )
    taken = below | (equal & (place <= last[:, None]))
    so_far = jnp.cumsum(taken, axis=1, dtype=jnp.int32)
    wanted = jnp.arange(1, count + 1, dtype=jnp.int32)
    chosen = jax.vmap(lambda so_far: jnp.searchsorted(so_far, wanted))(so_far)
    return chosen.astype(jnp.int32).reshape(*outer, count)


def _count(condition: Array) -> Array:
    return condition.sum(1, dtype=jnp.int32)


def _largest(holds: Callable[[Array], Array], rows: int, digits: int) -> Array:
    """int32 [rows], the largest number of so many binary digits for which `holds`, which is true up to some
    number and false beyond."""

    def one(turn, found):
        tried = found | (jnp.int32(1) << (digits - 1 - turn))
        return jnp.where(holds(tried), tried, found)

    return jax.lax.fori_loop(0, digits, one, jnp.zeros(rows, jnp.int32))
