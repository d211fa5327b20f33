"""Random outputs with a fake batch and drawn points, and the loss of them, term by term and whole."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seem_jax import losses
from seem_jax.config import LossConfig
from seem_jax.losses import PointDraws
from seem_jax.losses.text import normalise
from seem_jax.types import Features, Outputs, SlotOutputs, VisualTokens
from tests.fakes import NUM_CLASSES, fake_batch, tiny_config

LAYERS, IMAGES, WIDTH, PER_PROMPT = 2, 2, 32, 3
CONFIG = LossConfig(num_points=16, cost_class=3.0, text_dice=0.7)
NUM_CANDIDATES, NUM_UNCERTAIN = 48, 12
SCALE = jnp.float32(2.0)


def make_case(seed=0):
    """(outputs, visual tokens, features, batch, table, phrase embedding, draws) of random numbers."""
    rng = np.random.default_rng(seed)
    config = tiny_config()
    batch = fake_batch(config, IMAGES, seed=4)
    assert batch.phrases.masks.valid[0].all()
    batch.phrases.group[0] = [5, 7, 5]  # two phrases of the first image have the same text
    sizes = {
        "object": batch.objects.label.shape[1],
        "text": batch.phrases.group.shape[1],
        "visual": batch.prompt_masks.plane.shape[1],
    }
    num_queries = config.model.decoder.num_object_queries

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    def uniform(*shape):
        return jnp.asarray(rng.random(shape), jnp.float32)

    def slots(number):
        return SlotOutputs(
            mask_embedding=normal(LAYERS, IMAGES, number, WIDTH),
            class_embedding=normal(LAYERS, IMAGES, number, WIDTH),
        )

    outputs = Outputs(
        object=slots(num_queries),
        text=slots(num_queries),
        visual=slots(PER_PROMPT * sizes["visual"]),
        visual_choice=None,
    )
    visual = VisualTokens(
        levels=(),
        prompt=jnp.asarray(batch.strokes.prompt),
        valid=jnp.asarray(batch.strokes.valid),
        pooled=normal(IMAGES, sizes["visual"], WIDTH),
        prompt_valid=jnp.asarray(batch.prompt_masks.valid),
    )
    features = Features(
        mask=normal(IMAGES, 16, 16, WIDTH),
        levels=tuple(normal(IMAGES, side, side, WIDTH) for side in (4, 8, 16)),
        mask_levels=(),
        keys=(),
        values=(),
    )
    points = {}
    for name, size in sizes.items():
        points[f"match_{name}"] = uniform(LAYERS, IMAGES, CONFIG.num_points, 2)
        points[f"candidates_{name}"] = uniform(LAYERS, IMAGES, size, NUM_CANDIDATES, 2)
        rest = CONFIG.num_points - NUM_UNCERTAIN
        points[f"rest_{name}"] = uniform(LAYERS, IMAGES, size, rest, 2)
    table = normalise(normal(NUM_CLASSES, WIDTH))
    return outputs, visual, features, batch, table, normal(IMAGES, 3, WIDTH), PointDraws(**points)


@jax.jit
def run(outputs, visual, features, batch, table, phrases, draws):
    key = jax.random.key(0)
    return losses.terms(
        outputs,
        visual,
        features,
        batch,
        table,
        phrases,
        SCALE,
        CONFIG,
        key,
        draws,
        None,
    )


@partial(jax.jit, static_argnames="mesh")
def whole(outputs, visual, features, batch, table, phrases, key, mesh=None):
    def loss(outputs, features, table, phrases, scale):
        return losses.total_loss(
            outputs,
            visual,
            features,
            batch,
            table,
            phrases,
            scale,
            CONFIG,
            key,
            mesh=mesh,
        )

    return jax.value_and_grad(loss, argnums=(0, 1, 2, 3, 4), has_aux=True)(
        outputs, features, table, phrases, SCALE
    )


@pytest.fixture(scope="module")
def case():
    return make_case()


@pytest.fixture(scope="module")
def result(case):
    return run(*case)
