"""What must not change the loss: padding, order, batch mates, devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.losses_support import PER_PROMPT, case, result, run, whole

__all__ = ["case", "result"]  # fixtures


def pad(x, axis, number):
    """More rows of anything at the end of an axis."""
    x = np.asarray(x)
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, number)
    value = False if x.dtype == bool else 1
    return jnp.asarray(np.pad(x, widths, constant_values=value))


def test_padding_changes_nothing(case, result):
    outputs, visual, features, batch, table, phrases, draws = case
    more = partial(jax.tree.map, lambda x: pad(x, 1, 2))
    slots = jax.tree.map(lambda x: pad(x, 2, 2 * PER_PROMPT), outputs.visual)
    padded = batch.replace(
        objects=more(batch.objects),
        phrases=more(batch.phrases.replace(is_class=None)).replace(is_class=batch.phrases.is_class),
        prompt_masks=more(batch.prompt_masks),
    )
    names = ("candidates_object", "candidates_text", "candidates_visual")
    names += ("rest_object", "rest_text", "rest_visual")
    draws = draws.replace(**{name: pad(getattr(draws, name), 2, 2) for name in names})
    visual = visual.replace(pooled=more(visual.pooled), prompt_valid=more(visual.prompt_valid))
    got = run(outputs.replace(visual=slots), visual, features, padded, table, more(phrases), draws)
    for name, value in result.values.items():
        np.testing.assert_allclose(got.values[name], value, rtol=1e-5, err_msg=name)
    for name, slots in result.matched.items():
        np.testing.assert_array_equal(got.matched[name][:, :, : slots.shape[2]], slots)
        assert np.all(got.matched[name][:, :, slots.shape[2] :] == -1)


def test_the_order_of_the_batch_changes_nothing(case, result):
    def swap(tree, axis):
        return jax.tree.map(lambda x: jnp.flip(jnp.asarray(x), axis), tree)

    outputs, visual, features, batch, table, phrases, draws = case
    got = run(
        swap(outputs, 1),
        swap(visual, 0),
        swap(features, 0),
        swap(batch, 0),
        table,
        swap(phrases, 0),
        swap(draws, 1),
    )
    for name, value in result.values.items():
        np.testing.assert_allclose(got.values[name], value, rtol=1e-5, err_msg=name)


def test_a_batch_mate_changes_neither_matching_nor_points(case, result):
    outputs, visual, features, batch, table, phrases, draws = case
    changed = features.replace(mask=features.mask.at[1].multiply(-3.0))
    got = run(outputs, visual, changed, batch, table, phrases, draws)
    for name in result.matched:
        np.testing.assert_array_equal(got.matched[name][:, 0], result.matched[name][:, 0])
        np.testing.assert_array_equal(got.points[name][:, 0], result.points[name][:, 0])


def test_a_mesh_changes_nothing(case):
    if jax.device_count() < 2:
        pytest.skip("needs 2 devices")
    mesh = jax.make_mesh(
        (2, 1, 1),
        ("data", "fsdp", "tensor"),
        axis_types=(jax.sharding.AxisType.Auto,) * 3,
        devices=jax.devices()[:2],
    )

    def place(tree, axis):
        spec = jax.sharding.PartitionSpec(*[None] * axis, ("data", "fsdp"))
        return jax.device_put(tree, jax.sharding.NamedSharding(mesh, spec))

    outputs, visual, features, batch, table, phrases, _ = case
    split = (place(outputs, 1), place(visual, 0), place(features, 0), place(batch, 0))
    got = whole(*split, jax.device_put(table), place(phrases, 0), jax.random.key(1), mesh=mesh)
    want = whole(outputs, visual, features, batch, table, phrases, jax.random.key(1))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
