"""NaN and Inf in six places of a training step: found in that step, told with its term, nothing changed.

All six share a program that takes most of a minute to compile; for every commit, test_train.py poisons one
batch of a real run and test_loop.py has what a run does about it.
"""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seem_jax import losses, sharding
from seem_jax.config import MeshConfig
from seem_jax.models.seem import build
from seem_jax.training import state as states
from seem_jax.training import step as training_step
from seem_jax.training.progress import not_finite
from seem_jax.training.step import make_train_step, vocabulary
from tests.fakes import class_token_ids, fake_batch, tiny_config

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
PLACES = ("pixels", "mask", "text", "term", "gradient", "optimizer")
TERMS = {  # a term that the message must name
    "pixels": "object/class",
    "mask": "object/dice",
    "text": "text/class",
    "term": "visual/dice",
    "gradient": "grad_norm",
    "optimizer": "update_norm",
}
GOOD = 7  # a sample id that poisons nothing


@jax.custom_vjp
def poison_gradient(x, bad):
    return x


poison_gradient.defvjp(lambda x, bad: (x, bad), lambda bad, g: (g + bad, jnp.zeros(())))


class Poisoned:
    """A model that goes wrong where the first sample id of the batch says: 100 + place NaN, 200 + Inf."""

    def __init__(self, model):
        self._model = model

    def __getattr__(self, name):
        return getattr(self._model, name)

    def bad(self, place):
        number = PLACES.index(place)
        nan, inf = self.code == 100 + number, self.code == 200 + number
        return jnp.where(nan, jnp.nan, jnp.where(inf, jnp.inf, 0.0)).astype(jnp.float32)

    def apply(self, variables, *arguments, method, **options):
        if method == "encode_image":
            image, *rest = arguments
            arguments = (image.astype(jnp.float32) + self.bad("pixels"), *rest)
            params = jax.tree.map(
                lambda x: poison_gradient(x, self.bad("gradient")), variables["params"]
            )
            variables = {"params": params}
        out = self._model.apply(variables, *arguments, method=method, **options)
        if method == "encode_image":
            return out.replace(mask=out.mask + self.bad("mask"))
        if method == "encode_text":
            return out[0], out[1] + self.bad("text")
        return out

    def loss_and_metrics(self, model, config, mesh, params, batch, *rest, **options):
        self.code = batch.sample_id[0]
        return LOSS(model, config, mesh, params, batch, *rest, **options)

    def total_loss(self, *arguments, **options):
        loss, metrics = losses.total_loss(*arguments, **options)
        bad = self.bad("term")
        return loss + bad, metrics | {"visual/dice": metrics["visual/dice"] + bad}


LOSS = training_step.loss_and_metrics


@pytest.fixture(scope="module")
def trained():
    """(compiled step, state on the host, names, mesh, configuration) of the tiny model, poisonable."""
    config = tiny_config()
    config.mesh = MeshConfig(1, 1, 1)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    model = build(config.model)
    state = states.create(model, config, mesh, jax.random.key(0))
    names = vocabulary(model, states.merge(state), config, *class_token_ids(config))
    poisoned = Poisoned(model)
    batch = sharding.put_batch(fake_batch(config), mesh)
    with (
        mock.patch.object(training_step, "loss_and_metrics", poisoned.loss_and_metrics),
        mock.patch.object(training_step, "total_loss", poisoned.total_loss),
        sharding.use(mesh),
    ):
        step = make_train_step(poisoned, config, state).lower(state, batch, names).compile(QUICK)
    return step, jax.device_get(state), names, mesh, config


def take(trained, state, code, seed):
    """(state on the host, metrics, sample ids) after a step from `state`, which stays as it is."""
    step, like, names, mesh, config = trained
    batch = fake_batch(config, seed=seed)
    batch = batch.replace(sample_id=np.array([code, seed], np.int32))
    whole = sharding.replicated(mesh)
    state = jax.device_put(jax.tree.map(np.array, state), whole)
    with sharding.use(mesh):
        after, metrics = step(state, sharding.put_batch(batch, mesh), names)
    return jax.device_get(after), {n: float(v) for n, v in metrics.items()}, batch.sample_id


@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize("place", PLACES)
def test_it_is_found_in_the_same_step_and_changes_no_weight(trained, place, value):
    _, start, _, _, config = trained
    code = GOOD if place == "optimizer" else (100 if value == "nan" else 200) + PLACES.index(place)
    for seed in range(3):
        state = start
        if place == "optimizer":
            state = jax.tree.map(np.array, start)
            leaf = max(jax.tree.leaves(state.opt_state), key=np.size)
            leaf.reshape(-1)[seed] = np.float32(value)
        after, metrics, ids = take(trained, state, code, seed)
        assert metrics.pop("finite") == 0
        assert not np.isfinite(metrics[TERMS[place]])
        message = not_finite(1, ids, metrics, config)
        assert TERMS[place] in message.split(" not finite")[0]
        assert f"records [{code}, {seed}]" in message
        for name in ("trainable", "opt_state"):
            jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(state, name))
        assert int(after.step) == int(state.step) + 1


def test_the_step_after_a_skipped_one_is_an_ordinary_one(trained):
    """And its schedule counts the steps that were applied: the rate is that of the first step."""
    _, start, _, _, _ = trained
    _, first, _ = take(trained, start, GOOD, 0)
    skipped, _, _ = take(trained, start, 100, 0)
    after, metrics, _ = take(trained, skipped, GOOD, 1)
    assert metrics["finite"] == first["finite"] == 1
    assert metrics["learning_rate"] == first["learning_rate"]
    assert int(after.step) == int(start.step) + 2
    moved = jax.tree.map(lambda a, b: (a != b).any(), after.trainable, start.trainable)
    assert np.mean(jax.tree.leaves(moved)) > 0.9
