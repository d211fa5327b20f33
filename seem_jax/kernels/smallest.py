"""Which of many numbers are the smallest: one door, two implementations.

The uncertain points of a mask loss are a quarter of 37,632 candidates, for every mask and layer. XLA:CPU's top_k
is slow for so many: docs/speed.md.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from seem_jax.types import Array

AT_ONCE = 160_000  # numbers that are searched together
FOLDS = 64  # parts of a row that are added up before one sum: three such counts fit an integer
BITS = 32  # places that one word holds


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
    """The same by the binary digits of the largest value that is taken, then, where more equal it than are
    wanted, of the last place among them.

    A few rows at a time: what enters a loop is computed once, where XLA would put it into each of its uses.
    """
    *outer, number = values.shape
    if count == 0:
        return jnp.zeros((*outer, 0), jnp.int32)
    rows = values.reshape(-1, number).astype(jnp.float32)
    together = max(1, AT_ONCE // number)
    found = jax.lax.map(lambda row: _search(row, count), rows, batch_size=together)
    return found.reshape(*outer, count)


def _search(row: Array, count: int) -> Array:
    """int32 [count] of a row [N]."""
    # Numbers from 0 on have the order of their bits.
    bits = jax.lax.bitcast_convert_type(row, jnp.uint32)
    key = jnp.where(jnp.isnan(row), jnp.uint32(0), bits + 1)
    threshold = _threshold(key, count)
    below, equal = key < threshold, key == threshold
    wanted = count - _count(below)
    more = _count(equal) > wanted
    place = jnp.arange(len(row), dtype=jnp.int32)
    last = _largest(
        lambda tried: _count(equal & (place < tried)) < wanted,
        jnp.where(more, len(row).bit_length(), 0),
    )
    return _places(below | (equal & (~more | (place <= last))), count)


def _threshold(key: Array, count: int) -> Array:
    """uint32, the largest number that fewer than `count` of the keys, uint32 [N], are below: two digits a turn.

    The three counts of a turn share an integer, ten bits for each.
    """
    parts = _parts(key, jnp.uint32(2**32 - 1))

    def one(turn, found):
        first = 30 - 2 * turn.astype(jnp.uint32)
        tried = [found | (jnp.uint32(digits) << first) for digits in (1, 2, 3)]
        fields = [(parts < each).astype(jnp.int32) << (10 * i) for i, each in enumerate(tried)]
        packed = _folded(fields[0] + fields[1] + fields[2])
        for i, each in enumerate(tried):
            below = ((packed >> (10 * i)) & 1023).sum(dtype=jnp.int32)
            found = jnp.where(below < count, each, found)
        return found

    return jax.lax.fori_loop(0, 16, one, jnp.uint32(0))


def _places(taken: Array, count: int) -> Array:
    """int32 [count], where the bools [N] are true, which `count` of them are, in rising order.

    Of words of bits, the place of rank n is in the last one that has at most n before it.
    """
    bits = jnp.pad(taken, (0, -len(taken) % BITS)).reshape(-1, BITS)
    words = (bits.astype(jnp.uint32) << jnp.arange(BITS, dtype=jnp.uint32)[None]).sum(
        1, dtype=jnp.uint32
    )
    held = jax.lax.population_count(words).astype(jnp.int32)
    before = jnp.cumsum(held, dtype=jnp.int32) - held
    index = jnp.arange(len(words), dtype=jnp.int32)
    word = jax.lax.cummax(jnp.zeros(count, jnp.int32).at[before].max(index, mode="drop"))

    rest = words.at[word].get(mode="promise_in_bounds")
    rank = jnp.arange(count, dtype=jnp.int32) - before.at[word].get(mode="promise_in_bounds")
    bit = jnp.zeros_like(rank)
    for size in (16, 8, 4, 2, 1):  # in which half of what is left is the bit of this rank?
        lower = jax.lax.population_count(rest & jnp.uint32(2**size - 1)).astype(jnp.int32)
        upper = rank >= lower
        rank = jnp.where(upper, rank - lower, rank)
        rest = jnp.where(upper, rest >> jnp.uint32(size), rest)
        bit = jnp.where(upper, bit + size, bit)
    return word * BITS + bit


def _count(condition: Array) -> Array:
    return _folded(_parts(condition.astype(jnp.int32), jnp.int32(0))).sum(dtype=jnp.int32)


def _parts(row: Array, fill: Array) -> Array:
    """[N] as [FOLDS, N / FOLDS], filled up."""
    return jnp.pad(row, (0, -len(row) % FOLDS), constant_values=fill).reshape(FOLDS, -1)


def _folded(parts: Array) -> Array:
    """[n], the sum of [FOLDS, n] over the parts: XLA:CPU adds halves much faster than it sums along an axis."""
    while len(parts) > 1:
        half = len(parts) // 2
        parts = parts[:half] + parts[half:]
    return parts[0]


def _largest(holds: Callable[[Array], Array], digits: Array) -> Array:
    """int32, the largest number of so many binary digits for which `holds`, which is true up to some number and
    false beyond; 0 where there are none."""

    def one(turn, found):
        tried = found | (jnp.int32(1) << (digits - 1 - turn))
        return jnp.where(holds(tried), tried, found)

    return jax.lax.fori_loop(0, digits, one, jnp.int32(0))
