"""Sessions of clicks in the rows of one program."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from seem_jax import postprocess
from seem_jax.evaluation import sessions
from tests.evaluation_support import untrained
from tests.fakes import tiny_config


def test_a_session_depends_on_no_batch_mate():
    """With a real, untrained model: the same clicks and answers in other company."""
    model, params = untrained(tiny_config())
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (3, 64, 64, 3)).astype(np.uint8)
    maps = np.kron(rng.integers(0, 4, (3, 4, 4)), np.ones((16, 16), np.int64)).astype(np.int32)
    sizes = np.full((2, 2), 64, np.int32)
    plan = postprocess.plan_resize(sizes, [(64, 64)] * 2, (16, 16), (64, 64), antialias=False)
    user = sessions.SeemUser()

    @jax.jit
    def session(params, images, maps, wanted):
        features = model.apply({"params": params}, images, method="encode_image")
        chosen = (maps[:, None] == wanted[..., None, None]) & (wanted > 0)[..., None, None]
        truth = chosen.astype(np.int8)
        rows = sessions.Rows(chosen, truth, wanted > 0, sizes, sizes, plan, None)
        begin = functools.partial(sessions.begin, model, user=user, max_clicks=3)
        state = sessions.idle(jax.eval_shape(begin, params, rows, features), 3)
        return sessions.advance(
            model,
            params,
            jnp.float32(0),
            jnp.ones(2, bool),
            rows,
            features,
            state,
            user=user,
            max_clicks=3,
        )

    def run(mate: int, wanted):
        pair = np.array([0, mate])
        return session(params, images[pair], maps[pair], np.array(wanted, np.int32))

    one, other = run(1, [[1, 2, 0], [3, 0, 0]]), run(2, [[1, 2, 0], [1, 2, 3]])
    one, other = (jax.tree.map(lambda array: np.asarray(array)[0], s) for s in (one, other))
    np.testing.assert_array_equal(one.prompts.points, other.prompts.points)
    np.testing.assert_array_equal(one.last[:2], other.last[:2])
    np.testing.assert_allclose(one.iou[:2], other.iou[:2], atol=1e-6)
    clicks = one.prompts.valid.reshape(3, 3, 9).any(-1)  # rounds, prompts
    assert clicks[:, :2].all()
    assert not clicks[:, 2].any()  # the padding prompt is never clicked
