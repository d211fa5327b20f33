"""Softmax attention with its own gradient, against the gradient that JAX finds for the definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seem_jax.nn.attention import attend

SHAPES = {"q": (2, 3, 5, 8), "k": (2, 3, 7, 8), "v": (2, 3, 7, 8)}


def definition(q, k, v, reads):
    """As attend; q, k and v in float32."""
    scores = jnp.einsum("bane,base->bans", q, k) / q.shape[-1] ** 0.5
    if reads is not None:
        scores = jnp.where(reads[:, None], scores, -jnp.inf)
    weights = jnp.exp(scores - scores.max(-1, keepdims=True, initial=-1e9))
    total = weights.sum(-1, keepdims=True)
    return jnp.einsum("bans,base->bane", weights / jnp.where(total > 0, total, 1.0), v)


def given(dtype):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in SHAPES.values()]


def some_reads(images):
    """bool [images, 5, 7]; the second row reads nothing."""
    reads = np.random.default_rng(1).random((images, 5, 7)) < 0.5
    reads[:, 1] = False
    return jnp.asarray(reads)


@pytest.mark.parametrize("images", [None, 1, 2], ids=["all", "alike", "own"])
@pytest.mark.parametrize(("dtype", "limit"), [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)])
def test_value_and_gradient_are_those_of_the_definition(images, dtype, limit):
    reads = None if images is None else some_reads(images)
    arrays = given(dtype)
    weight = jnp.asarray(np.random.default_rng(2).standard_normal(SHAPES["q"]), jnp.float32)

    def loss(function):
        return lambda *x: (function(*x, reads).astype(jnp.float32) * weight).sum()

    got, found = jax.value_and_grad(loss(attend), (0, 1, 2))(*arrays)
    exact = [x.astype(jnp.float32) for x in arrays]
    want, wanted = jax.value_and_grad(loss(definition), (0, 1, 2))(*exact)
    np.testing.assert_allclose(got, want, rtol=limit, atol=20 * limit)
    for gradient, expected, array in zip(found, wanted, arrays):
        assert gradient.dtype == array.dtype
        error = jnp.abs(gradient.astype(jnp.float32) - expected).max() / jnp.abs(expected).max()
        assert error < limit


def test_row_that_reads_nothing_is_zero_and_takes_no_gradient():
    q, k, v = given(jnp.float32)
    reads = some_reads(2)
    assert not attend(q, k, v, reads)[:, :, 1].any()
    gradient = jax.grad(lambda q: jnp.square(attend(q, k, v, reads)).sum())(q)
    assert not gradient[:, :, 1].any() and gradient[:, :, 0].any()
