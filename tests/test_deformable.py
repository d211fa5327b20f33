"""Multi-scale deformable attention and the pixel decoder built on it."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from seem_jax.convert.rules import convert_state, official_state
from seem_jax.kernels.deformable_attention import IMPLEMENTATIONS, deformable_attention
from seem_jax.models.pixel_decoders import pixel_decoder
from seem_jax.models.pixel_decoders.deformable import compass, pixel_centres
from tests import variant_goldens as goldens

SIZES = ((2, 3), (5, 4))
ONE_LAYER = dataclasses.replace(goldens.DEFORMABLE, num_layers=1)


def inputs(queries: int = 7, seed: int = 0):
    """Maps of two levels, points (some outside) and weights, for 2 images and 3 heads."""
    rng = np.random.default_rng(seed)
    values = tuple(rng.normal(size=(2, *size, 3, 4)).astype(np.float32) for size in SIZES)
    points = rng.uniform(-0.3, 1.3, (2, queries, 3, 2, 5, 2)).astype(np.float32)
    weights = rng.uniform(size=(2, queries, 3, 2, 5)).astype(np.float32)
    return values, points, weights


def by_hand(values, points, weights):
    """The definition, one read at a time."""
    out = np.zeros((*points.shape[:3], values[0].shape[-1]))
    for b, n, a, level, k in np.ndindex(weights.shape):
        height, width = values[level].shape[1:3]
        x, y = points[b, n, a, level, k] * (width, height) - 0.5
        for row in (int(np.floor(y)), int(np.floor(y)) + 1):
            for column in (int(np.floor(x)), int(np.floor(x)) + 1):
                if 0 <= row < height and 0 <= column < width:
                    share = (1 - abs(y - row)) * (1 - abs(x - column))
                    read = values[level][b, row, column, a]
                    out[b, n, a] += weights[b, n, a, level, k] * share * read
    return out


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_every_implementation_follows_the_definition(implementation):
    given = inputs()
    got = jax.jit(functools.partial(deformable_attention, implementation=implementation))(*given)
    np.testing.assert_allclose(got, by_hand(*given), atol=2e-6)


def test_implementations_have_the_same_gradients():
    given = inputs()

    def gradients(implementation):
        def total(*given):
            return jnp.sin(deformable_attention(*given, implementation=implementation)).sum()

        return jax.jit(jax.grad(total, argnums=(0, 1, 2)))(*given)

    want = jax.tree.leaves(gradients("gather"))
    for got, expected in zip(jax.tree.leaves(gradients("dense")), want, strict=True):
        assert np.abs(expected).max() > 0
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_more_queries_than_a_chunk_are_all_answered():
    values, points, weights = inputs(queries=1100)
    want = deformable_attention(values, points, weights, implementation="gather")
    got = deformable_attention(values, points, weights, implementation="dense")
    np.testing.assert_allclose(got, want, atol=2e-6)


def test_shapes_and_names_that_do_not_fit_are_refused():
    values, points, weights = inputs()
    with pytest.raises(ValueError, match="expected"):
        deformable_attention(values[:1], points, weights)
    with pytest.raises(ValueError, match="expected"):
        deformable_attention(values, points, weights[:, :3])
    with pytest.raises(ValueError, match=r"unknown implementation 'cuda'.*gather"):
        deformable_attention(values, points, weights, implementation="cuda")


def test_pixel_centres_are_x_then_y():
    got = pixel_centres(((1, 2), (2, 1)))
    np.testing.assert_allclose(got, [[0.25, 0.5], [0.75, 0.5], [0.5, 0.25], [0.5, 0.75]])


def decoder_params(config):
    """Maps and the parameters of a pixel decoder, drawn as those of its golden."""
    want = goldens.golden("sam_vit")
    maps = tuple(want[f"res{stage}"] for stage in (2, 3, 4, 5))
    variables = jax.eval_shape(pixel_decoder(config).init, jax.random.key(0), maps)
    tree = {"pixel_decoder": nn.unbox(variables)["params"]}
    zeros = jax.tree.map(lambda x: np.broadcast_to(np.int8(0), x.shape), tree)
    names = {key: value.shape for key, value in official_state(zeros).items()}
    return maps, convert_state(goldens.official_weights(names), tree)["pixel_decoder"]


def test_features_are_those_of_the_release():
    maps, params = decoder_params(goldens.DEFORMABLE)
    with jax.default_matmul_precision("highest"):
        mask, levels = jax.jit(pixel_decoder(goldens.DEFORMABLE).apply)({"params": params}, maps)
    want = goldens.golden("deformable")
    got = {"mask": mask, **{f"level_{index}": x for index, x in enumerate(levels)}}
    assert got.keys() == want.keys()
    for name, x in got.items():
        assert x.shape == want[name].shape
        error = np.linalg.norm(x - want[name]) / np.linalg.norm(want[name])
        assert error < 1e-5, (name, error)


def test_gradients_reach_every_parameter_of_the_decoder():
    maps, params = decoder_params(ONE_LAYER)

    @jax.jit
    @jax.grad
    def gradient(params):
        mask, levels = pixel_decoder(ONE_LAYER).apply({"params": params}, maps)
        return sum(jnp.square(x - 0.5).mean() for x in (mask, *levels))

    for path, grad in jax.tree_util.tree_leaves_with_path(gradient(params)):
        assert np.isfinite(grad).all(), path
        assert np.abs(grad).max() > 0, path


def test_at_the_start_heads_look_in_different_directions():
    """Head a looks along its own angle, at 1, 2, 3 ... pixels (official reset_parameters)."""
    got = compass(8, 3, 4).reshape(8, 3, 4, 2)
    reach = np.arange(1, 5)[:, None]
    for level in range(3):
        np.testing.assert_allclose(got[0, level], reach * [[1, 0]], atol=1e-6)
        np.testing.assert_allclose(got[1, level], reach * [[1, 1]], atol=1e-6)
        np.testing.assert_allclose(got[6, level], reach * [[0, -1]], atol=1e-6)


@pytest.mark.slow
def test_bfloat16_is_near_float32():
    maps, params = decoder_params(ONE_LAYER)
    want, _ = jax.jit(pixel_decoder(ONE_LAYER).apply)({"params": params}, maps)
    half = pixel_decoder(ONE_LAYER, jnp.bfloat16)
    got, _ = jax.jit(half.apply)({"params": params}, jax.tree.map(jnp.bfloat16, maps))
    assert got.dtype == jnp.bfloat16
    error = np.linalg.norm(got.astype(jnp.float32) - want)
    assert error < 0.05 * np.linalg.norm(want)
