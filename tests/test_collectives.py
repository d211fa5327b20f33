"""What the compiled training step sends between devices: gradients once, split parameters once, and nothing
inside the loops of matching and sampling."""

import jax
import numpy as np
import pytest

from seem_jax import sharding
from seem_jax.config import MeshConfig
from seem_jax.kernels import by_valid
from seem_jax.models.seem import build
from seem_jax.training import state as states
from seem_jax.training.step import Vocabulary, make_train_step
from tests import hlo
from tests.fakes import class_token_ids, fake_batch, tiny_config
from tests.test_sharding import BATCH, QUICK


def messages(sizes):
    """(what the step of a tiny model sends, bytes of its parameters, whether it has loops)."""
    config = tiny_config()
    config.mesh, config.data.batch_size = MeshConfig(*sizes), BATCH
    config.model.decoder.num_layers, config.max_rounds = 1, 1  # half the time to compile
    mesh, model = sharding.make_mesh(config.mesh), build(config.model)
    state = states.abstract(model, config, mesh)
    whole, split = sharding.replicated(mesh), sharding.batch(mesh)
    ids, valid = (
        jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole) for x in class_token_ids(config)
    )
    names = Vocabulary(token_ids=ids, token_valid=valid, sentences=None)
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split), fake_batch(config, BATCH)
    )
    with sharding.use(mesh):
        lowered = make_train_step(model, config, state).lower(state, batch, names)
        text = lowered.compile(QUICK).as_text()
    return hlo.messages(text), 4 * states.num_parameters(state.trainable), " while(" in text


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1)], ids=str)
def test_gradients_and_parameters_travel_once_and_loops_gather_nothing(sizes):
    sent, size, has_loops = messages(sizes)
    assert has_loops
    # In loops only sums that are gradients of one tap of a depthwise kernel, or the loss of one layer.
    in_loops = [message for message in sent if message.loop]
    assert {message.kind for message in in_loops} <= {"all-reduce"}
    assert sum(message.size for message in in_loops) <= 0.01 * size
    total = {kind: sum(m.size for m in sent if m.kind == kind) for kind in hlo.KINDS}
    print(sizes, "parameters", size, total, len(sent))
    fsdp = sizes[1]
    reduced = total["all-reduce"] + total["reduce-scatter"] * fsdp
    assert 0.9 * size <= reduced <= 1.5 * size
    if fsdp > 1:
        assert 0.5 * size <= total["all-gather"] <= 1.5 * size
    else:
        assert total["all-gather"] <= 0.05 * size


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2)], ids=str)
def test_each_device_finds_the_uncertain_points_of_its_own_images(sizes):
    rng, count = np.random.default_rng(0), by_valid.AT_ONCE + 3
    values = rng.normal(size=(BATCH, count, 40)).astype(np.float32)
    valid = rng.random((BATCH, count)) < 0.7
    want = np.where(valid[..., None], np.argsort(-values, axis=-1)[..., :7], 0)
    mesh = sharding.make_mesh(MeshConfig(*sizes))

    def find(valid, values):
        return by_valid.by_valid(lambda rows: jax.lax.top_k(rows, 7)[1], valid, values)

    with sharding.use(mesh):
        given = sharding.put_batch((valid, values), mesh)
        compiled = jax.jit(find).lower(*given).compile()
        found = compiled(*given)
    np.testing.assert_array_equal(found, want)
    assert hlo.messages(compiled.as_text()) == []
