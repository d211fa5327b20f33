"""Masked attention: every implementation against "xla", forward and backward, here and for other devices."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from seem_jax.kernels import masked_attention as kernels
from seem_jax.kernels import masked_attention_tpu
from seem_jax.kernels.masked_attention import masked_attention, sees_nothing


def pallas_tpu_interpreted(q, k, v, logits):
    return masked_attention_tpu.attention(q, k, v, logits, sees_nothing(logits), interpret=True)


HERE = {
    "chunked": functools.partial(masked_attention, implementation="chunked"),
    "pallas_tpu": pallas_tpu_interpreted,
    "library": functools.partial(kernels.library, implementation="xla"),
}


def random_given(slots=11, pixels=1000, dtype=jnp.float32):
    """Two images, two heads; slot 0 sees nothing, slot 1 one pixel, slot 2 everything."""
    rng = np.random.default_rng(0)
    q, k, v = (
        jnp.asarray(rng.standard_normal((2, 2, rows, 16), np.float32), dtype)
        for rows in (slots, pixels, pixels)
    )
    logits = rng.standard_normal((2, slots, pixels), np.float32)
    logits[:, 0], logits[:, 1], logits[:, 2] = -1, -1, 1
    logits[:, 1, pixels // 2] = 0
    return q, k, v, jnp.asarray(logits)


def results(attend, given):
    """The attention, and the gradients of queries, keys and values."""

    def total(q, k, v):
        out = attend(q, k, v, given[3])
        return jnp.sin(out.astype(jnp.float32)).sum(), out

    gradients, out = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(*given[:3])
    return out, *gradients


definition = functools.partial(masked_attention, implementation="xla")


@pytest.mark.parametrize("name", sorted(HERE))
def test_every_implementation_is_the_definition_forward_and_backward(name, monkeypatch):
    monkeypatch.setattr(kernels, "CHUNK", 384)  # three chunks, the last of them not full
    given = random_given()
    for got, want in zip(results(HERE[name], given), results(definition, given), strict=True):
        np.testing.assert_allclose(got, want, atol=2e-6, rtol=2e-5)


def test_a_slot_sees_where_its_logits_are_not_negative_and_everything_where_they_all_are():
    q, k, v, logits = random_given(pixels=9)
    out = definition(q, k, v, logits)
    np.testing.assert_allclose(out[:, :, 1], v[:, :, 4], rtol=1e-6)
    scores = np.einsum("ae,ase->as", q[0, :, 0], k[0]) / 4
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    np.testing.assert_allclose(out[0, :, 0], np.einsum("as,ase->ae", weights, v[0]), atol=1e-6)


@pytest.mark.parametrize("name", ["chunked", "pallas_tpu"])
def test_half_precision_keeps_its_sums_in_single_precision(name):
    given = random_given(dtype=jnp.bfloat16)
    want = definition(*(x.astype(jnp.float32) for x in given))
    got = HERE[name](*given)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), want, atol=0.02)


def test_no_gradient_passes_to_the_mask():
    q, k, v, logits = random_given(pixels=32)
    for attend in (definition, HERE["chunked"]):
        gradient = jax.grad(lambda logits, attend=attend: attend(q, k, v, logits).sum())(logits)
        assert not gradient.any()


PLATFORMS = {"pallas_tpu": "tpu", "pallas_gpu": "cuda"}


@pytest.mark.parametrize("name", sorted(PLATFORMS))
def test_the_kernel_and_its_gradient_lower_for_its_device_without_one(name):
    if name == "pallas_gpu" and jax.__version_info__ >= (0, 11):
        pytest.skip("from jax 0.11 on, lowering for CUDA asks the device for its kind")

    def shape(*sizes, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(sizes, dtype)

    given = (shape(1, 2, 100, 64), shape(1, 2, 1000, 64), shape(1, 2, 1000, 64))
    logits = shape(1, 100, 1000, dtype=jnp.float32)
    attend = functools.partial(masked_attention, implementation=name)
    gradient = jax.grad(lambda *x: attend(*x).astype(jnp.float32).sum(), argnums=(0, 1, 2))
    kind = {"pallas_tpu": "@tpu_custom_call", "pallas_gpu": "@mosaic_gpu_v2"}[name]
    for function, count in ((attend, 1), (gradient, {"pallas_tpu": 3, "pallas_gpu": 1}[name])):
        lowered = export.export(jax.jit(function), platforms=(PLATFORMS[name],))(*given, logits)
        assert lowered.mlir_module().count(f"custom_call {kind}") == count


def test_a_kernel_that_cannot_take_the_arrays_says_why():
    given = random_given()
    with pytest.raises(NotImplementedError, match="takes bfloat16"):
        masked_attention(*given, implementation="pallas_gpu")
    half = random_given(dtype=jnp.bfloat16)
    with pytest.raises(NotImplementedError, match="multiples of 64"):
        masked_attention(*half, implementation="pallas_gpu")
    with pytest.raises(ValueError, match="unknown masked attention 'flash'"):
        masked_attention(*given, implementation="flash")
    with pytest.raises(ValueError, match=r"\(2, 11, 1000\)"):
        masked_attention(*given[:3], given[3][:, :4])


def test_small_scores_are_held_whole_and_large_ones_as_the_table_says(monkeypatch):
    q, k, _, _ = random_given()
    assert kernels.choose(q, k) == "xla"
    monkeypatch.setattr(kernels, "SMALL", 0)
    monkeypatch.setattr(kernels, "FASTEST", {"cpu": "chunked"})
    assert kernels.choose(q, k) == "chunked"


def test_a_device_that_was_not_measured_is_named_in_the_log(monkeypatch, caplog):
    q, k, _, _ = random_given()
    monkeypatch.setattr(kernels, "SMALL", 0)
    monkeypatch.setattr(kernels, "FASTEST", {})
    kernels._say_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert kernels.choose(q, k) == "chunked"
        kernels.choose(q, k)
    assert caplog.text.count("not measured on 'cpu'") == 1
