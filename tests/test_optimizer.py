import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seem_jax import sharding
from seem_jax.config import OptimizerConfig
from seem_jax.models.seem import build
from seem_jax.training import optimizer, state
from tests.fakes import tiny_config


def rates(config, num_steps):
    rate = optimizer.schedule(config, num_steps)
    return np.array([float(rate(jnp.int32(step))) for step in range(num_steps)])


@pytest.fixture(scope="module")
def abstract_params():
    config = tiny_config()
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    return state.abstract(build(config.model), config, mesh).trainable


def paths(tree, wanted):
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(k, simple=True, separator="/") for k, v in leaves if v == wanted}


def test_official_schedule_drops_to_a_tenth_twice():
    got = rates(OptimizerConfig(warmup_steps=10), 1000)
    np.testing.assert_allclose(got[:10], 1e-4 * np.arange(1, 11) / 10, rtol=1e-5)
    np.testing.assert_allclose(got[[10, 887]], 1e-4, rtol=1e-6)
    np.testing.assert_allclose(got[[889, 961]], 1e-5, rtol=1e-5)
    np.testing.assert_allclose(got[[963, 999]], 1e-6, rtol=1e-5)


def test_cosine_schedule_ends_at_its_share():
    config = OptimizerConfig(schedule="cosine", learning_rate=1e-3, warmup_steps=20)
    got = rates(config, 500)
    assert got.argmax() in (19, 20)
    assert got[-1] == pytest.approx(0.02e-3, rel=0.01)
    assert np.all(np.diff(got[20:]) < 0)


def test_norms_and_embedding_tables_do_not_decay_and_all_else_does(abstract_params):
    decays = optimizer.decays(abstract_params)
    still = paths(decays, False)
    assert {path for path in still if path.endswith("/scale")} == {
        path for path in paths(decays, False) | paths(decays, True) if path.endswith("/scale")
    }
    tables = {path for path in still if not path.endswith(("/scale", "/bias"))}
    assert {path.split("/")[-1] for path in tables} == optimizer.EMBEDDINGS
    decaying = paths(decays, True)
    assert "decoder/mask_mlp/dense_0/bias" in decaying  # biases decay, as officially
    assert "decoder/class_embedding" in decaying


def test_parts_have_their_share_of_the_learning_rate(abstract_params):
    config = OptimizerConfig(backbone_multiplier=0.1, text_multiplier=0.5)
    shares = optimizer.multipliers(abstract_params, config)
    assert set(jax.tree.leaves(shares["backbone"])) == {0.1}
    assert {shares["logit_scale"], shares["text_projection"]} == {0.5}
    assert set(jax.tree.leaves(shares["decoder"])) == {1.0}


def test_an_update_is_that_of_adamw_with_parameter_groups():
    config = OptimizerConfig(
        learning_rate=0.01, warmup_steps=0, weight_decay=0.1, clip_norm=1.0, backbone_multiplier=0.5
    )
    params = {
        "backbone": {"kernel": jnp.float32([2.0])},
        "decoder": {"norm": {"scale": jnp.ones(1)}},
    }
    grads = {
        "backbone": {"kernel": jnp.float32([3.0])},
        "decoder": {"norm": {"scale": jnp.float32([4.0])}},
    }
    tx = optimizer.make(config, 100)
    updates, _ = tx.update(grads, tx.init(params), params)
    # The first Adam step is the sign of the gradient; clipping keeps it, up to epsilon.
    np.testing.assert_allclose(
        updates["backbone"]["kernel"], -0.01 * 0.5 * (1 + 0.1 * 2), rtol=1e-5
    )
    np.testing.assert_allclose(updates["decoder"]["norm"]["scale"], -0.01, rtol=1e-5)


def test_frozen_parts_are_split_off_with_the_text_projection_and_the_scale(abstract_params):
    trainable, frozen = optimizer.split(abstract_params, ("backbone", "pixel_decoder", "text"))
    assert set(trainable) == {"decoder"}
    assert set(frozen) == {"backbone", "pixel_decoder", "text", "text_projection", "logit_scale"}


@pytest.mark.parametrize(
    ("frozen", "message"),
    [(("bakbone",), "bakbone"), (tuple(optimizer.PARTS), "nothing is left to train")],
)
def test_impossible_frozen_parts_are_named(abstract_params, frozen, message):
    with pytest.raises(ValueError, match=message):
        optimizer.split(abstract_params, frozen)


def test_frozen_parts_have_no_optimizer_state():
    config = tiny_config()
    config.optimizer.frozen = ("backbone", "pixel_decoder", "text")
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    got = state.abstract(build(config.model), config, mesh)
    moments = [leaf for leaf in jax.tree.leaves(got.opt_state) if leaf.ndim or leaf.size > 1]
    assert len(moments) == 2 * len(jax.tree.leaves(got.trainable["decoder"]))
