"""Every term of the training loss against a definition with loops, and what must not change it."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from seem_jax import losses
from seem_jax.config import LossConfig
from seem_jax.kernels.mask_planes import dense
from seem_jax.kernels.point_sample import sample
from seem_jax.losses import PointDraws
from seem_jax.losses.regions import region_terms
from seem_jax.losses.text import normalise, phrase_logits
from seem_jax.types import Features, Outputs, SlotOutputs, VisualTokens
from tests.fakes import NUM_CLASSES, fake_batch, tiny_config

LAYERS, IMAGES, WIDTH, PER_PROMPT = 2, 2, 32, 3
CONFIG = LossConfig(num_points=16, cost_class=3.0, text_dice=0.7)
NUM_CANDIDATES, NUM_UNCERTAIN = 48, 12
SCALE = jnp.float32(2.0)
RELATIVE = 2e-4


def make_case(seed=0):
    """(outputs, visual tokens, features, batch, table, phrase embedding, draws) of random numbers."""
    rng = np.random.default_rng(seed)
    config = tiny_config()
    batch = fake_batch(config, IMAGES, seed=4)
    assert batch.phrases.masks.valid[0].all()
    batch.phrases.group[0] = [5, 7, 5]  # two phrases of the first image have the same text
    sizes = {
        "object": batch.objects.label.shape[1],
        "text": batch.phrases.group.shape[1],
        "visual": batch.prompt_masks.plane.shape[1],
    }
    num_queries = config.model.decoder.num_object_queries

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    def uniform(*shape):
        return jnp.asarray(rng.random(shape), jnp.float32)

    def slots(number):
        return SlotOutputs(
            mask_embedding=normal(LAYERS, IMAGES, number, WIDTH),
            class_embedding=normal(LAYERS, IMAGES, number, WIDTH),
        )

    outputs = Outputs(
        object=slots(num_queries),
        text=slots(num_queries),
        visual=slots(PER_PROMPT * sizes["visual"]),
        visual_choice=None,
    )
    visual = VisualTokens(
        levels=(),
        prompt=jnp.asarray(batch.strokes.prompt),
        valid=jnp.asarray(batch.strokes.valid),
        pooled=normal(IMAGES, sizes["visual"], WIDTH),
        prompt_valid=jnp.asarray(batch.prompt_masks.valid),
    )
    features = Features(
        mask=normal(IMAGES, 16, 16, WIDTH),
        levels=tuple(normal(IMAGES, side, side, WIDTH) for side in (4, 8, 16)),
        mask_levels=(),
        keys=(),
        values=(),
    )
    points = {}
    for name, size in sizes.items():
        points[f"match_{name}"] = uniform(LAYERS, IMAGES, CONFIG.num_points, 2)
        points[f"candidates_{name}"] = uniform(LAYERS, IMAGES, size, NUM_CANDIDATES, 2)
        rest = CONFIG.num_points - NUM_UNCERTAIN
        points[f"rest_{name}"] = uniform(LAYERS, IMAGES, size, rest, 2)
    table = normalise(normal(NUM_CLASSES, WIDTH))
    return outputs, visual, features, batch, table, normal(IMAGES, 3, WIDTH), PointDraws(**points)


@jax.jit
def run(outputs, visual, features, batch, table, phrases, draws):
    key = jax.random.key(0)
    return losses.terms(
        outputs,
        visual,
        features,
        batch,
        table,
        phrases,
        SCALE,
        CONFIG,
        key,
        draws,
        None,
    )


@pytest.fixture(scope="module")
def case():
    return make_case()


@pytest.fixture(scope="module")
def result(case):
    return run(*case)


# ------------------------------------------------------------------ the definition, with loops


def softmax(x, axis=-1):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def unit(x):
    return x / (np.linalg.norm(x, axis=-1, keepdims=True) + 1e-7)


def bce(x, t):
    return (np.maximum(x, 0) - x * t + np.log1p(np.exp(-np.abs(x)))).mean()


def dice(x, t):
    p = 1 / (1 + np.exp(-x))
    return 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)


def read(maps, points):
    """[N, K] of maps [N, h, w] at points [K, 2] or [N, K, 2]; `sample` has its own tests."""
    points = np.broadcast_to(points, (len(maps), *points.shape[-2:]))
    return np.asarray(sample(jnp.asarray(maps, jnp.float32)[..., None], jnp.asarray(points)))[
        ..., 0
    ]


def mask_terms(logits, truth, pairs, candidates, rest):
    """Sums of cross-entropy and Dice over the pairs (slot, target) of one image."""
    total = np.zeros(2)
    for slot, target in pairs:
        value = read(logits[[slot]], candidates[target])[0]
        uncertain = np.argsort(np.abs(value), kind="stable")[:NUM_UNCERTAIN]
        points = np.concatenate([candidates[target][uncertain], rest[target]])
        x, t = read(logits[[slot]], points)[0], read(truth[[target]], points)[0]
        total += bce(x, t), dice(x, t)
    return total


def pairs_of(logits, truth, points, class_cost, allowed=None):
    """The cheapest (slot, target) pairs; class_cost and allowed are [Q, M]."""
    x, t = read(logits, points), read(truth, points)
    cost = np.array(
        [[CONFIG.cost_bce * bce(q, m) + CONFIG.cost_dice * dice(q, m) for m in t] for q in x]
    ).reshape(len(x), len(t))
    cost = cost + CONFIG.cost_class * class_cost
    if allowed is not None:
        cost = np.where(allowed, cost, 1e6)
    return list(zip(*linear_sum_assignment(cost)))


def by_definition(case, layer, name):
    """(class, bce, dice) of a branch at a layer, and the pairs of each image."""
    outputs, visual, features, batch, table, phrases, draws = jax.tree.map(np.asarray, case)
    slots = getattr(outputs, name)
    refs = {
        "object": batch.objects.masks,
        "text": batch.phrases.masks,
        "visual": batch.prompt_masks,
    }
    truth_masks = np.asarray(dense(batch.planes, refs[name]))
    wanted, all_pairs, mask_sums = [], [], np.zeros(2)
    for b in range(IMAGES):
        which = np.flatnonzero(refs[name].valid[b])  # valid masks come first in these batches
        truth = truth_masks[b, which].astype(np.float32)
        logits = np.einsum("nd,hwd->nhw", slots.mask_embedding[layer, b], features.mask[b])
        embedding = unit(slots.class_embedding[layer, b])
        allowed = None
        if name == "object":
            said = np.exp(SCALE) * embedding @ table.T
            cost = -softmax(said)[:, batch.objects.label[b, which]]
        elif name == "text":
            said = np.exp(SCALE) * embedding @ unit(phrases[b, which]).T
            for place, g in enumerate(which):
                prompt = batch.phrases.prompt[b, g]
                if prompt >= 0:
                    drawn = visual.pooled[b, prompt]
                    said[:, place] += slots.mask_embedding[layer, b] @ drawn / WIDTH**0.5
            cost = -softmax(said, axis=0)
        else:
            said = slots.mask_embedding[layer, b] @ visual.pooled[b, which].T
            allowed = np.arange(len(said))[:, None] // PER_PROMPT == which[None]
            cost = -softmax(np.where(allowed, said, -np.inf), axis=0)
        points = getattr(draws, f"match_{name}")[layer, b]
        pairs = pairs_of(logits, truth, points, cost, allowed)
        all_pairs.append({target: slot for slot, target in pairs})
        candidates = getattr(draws, f"candidates_{name}")[layer, b]
        mask_sums += mask_terms(
            logits, truth, pairs, candidates, getattr(draws, f"rest_{name}")[layer, b]
        )
        wanted.append(class_terms(name, said, pairs, batch, b, which))
    number = sum(len(pairs) for pairs in all_pairs)
    numerator, denominator = np.sum(wanted, axis=0)
    return (numerator / denominator, *(mask_sums / number)), all_pairs


def class_terms(name, said, pairs, batch, b, which):
    """(numerator, denominator) that one image adds to the class loss of a branch."""
    if name == "object":
        label = np.full(len(said), NUM_CLASSES - 1)
        for slot, target in pairs:
            label[slot] = batch.objects.label[b, target]
        weight = np.where(label == NUM_CLASSES - 1, CONFIG.no_object, 1.0)
        nll = -np.log(softmax(said))[np.arange(len(said)), label]
        return (weight * nll).sum(), weight.sum()
    log_share = np.log(softmax(said, axis=0))  # [slots, targets]
    if name == "visual":
        takes_part = np.flatnonzero(np.arange(len(said)) // PER_PROMPT < len(which))
        log_share = np.log(softmax(said[takes_part], axis=0))
        return -sum(log_share[slot, target] for slot, target in pairs), len(pairs)
    slot_of = {target: slot for slot, target in pairs}
    loss = 0.0
    for g in range(len(which)):
        alike = [
            k for k in range(len(which)) if batch.phrases.group[b, k] == batch.phrases.group[b, g]
        ]
        loss -= sum(log_share[slot_of[k], g] for k in alike) / len(alike)
    weight = CONFIG.class_name_weight if batch.phrases.is_class[b] else CONFIG.sentence_weight
    return weight * loss / len(which), 1


@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize("name", ["object", "text", "visual"])
def test_branch_has_the_matching_and_losses_of_its_definition(case, result, name, layer):
    want, pairs = by_definition(case, layer, name)
    for b in range(IMAGES):
        slots = np.asarray(result.matched[name][layer, b])
        assert {m: slot for m, slot in enumerate(slots) if slot >= 0} == pairs[b]
    got = [result.values[f"{name}/{term}"][layer] for term in ("class", "bce", "dice")]
    np.testing.assert_allclose(got, want, rtol=RELATIVE)


def region_mean(features, batch, b, segment):
    """Mean feature of a segment read at the centres of the cells, or None where it has none."""
    step = 64 // len(features[b])
    inside = batch.planes[b, 0, step // 2 :: step, step // 2 :: step] == segment + 1
    return features[b][inside].mean(0) if inside.any() else None


def test_region_losses_ask_the_heads_about_the_mean_feature_of_each_segment(case):
    _, _, features, batch, table, phrases, _ = case

    def heads(slots):
        return (2 * slots, -slots)  # mask embedding, class embedding

    weights, key = dataclasses.replace(CONFIG, region_class=1.5), jax.random.key(0)
    got = region_terms(heads, features, batch, table, phrases, SCALE, weights, key, positions=False)
    _, _, features, batch, table, phrases, _ = jax.tree.map(np.asarray, case)
    for number in (0, 1):
        maps = features.levels[number + 1]
        embedding = np.zeros((*batch.objects.label.shape, WIDTH), np.float32)
        of_class, of_phrase, segments = [], [], []
        for b in range(IMAGES):
            count = int(batch.objects.masks.valid[b].sum())
            means = [region_mean(maps, batch, b, segment) for segment in range(count)]
            seen = [segment for segment in range(count) if means[segment] is not None]
            for segment in seen:
                segments.append((b, segment))
                embedding[b, segment] = 2 * means[segment]
                said = np.exp(SCALE) * unit(-means[segment]) @ table[:-1].T
                of_class.append(-np.log(softmax(said))[batch.objects.label[b, segment]])
            for phrase in np.flatnonzero(batch.phrases.masks.valid[b]):  # of object `phrase`
                near = [unit(-means[segment]) @ unit(phrases[b, phrase]) for segment in seen]
                named = -np.log(softmax(np.exp(SCALE) * np.array(near)))
                of_phrase += [named[seen.index(phrase)]] if phrase in seen else []
        bce, dice, _ = losses.masks.matched_losses(
            jax.random.fold_in(key, number),
            jnp.asarray(embedding),
            jnp.asarray(features.mask),
            jnp.asarray(batch.planes),
            batch.objects.masks,
            weights,
        )
        want = {"class": np.mean(of_class), "phrase": np.mean(of_phrase)}
        for name, values in (("bce", bce), ("dice", dice)):
            want[name] = np.mean([values[place] for place in segments])
        for name, value in want.items():
            np.testing.assert_allclose(
                got[f"region/{name}"][number], value, rtol=RELATIVE, err_msg=name
            )


def test_no_region_loss_is_computed_where_none_has_a_weight(case):
    _, _, features, batch, table, phrases, _ = case
    assert (
        region_terms(None, features, batch, table, phrases, SCALE, CONFIG, None, positions=False)
        == {}
    )


# ------------------------------------------------------------------ what must not change it


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


# ------------------------------------------------------------------ the whole loss


@partial(jax.jit, static_argnames="mesh")
def whole(outputs, visual, features, batch, table, phrases, key, mesh=None):
    def loss(outputs, features, table, phrases, scale):
        return losses.total_loss(
            outputs,
            visual,
            features,
            batch,
            table,
            phrases,
            scale,
            CONFIG,
            key,
            mesh=mesh,
        )

    return jax.value_and_grad(loss, argnums=(0, 1, 2, 3, 4), has_aux=True)(
        outputs, features, table, phrases, SCALE
    )


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


# ------------------------------------------------------------------ phrases


def test_phrase_logits_are_the_clamped_cosine_plus_the_prompt_of_the_phrase():
    rng = np.random.default_rng(5)
    text, mask, phrase, pooled = (
        rng.standard_normal((1, n, 8)).astype(np.float32) for n in (4, 4, 3, 2)
    )
    prompt = np.int32([[-1, 1, 0]])
    cosine = unit(text[0]) @ unit(phrase[0]).T
    alone = phrase_logits(text, mask, phrase, prompt, None, jnp.float32(1.5))
    np.testing.assert_allclose(alone[0], np.exp(1.5) * cosine, rtol=1e-5, atol=1e-5)
    clamped = phrase_logits(text, mask, phrase, prompt, None, jnp.float32(9.0))
    np.testing.assert_allclose(clamped[0], 100 * cosine, rtol=1e-5, atol=1e-4)
    composed = phrase_logits(text, mask, phrase, prompt, pooled, jnp.float32(1.5))
    added = np.asarray(composed - alone)[0]
    np.testing.assert_array_equal(added[:, 0], 0)
    np.testing.assert_allclose(added[:, 1:], mask[0] @ pooled[0][[1, 0]].T / 8**0.5, atol=1e-4)


def test_normalise_has_a_finite_gradient_at_zero():
    gradient = jax.grad(lambda x: normalise(x).sum())(jnp.zeros(4))
    assert np.all(np.isfinite(gradient))
