"""Backbone, pixel decoder, text encoder and their weights, against the official release."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.tree_util import DictKey

from seem_jax.config import BackboneConfig, PixelDecoderConfig, TextConfig
from seem_jax.convert.rules import convert_state, official_state
from seem_jax.models.backbones import backbone
from seem_jax.models.language.text_encoder import TextEncoder, pool
from seem_jax.models.pixel_decoders import pixel_decoder
from seem_jax.nn.blocks import drop_path
from seem_jax.nn.positions import sine_positions
from tests import parity_support as parity

LARGE = BackboneConfig(width=192, depths=(2, 2, 18, 2), focal_levels=(4, 4, 4, 4), depthwise=False)
TINY = BackboneConfig(width=8, depths=(1, 1, 1, 1), focal_levels=(1, 1, 1, 1), drop_path=0.5)
TINY_FPN = PixelDecoderConfig(width=16, num_layers=1, num_heads=2, mlp_width=32, num_groups=4)
TINY_TEXT = TextConfig(
    vocab_size=40, context_length=12, width=16, num_layers=2, num_heads=2, projection=16
)


def shapes(module, *inputs):
    """The parameter tree of a module as shapes, without computing anything."""
    variables = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return nn.unbox(variables)["params"]


def millions(tree):
    return round(sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree)) / 1e6, 2)


def encoder_shapes(config, decoder=None):
    """The image encoders' part of the parameter tree of a model."""
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    init = backbone(config).init_with_output
    maps, variables = jax.eval_shape(init, jax.random.key(0), image)
    return {
        "backbone": nn.unbox(variables)["params"],
        "pixel_decoder": shapes(pixel_decoder(decoder or PixelDecoderConfig()), maps),
    }


@functools.cache
def official_params():
    """The image encoders of Focal-T with the official weights of the goldens."""
    return parity.converted(encoder_shapes(BackboneConfig()), parity.FEATURES)


def text_shapes():
    ids = jax.ShapeDtypeStruct((1, 77), jnp.int32)
    config = TextConfig()
    return {
        "text": shapes(TextEncoder(config), ids, jax.ShapeDtypeStruct((1, 77), jnp.bool)),
        "text_projection": jax.ShapeDtypeStruct((config.width, config.projection), jnp.float32),
        "logit_scale": jax.ShapeDtypeStruct((), jnp.float32),
    }


@pytest.mark.parametrize("stage", ["features", "text"])
def test_the_encoders_are_the_official_ones(stage):
    parity.check_stage(stage)


@pytest.mark.parametrize(
    ("config", "name", "counts"),
    [
        (BackboneConfig(), "focalt_unicl_lang_v1", (29.92, 31.46)),
        (LARGE, "focall_unicl_lang_v1", (205.75, 32.19)),
    ],
    ids=["focalt", "focall"],
)
def test_the_encoders_have_the_official_parameters(config, name, counts):
    tree = encoder_shapes(config)
    assert (millions(tree["backbone"]), millions(tree["pixel_decoder"])) == counts
    rows = {
        key: shape for key, shape, _ in parity.manifest(name) if key.startswith(parity.FEATURES)
    }
    back = official_state(jax.tree.map(lambda x: np.broadcast_to(np.int8(0), x.shape), tree))
    assert {key: value.shape for key, value in back.items()} == rows


def test_the_text_encoder_has_the_official_parameters():
    tree = text_shapes()
    assert millions(tree["text"]) + millions(tree["text_projection"]) == pytest.approx(
        63.43, abs=0.01
    )


def test_conversion_there_and_back_gives_the_same_bits():
    state = parity.official_weights(parts=parity.FEATURES)
    back = official_state(official_params())
    assert state.keys() == back.keys()
    assert all(np.array_equal(state[name], back[name]) for name in state)


def tiny_state():
    """A tiny backbone's shapes and an official state dict for it, with the buffers."""
    tree = {"backbone": shapes(backbone(TINY), jnp.zeros((1, 32, 32, 3)))}
    params = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), tree)
    return tree, official_state(params) | {"dilation_kernel": np.ones((1, 1, 3, 3), np.float32)}


def test_conversion_lists_every_leftover_of_either_side():
    tree, state = tiny_state()
    assert convert_state(state, tree).keys() == tree.keys()  # buffers are no leftover
    state["backbone.norm0.weight"] = np.zeros(9, np.float32)
    state["backbone.layers.0.blocks.0.modulation.h.weight"] = np.zeros((8, 8, 3, 3), np.float32)
    state["backbone.layers.0.blocks.7.norm1.weight"] = state.pop("backbone.norm1.bias")
    state["sem_seg_head.nonsense"] = np.zeros(1, np.float32)
    with pytest.raises(ValueError, match="5 differences") as caught:
        convert_state(state, tree)
    for part in (
        "(9,) of backbone.norm0.weight does not fit backbone/norm_0/scale (8,)",
        "(8, 8, 3, 3) of backbone.layers.0.blocks.0.modulation.h.weight",
        "not expected by the model: backbone.layers.0.blocks.7.norm1.weight",
        "not expected by the model: sem_seg_head.nonsense",
        "missing for the model: backbone/norm_1/bias",
    ):
        assert part in str(caught.value)


def test_parameters_without_an_official_name_are_an_error():
    with pytest.raises(ValueError, match="backbone/novelty"):
        official_state({"backbone": {"novelty": np.zeros(3)}})


def reference_plain_focalnet(params, image, levels, window):
    """One-stage plain FocalNet of one image [H, W, 3], pixel by pixel in NumPy (focal.py)."""

    def norm(x, p):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * p["scale"] + p["bias"]

    def gelu(x):
        return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2

    def dense(x, p):
        return x @ p["kernel"] + p["bias"]

    def windows(x, size, stride, pad):
        x = np.pad(x, ((pad, pad), (pad, pad), (0, 0)))
        rows = range(0, x.shape[0] - size + 1, stride)
        columns = range(0, x.shape[1] - size + 1, stride)
        return np.array([[x[i : i + size, j : j + size] for j in columns] for i in rows])

    stem = params["embed_0"]
    x = np.einsum("hwijc,ijcd->hwd", windows(image, 7, 4, 2), stem["kernel"]) + stem["bias"]
    x = norm(x, params["embed_norm_0"])
    block = params["stage_0_block_0"]
    modulation, c = block["modulation"], x.shape[-1]
    mixed = dense(x, modulation["project_in"])
    query, context, gates = mixed[..., :c], mixed[..., c : 2 * c], mixed[..., 2 * c :]
    total = 0
    for level in range(levels):
        size = window + 2 * level
        kernel = modulation[f"focal_{level}"]["kernel"][:, :, 0]
        context = gelu(np.einsum("hwijc,ijc->hwc", windows(context, size, 1, size // 2), kernel))
        total = total + context * gates[..., level : level + 1]
    total = (total + gelu(context.mean((0, 1))) * gates[..., levels:]) / (levels + 1)
    update = dense(query * dense(total, modulation["modulator"]), modulation["project_out"])
    x = x + block["layer_scale_0"] * norm(update, block["norm_0"])
    hidden = gelu(dense(x, block["feed_forward"]["dense_0"]))
    update = norm(dense(hidden, block["feed_forward"]["dense_1"]), block["norm_1"])
    return norm(x + block["layer_scale_1"] * update, params["norm_0"])


def random_like(tree, seed=0):
    """Random float32 values of a tree of shapes."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), tree)


def test_the_plain_variant_follows_its_definition():
    config = BackboneConfig(
        width=4, depths=(1,), focal_levels=(2,), focal_windows=(3,), depthwise=False
    )
    images = np.random.default_rng(1).normal(size=(1, 32, 32, 3)).astype(np.float32)
    params = random_like(shapes(backbone(config), images))
    (got,) = backbone(config).apply({"params": params}, images)
    want = reference_plain_focalnet(params, images[0], 2, 3)
    np.testing.assert_allclose(got[0], want, atol=2e-4)


@functools.cache
def tiny_params():
    """Random parameters of a tiny backbone and pixel decoder."""
    return jax.tree.map(lambda x: 0.3 * x, random_like(encoder_shapes(TINY, TINY_FPN)))


def encode(params, images, key=None):
    """(maps, (mask features, levels)) of the tiny encoders."""
    maps = backbone(TINY).apply({"params": params["backbone"]}, images, key)
    return maps, pixel_decoder(TINY_FPN).apply({"params": params["pixel_decoder"]}, maps)


tiny_encode = jax.jit(encode)


def test_maps_have_the_strides_and_widths_promised():
    images = jax.ShapeDtypeStruct((2, 64, 96, 3), jnp.float32)
    maps, (mask, levels) = jax.eval_shape(encode, tiny_params(), images)
    assert [x.shape for x in maps] == [(2, 64 >> s, 96 >> s, 8 << s - 2) for s in (2, 3, 4, 5)]
    assert mask.shape == (2, 16, 24, 16)
    assert [x.shape for x in levels] == [(2, 64 >> s, 96 >> s, 16) for s in (5, 4, 3)]


def test_features_do_not_depend_on_batch_mates():
    images = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    others = images.at[1].set(0.0)
    got, want = (tiny_encode(tiny_params(), x) for x in (images, others))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(a[0], b[0])


def test_paths_drop_by_key_only_and_per_image():
    images = jnp.tile(jax.random.normal(jax.random.key(1), (1, 32, 32, 3)), (4, 1, 1, 1))
    maps = jax.jit(
        lambda key: backbone(TINY).apply({"params": tiny_params()["backbone"]}, images, key)
    )
    first, again, other = (maps(jax.random.key(seed))[-1] for seed in (2, 2, 3))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert len({np.asarray(x).tobytes() for x in first}) > 1


def test_dropped_paths_keep_the_mean():
    x = jnp.ones((4000, 1, 1, 1))
    dropped = drop_path(x, 0.3, jax.random.key(0))
    assert sorted(np.unique(dropped)) == pytest.approx([0, 1 / 0.7])
    assert float(dropped.mean()) == pytest.approx(1, abs=0.05)


def test_gradients_reach_every_parameter_of_the_encoders():
    images = jax.random.normal(jax.random.key(1), (1, 64, 32, 3))

    @jax.jit
    @jax.grad
    def gradient(params):
        leaves = jax.tree.leaves(encode(params, images))
        return sum(
            (jnp.sin(jnp.arange(1.0, x.size + 1)).reshape(x.shape) * x).sum() for x in leaves
        )

    for path, grad in jax.tree_util.tree_leaves_with_path(gradient(tiny_params())):
        assert np.isfinite(grad).all(), path
        shift = path[-2:] == (DictKey("key"), DictKey("bias"))  # the same for all keys: no effect
        assert shift or np.abs(grad).max() > 0, path


def test_bfloat16_is_near_float32_and_parameters_stay_float32():
    images = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    half = backbone(TINY, jnp.bfloat16)
    assert {x.dtype for x in jax.tree.leaves(shapes(half, images))} == {jnp.dtype(jnp.float32)}
    params = tiny_params()
    got = jax.jit(half.apply)({"params": params["backbone"]}, images.astype(jnp.bfloat16))
    for a, b in zip(got, tiny_encode(params, images)[0], strict=True):
        assert a.dtype == jnp.bfloat16
        assert np.abs(a.astype(jnp.float32) - b).mean() < 0.1 * np.abs(b).mean()


@pytest.mark.parametrize("size", [(40, 64), (64, 33)])
def test_sizes_that_do_not_divide_are_refused(size):
    with pytest.raises(ValueError, match="multiples of 32"):
        shapes(backbone(TINY), jnp.zeros((1, *size, 3)))


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"unknown backbone 'resnet'.*focalnet"):
        backbone(BackboneConfig(name="resnet"))
    with pytest.raises(ValueError, match=r"unknown pixel decoder 'unet'.*fpn"):
        pixel_decoder(PixelDecoderConfig(name="unet"))


def test_sine_positions_count_from_one_to_a_full_turn():
    got = sine_positions(3, 5, 8)
    assert got.shape == (3, 5, 8)
    angle = 2 * np.pi / 3  # of the first row
    np.testing.assert_allclose(got[0, 2, :2], [np.sin(angle), np.cos(angle)], atol=1e-5)
    slow = 2 * np.pi * 4 / 5 / 10000 ** (2 / 4)  # of the fourth column, second frequency
    np.testing.assert_allclose(got[1, 3, 6:], [np.sin(slow), np.cos(slow)], atol=1e-5)
    np.testing.assert_array_equal(got[0, :, :4], np.tile(got[0, :1, :4], (5, 1)))


def tiny_text(**changes):
    """(function, ids, valid): a tiny text encoder and three sentences, the last one empty."""
    config = dataclasses.replace(TINY_TEXT, **changes)
    module = TextEncoder(config)
    ids = np.random.default_rng(0).integers(1, 40, (3, 12)).astype(np.int32)
    valid = np.arange(12)[None] < np.array([5, 7, 0])[:, None]
    params = random_like(shapes(module, ids, valid))
    params = jax.tree.map(lambda x: 0.3 * x, params)
    return jax.jit(functools.partial(module.apply, {"params": params})), ids, valid


@pytest.mark.parametrize("causal", [True, False])
def test_sentences_do_not_depend_on_padding(causal):
    encode, ids, valid = tiny_text(causal=causal)
    want = encode(ids, valid)
    assert np.isfinite(want).all()
    other = encode(np.where(valid, ids, 3), valid)
    shorter = encode(ids[:, :7], valid[:, :7])
    np.testing.assert_allclose(want[valid], other[valid], atol=1e-5)
    np.testing.assert_allclose(want[valid], shorter[valid[:, :7]], atol=1e-5)


def test_only_a_causal_encoder_ignores_what_follows():
    for causal in (True, False):
        encode, ids, valid = tiny_text(causal=causal)
        changed = np.where(np.arange(12)[None] == 4, (ids + 1) % 40, ids).astype(np.int32)
        difference = np.abs(encode(ids, valid) - encode(changed, valid))[0, :4].max()
        assert (difference < 1e-5) == causal


def test_sentences_that_are_too_long_are_refused():
    with pytest.raises(ValueError, match=r"13 tokens.*context_length = 12"):
        shapes(TextEncoder(TINY_TEXT), jnp.zeros((1, 13), jnp.int32), jnp.ones((1, 13), bool))


def test_pooling_reads_the_end_token_or_the_words():
    tokens = jnp.arange(24, dtype=jnp.float32).reshape(4, 6, 1)
    valid = np.arange(6)[None] < np.array([5, 2, 0, 1])[:, None]
    assert pool(tokens, valid, "end")[:, 0].tolist() == [4, 7, 12, 18]
    assert pool(tokens, valid, "mean")[:, 0].tolist() == [2, 6.5, 0, 18]
    with pytest.raises(ValueError, match="unknown pooling 'max'"):
        pool(tokens, valid, "max")
