"""Gradient accumulation and rematerialisation change memory, not results; bfloat16 trains on a mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seem_jax import sharding
from seem_jax.config import MeshConfig
from seem_jax.config_checks import validate
from seem_jax.models.seem import build, initialise
from seem_jax.training import state as states
from seem_jax.training.accumulation import accumulated
from seem_jax.training.rematerialisation import rematerialised
from seem_jax.training.step import make_train_step, vocabulary
from tests.fakes import class_token_ids, fake_batch, tiny_config
from tests.test_sharding import QUICK


def toy_gradient(weights, batch, key):
    """((value, metrics), gradients) with a random number for each part."""
    noise = jax.random.uniform(key)
    value = (batch["x"] * weights["w"][None]).mean() + noise
    return (value, {"noise": noise}), {"w": batch["x"].mean(0) * noise}


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2, 1)], ids=str)
def test_the_parts_of_a_batch_are_averaged_each_with_its_own_key(sizes):
    mesh = sharding.make_mesh(MeshConfig(*sizes), jax.devices()[: int(np.prod(sizes))])
    weights, key = {"w": jnp.arange(3.0)}, jax.random.key(0)
    x = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    batch = sharding.put_batch({"x": x}, mesh)
    run = jax.jit(lambda b: accumulated(toy_gradient, weights, b, key, parts=3, mesh=mesh))
    with sharding.use(mesh):
        (value, metrics), grads = run(batch)
    keys = [jax.random.fold_in(key, part) for part in range(3)]
    each = [toy_gradient(weights, {"x": x[part::3]}, keys[part]) for part in range(3)]
    want = jax.tree.map(lambda *leaves: sum(leaves) / 3, *each)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ((value, metrics), grads), want
    )


def test_one_part_is_the_batch_as_it_was():
    out = accumulated(lambda *given: given, {"w": 1}, "batch", "key", parts=1, mesh=None)
    assert out == ({"w": 1}, "batch", "key")


def test_policies_keep_less_and_say_the_same():
    config = tiny_config()
    model = build(config.model)
    rng = np.random.default_rng(0)
    shapes = sharding.unbox(jax.eval_shape(lambda key: initialise(model, key), jax.random.key(0)))
    params = jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32), shapes)
    ids, valid = (x.reshape(-1, x.shape[-1]) for x in class_token_ids(config))

    def loss(name):
        learner = rematerialised(model, name)

        def value(params):  # the text encoder, a part like the others and quick to compile
            return learner.apply({"params": params}, ids, valid, method="encode_text")[1].sum()

        return value

    def kept(name):
        residuals = jax.eval_shape(lambda p: jax.vjp(loss(name), p)[1], params)
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(residuals))

    assert kept("parts") < kept("products") < kept("")
    want = jax.jit(jax.value_and_grad(loss("")))(params)
    for name in ("products", "parts"):
        got = jax.jit(jax.value_and_grad(loss(name)))(params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got, want)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("accumulate", 3, "a divisor of data.batch_size = 2"), ("rematerialise", "all", '"products"')],
)
def test_values_that_do_not_fit_are_named(field, value, message):
    config = dataclasses.replace(tiny_config(), **{field: value})
    with pytest.raises(ValueError, match=message):
        validate(config)


def one_step(**changes):
    """(metrics, parameters) after one step on eight devices."""
    config = tiny_config()
    config.data.batch_size, config.mesh = 16, MeshConfig(2, 2, 2)
    config.model.dtype = changes.pop("dtype", "float32")
    config.model.decoder.num_layers = 3
    config = dataclasses.replace(config, **changes)
    mesh, model = sharding.make_mesh(config.mesh), build(config.model)
    state = states.create(model, config, mesh, jax.random.key(0))
    names = vocabulary(model, states.merge(state), config, *class_token_ids(config))
    batch = sharding.put_batch(fake_batch(config, 16), mesh)
    with sharding.use(mesh):
        step = make_train_step(model, config, state).lower(state, batch, names).compile(QUICK)
        state, metrics = jax.device_get(step(state, batch, names))
    return {name: float(value) for name, value in metrics.items()}, state.trainable


@pytest.mark.slow
def test_whole_steps_agree_whatever_is_kept_and_train_in_parts_and_in_bfloat16():
    want, params = one_step()
    for changes in (
        {"rematerialise": "products"},
        {"rematerialise": "parts"},
        {"scan_layers": True},
    ):
        got, other = one_step(**changes)
        assert got["loss"] == pytest.approx(want["loss"], rel=1e-5)
        gaps = jax.tree.map(lambda a, b: float(np.abs(a - b).mean()), params, other)
        assert max(jax.tree.leaves(gaps)) < 1e-3
    for changes in ({"accumulate": 2}, {"dtype": "bfloat16"}):
        got, _ = one_step(**changes)
        assert got["finite"] == 1
        assert got["loss"] == pytest.approx(want["loss"], rel=0.2)
