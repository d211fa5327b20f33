"""3x3 convolutions: every implementation against the definition, forward and backward."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from seem_jax.kernels.convolution import IMPLEMENTATIONS, WIDE, convolve


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


def is_winograd(program: str) -> bool:
    """Whether a lowered program has no convolution, but products."""
    assert ("stablehlo.convolution" in program) != ("stablehlo.dot_general" in program)
    return "stablehlo.dot_general" in program


def test_only_a_program_for_cpu_takes_winograd():
    x, kernel = jnp.zeros((1, 64, 64, WIDE)), jnp.zeros((3, 3, WIDE, WIDE))

    def program(*platforms, **options):
        function = jax.jit(functools.partial(convolve, **options))
        return export.export(function, platforms=platforms)(x, kernel).mlir_module()

    assert is_winograd(program("cpu"))
    assert not is_winograd(program("cuda")) and not is_winograd(program("tpu"))
    assert not is_winograd(program("cpu", implementation="direct"))
    together = program("cpu", "cuda", "tpu")
    assert "stablehlo.convolution" in together and "stablehlo.dot_general" in together
    for small in (x[:, :32], x[..., :8]):
        assert not is_winograd(
            jax.jit(convolve).lower(small, kernel[:, :, : small.shape[-1]]).as_text()
        )


def test_the_choice_by_platform_leaves_no_trace_in_the_compiled_program():
    x, kernel = random_given(64, 64, WIDE, WIDE)
    program = jax.jit(convolve).lower(x, kernel).compile()
    assert "conditional" not in program.as_text()
    want = convolve(x, kernel, implementation="direct")
    error = np.square(program(x, kernel) - want).mean() / np.square(want).mean()
    assert np.sqrt(error) < 1e-5  # of float32 sums; 4.5e-6 was measured at the full size


def test_the_choice_by_platform_has_the_gradient_of_the_definition():
    def gradients(name):
        total = lambda x, kernel: convolve(x, kernel, implementation=name)[:, ::2].sum()  # noqa: E731
        return jax.jit(jax.grad(total, (0, 1)))(*random_given(64, 64, WIDE, WIDE))

    for got, want in zip(gradients(None), gradients("direct"), strict=True):
        np.testing.assert_array_equal(got, want)


def test_what_does_not_fit_is_refused_with_the_shapes():
    x, kernel = random_given()
    with pytest.raises(ValueError, match=r"\(2, 8, 12, 5\).*\(3, 3, 4, 7\)"):
        convolve(x, kernel[:, :, :4])
    with pytest.raises(ValueError, match="unknown implementation 'fft'"):
        convolve(x, kernel, implementation="fft")
    with pytest.raises(ValueError, match="got a map of 5 x 12"):
        convolve(x[:, :5], kernel, implementation="winograd")
