"""Explicit positions: what mask features and drawn points say of where they are."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from seem_jax.models.decoder.decoder import Decoder
from seem_jax.nn.positions import sine_at, sine_positions
from seem_jax.types import Memory
from tests.test_decoder import BATCH, CONFIG, PROMPTS, WIDTH, draw_prompts, images

LOCATED = dataclasses.replace(CONFIG, explicit_positions=True)


@pytest.mark.parametrize(("height", "width"), [(5, 7), (16, 24), (1, 3)])
def test_a_point_on_a_pixel_has_the_position_of_that_pixel(height, width):
    row, column = np.mgrid[:height, :width].astype(np.float32)
    points = np.stack([column / max(width - 1, 1), row / max(height - 1, 1)], axis=-1)
    np.testing.assert_allclose(
        sine_at(jnp.asarray(points), height, width, 16),
        sine_positions(height, width, 16),
        atol=1e-5,
    )


@pytest.fixture(scope="module")
def made():
    """(parameters, image, prompts whose points lie on pixels of all maps)."""
    mask, levels = images(0)
    prompts = draw_prompts(1)
    corners = jnp.round(prompts.points)  # the corners are pixels of every map

    def touch(module, mask, levels, prompts):
        features = module.prepare(mask, levels)
        visual = module.read_points(features, prompts, PROMPTS)
        return module(features, None, visual, Memory(visual.pooled, visual.prompt_valid))

    init = Decoder(CONFIG, WIDTH).init(jax.random.key(0), mask, levels, prompts, method=touch)
    return nn.unbox(init["params"]), (mask, levels), prompts.replace(points=corners)


def read(config, made, located=None):
    params, image, prompts = made

    def both(module, mask, levels):
        features = module.prepare(mask, levels)
        return features, module.read_points(features, prompts, PROMPTS, located)

    return Decoder(config, WIDTH).apply({"params": params}, *image, method=both)


def test_mask_features_and_tokens_hold_their_positions(made):
    plain, tokens = read(CONFIG, made)
    features, located = read(LOCATED, made)
    where = sine_positions(*plain.mask.shape[1:])
    np.testing.assert_allclose(features.mask, plain.mask + where[None], atol=1e-5)
    for level, got, want in zip(plain.levels, located.levels, tokens.levels):
        place = sine_at(made[2].points, *level.shape[1:])
        np.testing.assert_allclose(got, want + place, atol=1e-5)
    assert np.abs(np.asarray(located.pooled - tokens.pooled)).max() > 0.1


def test_opposed_tokens_of_not_this_are_minus_what_is_there_and_where(made):
    params, _, prompts = made
    unwanted = params["sign_embedding"][None, None, 1]
    _, plain = read(LOCATED, made)
    _, opposed = read(dataclasses.replace(LOCATED, opposed_points=True), made)
    wanted = prompts.positive[..., None]
    assert wanted.any() and not wanted.all()
    for got, level in zip(opposed.levels, plain.levels):
        turned = jnp.where(wanted, level, unwanted - (level - unwanted))
        np.testing.assert_allclose(got, turned, atol=1e-5)
    np.testing.assert_array_equal(opposed.pooled, plain.pooled)


def test_a_prompt_for_another_image_does_not_say_where_it_was_drawn(made):
    _, plain = read(CONFIG, made)
    _, located = read(LOCATED, made)
    first = jnp.arange(PROMPTS)[None] == jnp.zeros(
        (BATCH, 1), jnp.int32
    )  # only prompt 0 is located
    _, mixed = read(LOCATED, made, first)
    own = (made[2].prompt == 0)[..., None]
    for got, with_place, without in zip(mixed.levels, located.levels, plain.levels):
        np.testing.assert_allclose(got, jnp.where(own, with_place, without), atol=1e-5)
    np.testing.assert_allclose(mixed.pooled[:, 0], located.pooled[:, 0], atol=1e-5)
    np.testing.assert_allclose(mixed.pooled[:, 1:], plain.pooled[:, 1:], atol=1e-5)


def test_without_explicit_positions_nothing_is_located(made):
    nobody = jnp.zeros((BATCH, PROMPTS), bool)
    for got, want in zip(
        jax.tree.leaves(read(CONFIG, made, nobody)), jax.tree.leaves(read(CONFIG, made))
    ):
        np.testing.assert_array_equal(got, want)
