from pathlib import Path

import jax
import numpy as np
import pytest

from seem_jax import sharding
from seem_jax.config import MeshConfig
from seem_jax.config_files import load_config
from seem_jax.models.seem import build
from seem_jax.training import state as states
from seem_jax.training.step import make_train_step, vocabulary
from tests.fakes import class_token_ids, fake_batch, tiny_config

ROOT = Path(__file__).parents[1]
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # compile


def largest(tree) -> float:
    return max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


def test_encoders_learn_alone_where_the_decoder_is_left_out():
    config = tiny_config()
    mesh = sharding.make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    model = build(config.model)
    state = states.create(model, config, mesh, jax.random.key(0))
    names = vocabulary(model, states.merge(state), config, *class_token_ids(config))
    batch = sharding.put_batch(fake_batch(config, config.data.batch_size), mesh)
    with sharding.use(mesh):
        encoders, step = (
            make_train_step(model, config, state, decoder=decoder)
            .lower(state, batch, names)
            .compile(QUICK)
            for decoder in (False, True)
        )
        state, first = jax.device_get(encoders(state, batch, names))
        moments = [s.mu for s in jax.tree.leaves(state.opt_state, is_leaf=is_adam) if is_adam(s)]
        assert largest([m["decoder"]["layer_0"] for m in moments]) == 0
        assert largest([m["backbone"] for m in moments]) > 0
        names_of_terms = ("class", "phrase", "bce", "dice")
        weights = [getattr(config.loss, f"region_{name}") for name in names_of_terms]
        terms = [first[f"region/{name}"] for name in names_of_terms]
        np.testing.assert_allclose(first["loss"], 2 * np.dot(weights, terms), rtol=1e-5)
        assert "object/class" not in first and "num_rounds" not in first
        _, second = jax.device_get(step(jax.device_put(state), batch, names))
    assert second["object/class"] > 0
    assert second["region/class"] > 0


@pytest.mark.slow
def test_a_step_of_the_official_size_runs_at_256_pixels_and_moves_what_is_not_frozen():
    """configs/focalt.py as it stands but for the image and the batch: some minutes, some 8 GB."""
    config = load_config(ROOT / "configs/focalt.py")
    config.data.image_size, config.data.batch_size = 256, 1
    mesh = sharding.make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    model = build(config.model)
    state = states.create(model, config, mesh, jax.random.key(0))
    names = vocabulary(model, states.merge(state), config, *class_token_ids(config))
    batch = sharding.put_batch(fake_batch(config, 1), mesh)
    before = jax.device_get(state.trainable)
    with sharding.use(mesh):
        step = make_train_step(model, config, state).lower(state, batch, names).compile(QUICK)
        state, metrics = jax.device_get(step(state, batch, names))
    assert metrics["finite"] == 1 and metrics["loss"] > 0 and metrics["grad_norm"] > 0
    assert set(state.trainable) == {"decoder"}  # officially, the encoders are frozen
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), before, state.trainable)
    assert np.mean(jax.tree.leaves(moved)) > 0.9


def is_adam(node) -> bool:
    return hasattr(node, "mu")
