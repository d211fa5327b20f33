import jax
import numpy as np

from seem_jax import sharding
from seem_jax.config import MeshConfig
from seem_jax.models.seem import build
from seem_jax.training import state as states
from seem_jax.training.step import make_train_step, vocabulary
from tests.fakes import class_token_ids, fake_batch, tiny_config

QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # compile


def largest(tree) -> float:
    return max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


def test_encoders_learn_alone_in_the_first_steps_and_one_program_does_both():
    config = tiny_config()
    config.encoder_steps = 1
    mesh = sharding.make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    model = build(config.model)
    state = states.create(model, config, mesh, jax.random.key(0))
    names = vocabulary(model, states.merge(state), config, *class_token_ids(config))
    batch = sharding.put_batch(fake_batch(config, config.data.batch_size), mesh)
    with sharding.use(mesh):
        step = make_train_step(model, config, mesh).lower(state, batch, names).compile(QUICK)
        state, first = jax.device_get(step(state, batch, names))
        moments = [s.mu for s in jax.tree.leaves(state.opt_state, is_leaf=is_adam) if is_adam(s)]
        assert largest([m["decoder"]["layer_0"] for m in moments]) == 0
        assert largest([m["backbone"] for m in moments]) > 0
        weights = (config.loss.region_class, config.loss.region_phrase)
        terms = (first["region/class"], first["region/phrase"])
        np.testing.assert_allclose(first["loss"], 2 * np.dot(weights, terms), rtol=1e-5)
        assert first["object/class"] == 0  # the decoder was not asked
        _, second = jax.device_get(step(jax.device_put(state), batch, names))
    assert second["object/class"] > 0
    assert second["region/class"] > 0


def is_adam(node) -> bool:
    return hasattr(node, "mu")
