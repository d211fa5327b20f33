"""DaViT and SAM's ViT: the numbers of the official modules, and what every backbone promises."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.tree_util import DictKey

from seem_jax.config import BackboneConfig
from seem_jax.convert.rules import convert_state, official_state
from seem_jax.models.backbones import backbone
from seem_jax.models.backbones.sam_vit import distances, positions
from seem_jax.models.backbones.windows import join_windows, split_windows
from tests import variant_goldens as goldens

TOLERANCE = 1e-5  # relative rms


def weights(config: BackboneConfig) -> dict:
    """The parameters of a tiny backbone, drawn as those of its golden."""
    variables = jax.eval_shape(backbone(config).init, jax.random.key(0), goldens.image())
    tree = {"backbone": nn.unbox(variables)["params"]}
    zeros = jax.tree.map(lambda x: np.broadcast_to(np.int8(0), x.shape), tree)
    names = {key: value.shape for key, value in official_state(zeros).items()}
    return convert_state(goldens.official_weights(names), tree)["backbone"]


@functools.cache
def encoder(name: str):
    params, module = weights(goldens.TINY[name]), backbone(goldens.TINY[name])
    return jax.jit(lambda images, key=None: module.apply({"params": params}, images, key))


def with_mates(*factors: float) -> np.ndarray:
    """The image of the goldens, followed by multiples of it."""
    factors = np.array([1, *factors], np.float32).reshape(-1, 1, 1, 1)
    return np.repeat(goldens.image(), len(factors), axis=0) * factors


@pytest.mark.parametrize("name", goldens.TINY)
def test_maps_are_those_of_the_release(name):
    with jax.default_matmul_precision("highest"):
        maps = encoder(name)(with_mates(0.0))
    want = goldens.golden(name)
    for stage, got in enumerate(maps):
        expected = want[f"res{stage + 2}"]
        assert got[:1].shape == expected.shape
        error = np.linalg.norm(got[:1] - expected) / np.linalg.norm(expected)
        assert error < TOLERANCE, (stage, error)


@pytest.mark.parametrize("name", goldens.TINY)
def test_maps_do_not_depend_on_batch_mates(name):
    with jax.default_matmul_precision("highest"):
        maps, others = (encoder(name)(with_mates(factor)) for factor in (0.0, -2.0))
    for a, b in zip(maps, others, strict=True):
        np.testing.assert_array_equal(a[0], b[0])
        assert not np.array_equal(a[1], b[1])


SMALLER = {  # the same parts in fewer layers
    "davit": dataclasses.replace(goldens.DAVIT, depths=(1, 1), patch_sizes=(7, 2)),
    "sam_vit": dataclasses.replace(goldens.TINY["sam_vit"], depths=(2,)),
}


@pytest.mark.parametrize("name", SMALLER)
def test_gradients_reach_every_parameter(name):
    module = backbone(SMALLER[name])

    @jax.jit
    @jax.grad
    def gradient(params):
        maps = module.apply({"params": params}, goldens.image())
        return sum(jnp.square(x - 0.5).mean() for x in maps)

    for path, grad in jax.tree_util.tree_leaves_with_path(gradient(weights(SMALLER[name]))):
        assert np.isfinite(grad).all(), path
        shift = path[-2:] == (DictKey("key"), DictKey("bias"))  # the same for all keys: no effect
        assert shift or np.abs(grad).max() > 0, path


@pytest.mark.parametrize("name", SMALLER)
def test_paths_drop_by_key_only_and_per_image(name):
    config = SMALLER[name]
    assert config.drop_path > 0
    apply = jax.jit(backbone(config).apply)
    params, images = {"params": weights(config)}, with_mates(1, 1, 1)
    first, same, other = (apply(params, images, jax.random.key(seed))[-1] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)
    assert len({np.asarray(x).tobytes() for x in first}) > 1


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLER)
def test_bfloat16_is_near_float32(name):
    params, image = {"params": weights(SMALLER[name])}, jnp.asarray(goldens.image())
    want = jax.jit(backbone(SMALLER[name]).apply)(params, image)
    half = backbone(SMALLER[name], jnp.bfloat16)
    got = jax.jit(half.apply)(params, image.astype(jnp.bfloat16))
    for a, b in zip(got, want, strict=True):
        assert a.dtype == jnp.bfloat16
        error = np.linalg.norm(a.astype(jnp.float32) - b) / np.linalg.norm(b)
        assert error < 0.05, error


@pytest.mark.parametrize("name", goldens.TINY)
@pytest.mark.parametrize("size", [(40, 64), (64, 33)])
def test_sizes_that_do_not_divide_are_refused(name, size):
    with pytest.raises(ValueError, match="multiples of 32"):
        encoder(name)(np.zeros((1, *size, 3), np.float32))


@pytest.mark.parametrize("size", [(4, 6), (6, 9), (1, 1), (7, 2)])
def test_windows_join_to_the_map_that_was_split(size):
    x = np.arange(2 * size[0] * size[1] * 5, dtype=np.float32).reshape(2, *size, 5)
    windows = split_windows(x, 3)
    rows, columns = -(-size[0] // 3), -(-size[1] // 3)
    assert windows.shape == (2 * rows * columns, 9, 5)
    np.testing.assert_array_equal(join_windows(windows, 3, *size), x)
    corner = np.zeros((3, 3, 5), np.float32)
    piece = x[0, :3, :3]
    corner[: piece.shape[0], : piece.shape[1]] = piece
    np.testing.assert_array_equal(windows[0].reshape(3, 3, 5), corner)


def test_distances_count_from_query_to_key():
    table = np.arange(5, dtype=np.float32)[:, None]  # distances -2 to 2
    got = distances(jnp.asarray(table), 3)[..., 0]
    np.testing.assert_array_equal(got, [[2, 1, 0], [3, 2, 1], [4, 3, 2]])
    assert distances(jnp.asarray(table), 5).shape == (5, 5, 1)


def test_a_table_of_positions_is_resized_only_for_other_sizes():
    table = jnp.asarray(np.random.default_rng(0).normal(size=(4, 4, 2)), jnp.float32)
    assert positions(table, 4, 4) is table
    want = jax.image.resize(table, (6, 8, 2), "bilinear", antialias=False)
    np.testing.assert_allclose(positions(table, 6, 8), want, atol=1e-6)
