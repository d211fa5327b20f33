"""The smallest of many numbers: both implementations against a stable sort."""

import jax
import numpy as np
import pytest

from seem_jax.kernels import smallest as door

WAYS = [door.by_top_k, door.by_bisection, door.smallest]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize(
    ("number", "count"), [(1, 1), (7, 7), (7, 0), (48, 12), (768, 192), (1024, 1), (4099, 1025)]
)
def test_they_are_those_of_a_stable_sort_in_rising_order(way, number, count):
    rng = np.random.default_rng(number)
    few = rng.integers(0, 5, (2, 3, number)).astype(np.float32)  # many equals
    spread = np.abs(rng.standard_normal((2, 3, number))).astype(np.float32)
    odd = np.where(rng.random(spread.shape) < 0.2, np.inf, np.where(spread < 0.3, 0, spread))
    for values in (few, spread, odd.astype(np.float32), spread * 1e-40, spread * 1e37):
        got = jax.jit(way, static_argnums=1)(values, count)
        want = np.sort(np.argsort(values, axis=-1, kind="stable")[..., :count], axis=-1)
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_what_is_not_a_number_comes_first(way):
    values = np.array([[3, 0, np.nan, 1, np.nan], [np.nan] * 5, [2, 1, 1, 1, np.inf]], np.float32)
    np.testing.assert_array_equal(way(values, 3), [[1, 2, 4], [0, 1, 2], [1, 2, 3]])


def test_more_than_there_are_is_refused():
    with pytest.raises(ValueError, match="count is 6; expected 0 to the 5 values"):
        door.smallest(np.zeros((2, 5), np.float32), 6)
