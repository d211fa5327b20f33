"""The depthwise convolution: every implementation against the definition, forward and backward."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seem_jax.kernels.depthwise import IMPLEMENTATIONS, depthwise


def by_loops(x, kernel):
    """The definition, tap by tap in float64."""
    k = kernel.shape[0]
    pad = k // 2
    padded = np.pad(np.float64(x), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    out = np.zeros(x.shape)
    for i in range(k):
        for j in range(k):
            out += padded[:, i : i + x.shape[1], j : j + x.shape[2]] * np.float64(kernel[i, j, 0])
    return out


def random(k, shape=(2, 6, 9, 3)):
    rng = np.random.default_rng(k)
    return (
        rng.normal(size=shape).astype(np.float32),
        rng.normal(size=(k, k, 1, shape[-1])).astype(np.float32),
    )


@pytest.mark.parametrize("k", [1, 3, 5, 9])
@pytest.mark.parametrize("name", sorted(IMPLEMENTATIONS))
def test_every_implementation_is_the_definition(name, k):
    x, kernel = random(k)
    got = depthwise(jnp.asarray(x), jnp.asarray(kernel), implementation=name)
    np.testing.assert_allclose(got, by_loops(x, kernel), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("k", [3, 7])
@pytest.mark.parametrize("name", sorted(set(IMPLEMENTATIONS) - {"grouped"}))
def test_gradients_are_those_of_the_definition(name, k):
    x, kernel = random(k)

    def loss(x, kernel, name):
        return jnp.sin(depthwise(x, kernel, implementation=name)).sum()

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)), static_argnums=2)
    got, want = (gradient(jnp.asarray(x), jnp.asarray(kernel), n) for n in (name, "grouped"))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", sorted(IMPLEMENTATIONS))
def test_bfloat16_stays_bfloat16(name):
    x, kernel = (jnp.asarray(a, jnp.bfloat16) for a in random(3))

    def loss(x, kernel):
        out = depthwise(x, kernel, implementation=name)
        assert out.dtype == jnp.bfloat16
        return out.astype(jnp.float32).sum()

    got = jax.grad(loss, argnums=(0, 1))(x, kernel)
    assert {a.dtype for a in got} == {jnp.dtype(jnp.bfloat16)}
    out = depthwise(x, kernel, implementation=name).astype(jnp.float32)
    np.testing.assert_allclose(out, by_loops(np.asarray(x), np.asarray(kernel)), atol=0.1)


def test_the_default_works_under_vmap():
    x, kernel = random(3, (4, 6, 9, 3))
    got = jax.vmap(lambda x: depthwise(x[None], jnp.asarray(kernel))[0])(jnp.asarray(x))
    np.testing.assert_allclose(got, by_loops(x, kernel), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(4, 4, 1, 3), (3, 5, 1, 3), (3, 3, 1, 4)])
def test_kernels_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match="depthwise kernel of shape"):
        depthwise(jnp.zeros((1, 8, 8, 3)), jnp.zeros(shape))


def test_an_unknown_implementation_is_refused():
    with pytest.raises(ValueError, match="unknown implementation 'fast'"):
        depthwise(jnp.zeros((1, 8, 8, 3)), jnp.zeros((3, 3, 1, 3)), implementation="fast")
