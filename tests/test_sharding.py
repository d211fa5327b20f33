import contextlib
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from seem_jax import losses, sharding
from seem_jax.config import MeshConfig
from seem_jax.losses import matcher
from seem_jax.models.seem import build
from seem_jax.training import state as states
from seem_jax.training import step as training_step
from seem_jax.training.step import make_train_step, vocabulary
from tests.fakes import class_token_ids, fake_batch, tiny_config

BATCH = 8
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # compile


def two_steps(mesh_config, devices):
    """(metrics, matching) of two training steps and the parameters after them, on a mesh."""
    config = tiny_config()
    config.mesh = mesh_config
    config.data.batch_size = BATCH
    mesh = sharding.make_mesh(config.mesh, devices)
    model = build(config.model)
    state = states.create(model, config, mesh, jax.random.key(0))
    names = vocabulary(model, states.merge(state), config, *class_token_ids(config))
    batch = sharding.put_batch(fake_batch(config, BATCH), mesh)
    step = make_train_step(model, config, state)
    seen, matching = [], []
    with sharding.use(mesh), matching_in_metrics():
        compiled = step.lower(state, batch, names).compile(QUICK)
        for _ in range(2):
            state, metrics = compiled(state, batch, names)
            matching.append({n: np.asarray(metrics.pop(n)) for n in MATCHED})
            seen.append({name: float(value) for name, value in metrics.items()})
    return seen, matching, state


MATCHED = ("object", "text", "visual")


@contextlib.contextmanager
def matching_in_metrics():
    """Inside, a traced training step also gives the slot of each target, by branch."""
    caught = {}

    def match(*arguments):
        caught.update(matcher.match.original(*arguments))
        return dict(caught)

    def total_loss(*arguments, **options):
        loss, metrics = losses.total_loss(*arguments, **options)
        return loss, metrics | caught

    match.original = matcher.match
    with (
        mock.patch.object(matcher, "match", match),
        mock.patch.object(training_step, "total_loss", total_loss),
    ):
        yield


@pytest.fixture(scope="module")
def alone():
    return two_steps(MeshConfig(), jax.devices()[:1])


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (2, 2, 2)], ids=str)
def test_eight_devices_say_what_one_says(alone, sizes):
    want, want_matching, want_state = alone
    got, got_matching, got_state = two_steps(MeshConfig(*sizes), jax.devices())
    for name in MATCHED:  # the same slot for every target, in every layer and image
        slots = got_matching[0][name]
        assert slots.shape[:2] == (3, BATCH)
        assert (slots >= 0).any()
        np.testing.assert_array_equal(slots, want_matching[0][name])
    for name, value in want[0].items():
        tolerance = 1e-4 if name == "grad_norm" else 1e-5
        assert got[0][name] == pytest.approx(value, rel=tolerance, abs=1e-6), name
    assert got[1]["loss"] == pytest.approx(want[1]["loss"], rel=1e-3)
    differences = jax.tree.map(
        lambda a, b: float(jnp.abs(a - np.asarray(b)).max()),
        want_state.trainable,
        jax.device_get(got_state.trainable),
    )
    # Adam's first steps are the signs of gradients, so rounding may turn single entries around.
    assert np.mean(jax.tree.leaves(differences)) < 1e-3


def test_parameters_and_moments_are_split_where_the_rules_say():
    config = tiny_config()
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    state = states.abstract(build(config.model), config, mesh)
    specs = {leaf.sharding.spec for leaf in jax.tree.leaves(state.trainable)}
    used = {axis for spec in specs for axis in spec}
    assert {"fsdp", "tensor"} <= used
    param = state.trainable["decoder"]["mask_mlp"]["dense_0"]["kernel"]
    moments = [
        leaf.sharding.spec
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state)
        if "mask_mlp/dense_0/kernel" in jax.tree_util.keystr(path, simple=True, separator="/")
    ]
    assert moments == [param.sharding.spec] * 2
    assert state.step.sharding.spec == PartitionSpec()


def test_an_axis_that_does_not_divide_is_left_whole():
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=8, tensor=1))
    assert sharding._fitting((6, 8), jax.NamedSharding(mesh, PartitionSpec("fsdp", None))).spec == (
        PartitionSpec(None, None)
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MeshConfig(data=3), r"\(3, 1, 1\) on 8 devices"),
        (MeshConfig(data=-1, fsdp=-1), "at most one of them -1"),
        (MeshConfig(data=0), "positive sizes"),
        (MeshConfig(data=-1, tensor=16), "8 devices"),
    ],
)
def test_meshes_that_do_not_fit_the_devices_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(config)


def test_a_batch_that_cannot_be_split_is_refused():
    mesh = sharding.make_mesh(MeshConfig(data=4, fsdp=2))
    with pytest.raises(ValueError, match=r"batch_size = 12.*multiple of 8"):
        sharding.check_batch_size(mesh, 12)
