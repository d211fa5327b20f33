"""The decoder's layers in a loop say what they say one by one, and learn the same."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seem_jax.config_checks import validate
from seem_jax.types import Memory
from tests.fakes import tiny_config
from tests.test_decoder import BATCH, CONFIG, PROMPTS, WIDTH, draw_prompts, draw_text, images, make

TURNS = 2


@pytest.fixture(scope="module")
def made():
    return make(dataclasses.replace(CONFIG, num_layers=3 * TURNS))


def answers(decoder, params, *, text, visual, every_layer):
    """`visual`: "kept" or "read" tokens with memory, or None for the object queries alone."""
    variables = {"params": params}
    features = decoder.apply(variables, *images(3), method="prepare")
    if visual is None:
        return decoder.apply(variables, features, text, every_layer=every_layer)
    method = {"kept": "keep_points", "read": "read_points"}[visual]
    prompts = draw_prompts(4)
    prompts = jax.tree.map(lambda x: x[:, : x.shape[1] // PROMPTS * PROMPTS], prompts)
    tokens = decoder.apply(variables, features, prompts, PROMPTS, method=method)
    rng = np.random.default_rng(7)
    said = jnp.asarray(rng.normal(size=(BATCH, PROMPTS, WIDTH)), jnp.float32)
    memory = Memory(said, jnp.ones((BATCH, PROMPTS), bool))
    owner = np.sort(rng.integers(0, PROMPTS, (3 * TURNS, BATCH, CONFIG.num_memory)), -1)
    return decoder.apply(
        variables,
        features,
        text,
        tokens,
        memory,
        every_layer=every_layer,
        memory_index=jnp.asarray(owner, jnp.int32),
    )


@pytest.mark.parametrize("every_layer", [False, True])
@pytest.mark.parametrize(("text", "visual"), [(False, None), (True, "read"), (False, "kept")])
def test_scanned_layers_answer_as_those_one_by_one(made, text, visual, every_layer):
    decoder, params = made
    given = {
        "text": draw_text(5) if text else None,
        "visual": visual,
        "every_layer": every_layer,
    }
    want, got = (
        jax.jit(lambda params, d=each: answers(d, params, **given))(params)
        for each in (decoder, decoder.clone(scan_layers=True))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, want)


def test_scanned_layers_have_the_same_gradients_in_a_shorter_program(made):
    decoder, params = made

    def gradient(each):
        def total(params):
            found = answers(each, params, text=draw_text(5), visual="read", every_layer=True)
            return sum(
                jnp.sin(x).mean() for x in jax.tree.leaves(found) if jnp.isdtype(x, "real floating")
            )

        return jax.jit(jax.grad(total))

    one_by_one, scanned = gradient(decoder), gradient(decoder.clone(scan_layers=True))
    want, got = one_by_one(params), scanned(params)
    largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(want))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * largest), got, want)
    assert float(jnp.abs(want["layer_4"]["feed_forward"]["dense_0"]["kernel"]).max()) > 0
    products = [each.lower(params).as_text().count("dot_general") for each in (one_by_one, scanned)]
    assert products[1] < 0.7 * products[0]


def test_parameters_made_by_a_scanning_decoder_lie_by_layer(made):
    decoder, _ = made
    one_by_one, scanned = (
        jax.eval_shape(
            lambda key, d=each: d.init(
                key, *images(0), method=lambda module, *maps: module(module.prepare(*maps))
            ),
            jax.random.key(0),
        )
        for each in (decoder, decoder.clone(scan_layers=True))
    )
    assert "layer_5" in scanned["params"]
    assert jax.tree.structure(one_by_one) == jax.tree.structure(scanned)


def test_layers_that_make_no_whole_turns_are_named():
    config = tiny_config()  # with two layers
    config.scan_layers = True
    with pytest.raises(
        ValueError, match=r"scan_layers = True: .*num_layers is not a multiple of 3"
    ):
        validate(config)
