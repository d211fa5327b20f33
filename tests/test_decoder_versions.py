"""The official versions of the decoder (v0, v1, demo) are values of one configuration."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from seem_jax.config import RELEASES, DecoderConfig, as_released
from seem_jax.models.decoder.decoder import Decoder
from seem_jax.types import Memory
from tests.plain_decoder import plain_decode
from tests.test_decoder import BATCH, CONFIG, PROMPTS, WIDTH, draw_prompts, draw_text, images

SHARED = dataclasses.replace(CONFIG, rules="shared", empty_pooled=0.0)


def make(config):
    """A decoder with random parameters everywhere, norms and biases too."""
    decoder = Decoder(config, WIDTH)
    mask, levels = images(0)

    def touch(module, mask, levels, prompts):
        features = module.prepare(mask, levels)
        return module(features, None, module.read_points(features, prompts, PROMPTS))

    params = nn.unbox(
        decoder.init(jax.random.key(0), mask, levels, draw_prompts(1), method=touch)["params"]
    )
    keys = iter(jax.random.split(jax.random.key(1), 1000))
    return decoder, jax.tree.map(lambda p: p + 0.1 * jax.random.normal(next(keys), p.shape), params)


def decode(decoder, params, prompts, text=None, number=PROMPTS, **options):
    """(visual tokens, outputs of every layer) on the images of seed 3."""
    variables = {"params": params}
    with jax.default_matmul_precision("highest"):
        features = decoder.apply(variables, *images(3), method="prepare")
        visual = decoder.apply(variables, features, prompts, number, method="read_points")
        return visual, decoder.apply(variables, features, text, visual, every_layer=True, **options)


def test_shared_queries_are_those_of_the_plain_decoder():
    decoder, params = make(SHARED)
    prompts, text = draw_prompts(4), draw_text(5)
    visual, got = decode(decoder, params, prompts, text)
    with jax.default_matmul_precision("highest"):
        want = plain_decode(
            params, SHARED, *images(3), text=text, prompts=prompts, num_prompts=PROMPTS
        )
    for name in ("mask_embedding", "class_embedding"):
        expected = jnp.stack(want[name])
        for group in (got.object, got.text, got.visual):
            np.testing.assert_allclose(getattr(group, name), expected, rtol=1e-3, atol=1e-4)
    similarity = np.einsum("bqd,bpd->bpq", want["mask_embedding"][-1], visual.pooled)
    np.testing.assert_array_equal(got.visual_choice, similarity.argmax(-1))


def test_shared_queries_answer_prompts_although_no_objects_are_asked_for():
    decoder, params = make(SHARED)
    _, all_of_it = decode(decoder, params, draw_prompts(4))
    _, lean = decode(decoder, params, draw_prompts(4), objects=False)
    np.testing.assert_array_equal(all_of_it.visual.mask_embedding, lean.visual.mask_embedding)


def test_shared_queries_have_no_memory():
    decoder, params = make(SHARED)
    prompts = draw_prompts(4)
    memory = Memory(jnp.zeros((BATCH, PROMPTS, WIDTH)), jnp.ones((BATCH, PROMPTS), bool))
    with pytest.raises(ValueError, match="memory was given"):
        decode(decoder, params, prompts, memory=memory)


def test_v0_copies_every_object_query_in_order_and_pools_nothing_to_zero():
    config = dataclasses.replace(CONFIG, queries_per_prompt=7, empty_pooled=0.0)
    decoder, params = make(config)
    prompts = draw_prompts(4)
    prompts = prompts.replace(
        prompt=jnp.zeros_like(prompts.prompt),
        positive=prompts.positive.at[1].set(False),  # image 1 has negative points only
    )
    visual, got = decode(decoder, params, prompts, number=1)
    np.testing.assert_array_equal(visual.pooled[1], 0.0)
    with jax.default_matmul_precision("highest"):
        want = plain_decode(
            params,
            config,
            *images(3),
            prompts=prompts,
            num_prompts=1,
            query_index=jnp.tile(jnp.arange(7)[None], (BATCH, 1)),
        )
    np.testing.assert_allclose(visual.pooled, want["pooled"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        got.visual.mask_embedding,
        jnp.stack(want["mask_embedding"])[:, :, 7:],
        rtol=1e-3,
        atol=1e-4,
    )


def test_versions_differ_in_the_decoder_only_and_v1_is_the_default():
    assert as_released(DecoderConfig(), "v1") == DecoderConfig()
    assert (
        as_released(DecoderConfig(), "v0").queries_per_prompt == DecoderConfig().num_object_queries
    )
    assert set(RELEASES) == {"v0", "v1", "demo"}
    with pytest.raises(ValueError, match="unknown version 'v2'"):
        as_released(DecoderConfig(), "v2")
