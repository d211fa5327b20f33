"""Masks as bits of words."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from seem_jax.kernels import bit_planes


@pytest.mark.parametrize("number", [1, 8, 9, 17, 40])
@pytest.mark.parametrize("height", [7, 96, 512])
def test_masks_come_back_and_are_counted(number, height):
    rng = np.random.default_rng(number)
    masks = rng.random((2, number, height, 5)) < rng.random((2, number, 1, 1))
    masks[0, 0], masks[1, 0] = False, True
    flags = rng.random((2, number)) < 0.5

    @jax.jit
    def run(masks, flags):
        words = bit_planes.pack(masks)
        some = bit_planes.unpack(bit_planes.some(words), number)[..., 0, 0]
        mixed = bit_planes.unpack(bit_planes.choose(flags, words, ~words), number)
        return bit_planes.unpack(words, number), bit_planes.count(masks), some, mixed

    same, count, some, mixed = run(masks, flags)
    np.testing.assert_array_equal(same, masks)
    np.testing.assert_array_equal(count, masks.sum((2, 3)))
    np.testing.assert_array_equal(some, masks.any((2, 3)))
    np.testing.assert_array_equal(mixed, np.where(flags[..., None, None], masks, ~masks))
