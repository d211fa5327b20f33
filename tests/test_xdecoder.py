"""X-Decoder's way to decode, which the parity runner adds to ours: the numbers of the official module."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from seem_jax.config import DecoderConfig
from seem_jax.convert import rules
from seem_jax.models.decoder.decoder import Decoder
from seem_jax.models.seem import mask_logits
from seem_jax.types import TextTokens
from tests import variant_goldens as goldens
from tests.parity.xdecoder import rules_for, smooth_levels

QUERIES, WIDTH, LAYERS = 5, 16, 4
CONFIG = DecoderConfig(
    width=WIDTH, num_layers=LAYERS, num_heads=2, mlp_width=24, num_object_queries=QUERIES
)


def inputs():
    """(mask features, levels, tokens) as the golden was computed with; image 1 has a padded token."""
    rng = np.random.RandomState(1)
    mask = rng.randn(2, 16, 24, WIDTH)
    levels = [rng.randn(2, height, height * 3 // 2, WIDTH) for height in (2, 4, 8)]
    tokens = rng.randn(2, 4, WIDTH)
    tokens[1, 3:] = 0
    valid = np.arange(4)[None] < np.array([[4], [3]])
    text = TextTokens(
        jnp.asarray(tokens, jnp.float32), jnp.asarray(valid), jnp.full((2, 4), -1, jnp.int32)
    )
    return jnp.asarray(mask, jnp.float32), [jnp.asarray(x, jnp.float32) for x in levels], text


def weights(decoder: Decoder, mask, levels) -> dict:
    """Parameters with the weights of the golden; what SEEM adds is zero and not used."""

    def touch(module):
        return module(module.prepare(mask, levels))

    tree = jax.eval_shape(lambda: decoder.init(jax.random.key(0), method=touch))
    shapes = flatten_dict({"decoder": nn.unbox(tree)["params"]}, sep="/")
    shared = {path: leaf for path, leaf in shapes.items() if path not in rules.SEEM_ONLY}
    zeros = {path: np.broadcast_to(np.int8(0), leaf.shape) for path, leaf in shared.items()}
    official = rules.official_state(unflatten_dict(zeros, sep="/"))
    state = goldens.official_weights({name: array.shape for name, array in official.items()})
    found = rules.convert_state(state, unflatten_dict(shared, sep="/"))
    added = {path: np.zeros(shapes[path].shape, np.float32) for path in shapes.keys() - shared}
    return unflatten_dict(flatten_dict(found, sep="/") | added, sep="/")["decoder"]


@pytest.fixture(scope="module")
def answers():
    """Outputs of every layer with phrases, and mask logits of the last."""
    mask, levels, text = inputs()
    decoder = Decoder(CONFIG, WIDTH)
    variables = {"params": weights(decoder, mask, levels)}

    def decode(text):
        features = smooth_levels(decoder.apply(variables, mask, levels, method="prepare"))
        with nn.intercept_methods(rules_for(QUERIES)):
            outputs = decoder.apply(variables, features, text, every_layer=True)
        both = jnp.concatenate([outputs.object.mask_embedding, outputs.text.mask_embedding], axis=2)
        return outputs, mask_logits(both[-1], features)

    with jax.default_matmul_precision("highest"):
        return jax.jit(decode)(text)


def test_answers_to_phrases_are_those_of_the_release(answers):
    outputs, masks = answers
    want = goldens.golden("xdecoder")
    captions = jnp.concatenate(
        [outputs.object.class_embedding, outputs.text.class_embedding[:, :, :-1]], axis=2
    )
    np.testing.assert_allclose(captions, want["captions"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(masks[:, :-1], want["masks"], rtol=1e-4, atol=1e-4)
