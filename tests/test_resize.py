"""Resizing on the device against what JAX itself computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seem_jax.kernels.resize import shrink


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 8])
def test_shrinking_is_the_bilinear_resize_without_a_matrix_product(factor):
    height, width = 2 * factor, 3 * factor
    maps = np.random.default_rng(0).standard_normal((2, height, width, 5), np.float32)
    want = jax.image.resize(maps, (2, 2, 3, 5), "bilinear", antialias=False)
    np.testing.assert_allclose(shrink(jnp.asarray(maps), factor), want, atol=1e-6)


def test_a_map_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="6 x 9 pixels does not shrink by 4"):
        shrink(jnp.zeros((1, 6, 9, 1)), 4)
