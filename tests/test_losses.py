"""Every term of the training loss against a definition with loops."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from seem_jax import losses
from seem_jax.kernels.mask_planes import dense
from seem_jax.kernels.point_sample import sample
from seem_jax.losses.regions import region_terms
from seem_jax.losses.text import normalise, phrase_logits
from tests.fakes import NUM_CLASSES
from tests.losses_support import (
    CONFIG,
    IMAGES,
    LAYERS,
    NUM_UNCERTAIN,
    PER_PROMPT,
    SCALE,
    WIDTH,
    case,
    result,
)

__all__ = ["case", "result"]  # fixtures
RELATIVE = 2e-4


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


@pytest.mark.parametrize("size", [(12, 12), (9, 14)], ids=str)
def test_shared_points_are_chosen_as_each_mask_would_choose_among_its_mirrored_ones(size):
    rng = np.random.default_rng(6)
    logits = jnp.asarray(rng.standard_normal((2, 10, *size)), jnp.float32)
    candidates, rest = (jnp.asarray(rng.random((2, n, 2)), jnp.float32) for n in (200, 20))
    got = losses.masks.mirrored_points(logits, candidates, rest, 50)
    ways = jnp.arange(10, dtype=jnp.int32) % (8 if size[0] == size[1] else 4)
    own = [
        losses.masks.mirror(points[:, None], ways[None, :, None]) for points in (candidates, rest)
    ]
    want = losses.masks.uncertain_points(logits, *own, 50)
    np.testing.assert_array_equal(got, want)
    assert (
        len({tuple(np.asarray(points[0, 0])) for points in own[0].swapaxes(0, 1)})
        == int(ways.max()) + 1
    )


def test_mirrors_of_the_unit_square_are_eight_different_ones():
    corner = jnp.asarray([[0.25, 0.125]])
    ways = jnp.arange(8, dtype=jnp.int32)[:, None]
    seen = {tuple(point) for point in np.asarray(losses.masks.mirror(corner[None], ways))[:, 0]}
    one, other = (0.25, 0.75), (0.125, 0.875)
    assert seen == {(x, y) for x in one for y in other} | {(y, x) for x in one for y in other}


def test_no_region_loss_is_computed_where_none_has_a_weight(case):
    _, _, features, batch, table, phrases, _ = case
    assert (
        region_terms(None, features, batch, table, phrases, SCALE, CONFIG, None, positions=False)
        == {}
    )


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
