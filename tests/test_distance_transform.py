"""The distance transforms against their plain definitions and the official numbers."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from scipy import ndimage

from seem_jax.kernels.bit_planes import pack
from seem_jax.kernels.distance_transform import (
    chebyshev_distance,
    deepest,
    kornia_distance,
    squared_euclidean_distance,
)
from tests.goldens import arrays


def iterated(region: np.ndarray) -> np.ndarray:
    """kornia 0.7.0, as defined: shells peeled off by a 3x3 convolution, the frame outside."""
    boundary = np.pad(1.0 - region, 1, constant_values=1.0)
    result = np.zeros_like(boundary)
    step = 0
    while True:
        around = np.pad(boundary, 1, mode="edge")
        total = np.zeros_like(boundary)
        for row in range(3):
            for column in range(3):
                weight = np.exp(-np.hypot(row - 1, column - 1) / 0.35)
                window = around[row : row + total.shape[0], column : column + total.shape[1]]
                total += weight * window
        value = np.where(total > 0, -0.35 * np.log(np.where(total > 0, total, 1.0)), 0.0)
        shell = value > 0
        if not shell.any():
            return result[1:-1, 1:-1]
        result += shell * (3 * step // 2 + value)
        boundary[shell] = 1.0
        step += 1


def some_regions() -> np.ndarray:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:40, :57]
    disc = (y - 19) ** 2 + (x - 30) ** 2 < 17**2
    speckled = disc & (rng.random(disc.shape) < 0.98)
    return np.stack([disc, speckled, np.ones_like(disc), np.zeros_like(disc), y < 3])


def test_chebyshev_distance_is_that_of_scipy():
    regions = some_regions()
    want = [ndimage.distance_transform_cdt(np.pad(r, 1), "chessboard")[1:-1, 1:-1] for r in regions]
    np.testing.assert_array_equal(jax.jit(chebyshev_distance)(regions), np.stack(want))


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (2, 2), (5, 3), (17, 16)])
def test_any_size_works_and_a_full_region_is_deepest_in_its_middle(shape):
    distance = np.asarray(jax.jit(chebyshev_distance)(np.ones(shape, bool)))
    assert distance.max() == (min(shape) + 1) // 2
    assert distance.min() == 1
    row, column = jax.jit(lambda r: deepest(pack(r), 1))(np.ones((1, *shape), bool))
    assert (
        int(row[0] * shape[1] + column[0])
        == np.asarray(jax.jit(kornia_distance)(distance > 0)).argmax()
    )


def test_the_closed_form_is_the_iterated_definition():
    regions = some_regions()
    got = np.asarray(jax.jit(kornia_distance)(regions))
    want = np.stack([iterated(region) for region in regions])
    np.testing.assert_allclose(got, want, atol=2e-5)


def test_equal_neighbourhoods_give_exact_ties_so_the_first_pixel_wins():
    region = np.zeros((20, 30), bool)
    region[5:12, 3:25] = True
    got = np.asarray(jax.jit(kornia_distance)(region))
    assert np.unravel_index(got.argmax(), got.shape) == (8, 7)


@pytest.mark.parametrize("number", [1, 9, 33])
def test_the_deepest_pixel_is_the_first_with_the_largest_distance(number):
    """Also of empty, full, ragged and thin regions, and where regions fill several words."""
    rng = np.random.default_rng(number)
    noise = ndimage.gaussian_filter(rng.normal(size=(2, number, 40, 57)), (0, 0, 3, 3))
    regions = noise > rng.normal(0, 0.1, (2, number, 1, 1))
    regions[0, 0], regions[1, 0] = False, True
    regions[1, -1, :, 3:] = False
    row, column = jax.jit(lambda r: deepest(pack(r), number))(regions)
    distance = np.asarray(jax.jit(kornia_distance)(regions)).reshape(2, number, -1)
    np.testing.assert_array_equal(np.asarray(row) * 57 + column, distance.argmax(-1))


def test_official_distance_transforms():
    golden, transform = arrays("clicks_seem"), jax.jit(kornia_distance)
    for case in range(3):
        got = transform(golden[f"dt/{case}/mask"])
        np.testing.assert_allclose(got, golden[f"dt/{case}/value"], atol=2e-5)


def test_euclidean_distance_is_that_of_scipy():
    regions = some_regions()
    want = [ndimage.distance_transform_edt(np.pad(r, 1))[1:-1, 1:-1] ** 2 for r in regions]
    got = jax.jit(squared_euclidean_distance)(regions)
    np.testing.assert_array_equal(got, np.rint(np.stack(want)).astype(np.int32))
