"""The whole loss: what is summed and what is reported, its points, types, and what is not finite."""

import jax
import jax.numpy as jnp
import numpy as np

from seem_jax import losses
from seem_jax.config import LossConfig
from seem_jax.types import Outputs
from tests.losses_support import CONFIG, LAYERS, SCALE, case, result, whole

__all__ = ["case", "result"]  # fixtures


def test_total_is_the_weighted_sum_over_layers_of_metrics_that_are_means(case):
    (loss, metrics), gradients = whole(*case[:6], jax.random.key(1))
    batch = case[3]
    counted = [metrics.pop(f"num_{name}") for name in ("objects", "phrases", "prompts")]
    refs = (batch.objects.masks, batch.phrases.masks, batch.prompt_masks)
    np.testing.assert_array_equal(counted, [r.valid.sum() for r in refs])
    branches = [f"{n}/{t}" for n in ("object", "text", "visual") for t in ("class", "bce", "dice")]
    assert set(metrics) == set(branches)
    weights = [getattr(CONFIG, name.replace("/", "_")) for name in branches]
    want = LAYERS * np.dot(weights, [metrics[name] for name in branches])
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    visual_names = gradients[0].visual.class_embedding  # visual slots are not asked for names
    levels = gradients[1].levels  # slots have read them before
    for leaf in jax.tree.leaves(gradients):
        assert np.all(np.isfinite(leaf))
        assert np.any(leaf) != any(leaf is unused for unused in (visual_names, *levels))


def test_random_points_follow_the_key(case):
    first, _ = whole(*case[:6], jax.random.key(1))
    again, _ = whole(*case[:6], jax.random.key(1))
    other, _ = whole(*case[:6], jax.random.key(2))
    assert first[0] == again[0]
    assert first[0] != other[0]
    np.testing.assert_allclose(first[0], other[0], rtol=0.3)


def test_an_empty_batch_costs_only_no_object_and_has_finite_gradients(case):
    outputs, visual, features, batch, table, phrases, _ = case

    def empty(refs):
        return refs.replace(valid=np.zeros_like(refs.valid))

    batch = batch.replace(
        objects=batch.objects.replace(masks=empty(batch.objects.masks)),
        phrases=batch.phrases.replace(masks=empty(batch.phrases.masks)),
        prompt_masks=empty(batch.prompt_masks),
    )
    visual = visual.replace(prompt_valid=jnp.zeros_like(visual.prompt_valid))
    (_, metrics), gradients = whole(
        outputs, visual, features, batch, table, jnp.zeros_like(phrases), jax.random.key(0)
    )
    assert metrics.pop("object/class") > 0
    assert all(value == 0 for value in metrics.values())
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradients))


def test_predictions_that_are_not_finite_end_in_a_loss_that_is_not_finite(case):
    outputs, visual, features, batch, table, phrases, _ = case
    broken = features.replace(mask=features.mask.at[0, 3, 3].set(jnp.nan))
    (loss, _), _ = whole(outputs, visual, broken, batch, table, phrases, jax.random.key(0))
    assert not np.isfinite(loss)


def test_without_deep_supervision_only_the_last_layer_counts(case, result):
    *inputs, draws = case
    config = LossConfig(**{**vars(CONFIG), "deep_supervision": False})
    last = jax.tree.map(lambda x: x[-1:], draws)
    got = jax.jit(lambda: losses.terms(*inputs, SCALE, config, jax.random.key(0), last, None))()
    for name, value in result.values.items():
        want = value if name.startswith("region/") else value[-1:]  # those are of maps, not layers
        np.testing.assert_allclose(got.values[name], want, rtol=1e-6, err_msg=name)


def test_predictions_in_bfloat16_give_losses_in_float32(case):
    outputs, visual, features, *rest = case[:6]
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (outputs, features.mask))
    got = jax.eval_shape(
        whole, low[0], visual, features.replace(mask=low[1]), *rest, jax.random.key(0)
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(got[0])} == {np.dtype(np.float32)}


def test_groups_that_are_absent_have_no_terms(case):
    outputs, visual, features, batch, table, phrases, draws = case
    config = LossConfig(**{**vars(CONFIG), "region_class": 0.0, "region_phrase": 0.0})
    only_text = Outputs(object=None, text=outputs.text, visual=None, visual_choice=None)
    got = jax.eval_shape(
        lambda: losses.terms(
            only_text, None, features, batch, table, phrases, SCALE, config, jax.random.key(0)
        )
    )
    assert set(got.values) == {"text/class", "text/bce", "text/dice"}
