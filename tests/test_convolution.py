"""3x3 convolutions: every implementation against the definition, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seem_jax.kernels.convolution import IMPLEMENTATIONS, convolve


def random_given(height=8, width=12, channels=5, out=7):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, height, width, channels), np.float32)
    return jnp.asarray(x), jnp.asarray(rng.standard_normal((3, 3, channels, out), np.float32))


def test_the_definition_is_a_sum_over_nine_neighbours():
    x, kernel = random_given()
    padded = np.pad(np.asarray(x), ((0, 0), (1, 1), (1, 1), (0, 0)))
    want = np.zeros((2, 8, 12, 7))
    for i in range(3):
        for j in range(3):
            want += padded[:, i : i + 8, j : j + 12] @ np.asarray(kernel[i, j], np.float64)
    np.testing.assert_allclose(convolve(x, kernel, implementation="direct"), want, atol=2e-5)


@pytest.mark.parametrize("name", sorted(IMPLEMENTATIONS))
def test_every_implementation_is_the_definition_forward_and_backward(name):
    def results(name):
        def total(x, kernel):
            out = convolve(x, kernel, implementation=name)
            return jnp.sin(out).sum(), out

        gradients, out = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(*random_given())
        return (out, *gradients)

    for got, want in zip(results(name), results("direct"), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-4, rtol=1e-4)


def test_what_does_not_fit_is_refused_with_the_shapes():
    x, kernel = random_given()
    with pytest.raises(ValueError, match=r"\(2, 8, 12, 5\).*\(3, 3, 4, 7\)"):
        convolve(x, kernel[:, :, :4])
    with pytest.raises(ValueError, match="unknown implementation 'fft'"):
        convolve(x, kernel, implementation="fft")
    with pytest.raises(ValueError, match="got a map of 5 x 12"):
        convolve(x[:, :5], kernel, implementation="winograd")
