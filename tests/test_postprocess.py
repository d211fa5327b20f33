"""Slots to segments, instances and semantic scores, and the way to the original size."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from seem_jax import postprocess
from tests.goldens import arrays, cases


@functools.cache
def golden(case: str):
    stored = arrays("inference_postprocess")
    picked = {k.split("/", 1)[1]: v for k, v in stored.items() if k.startswith(case + "/")}
    return cases("inference_postprocess")["cases"].get(case), picked


def panoptic(case: str, pad: int = 0):
    want, stored = golden(case)
    masks = np.pad(stored["mask_logits"], [(0, 0), (0, pad), (0, pad)], constant_values=9.0)
    inside = np.zeros(masks.shape[1:], bool)
    inside[: inside.shape[0] - pad, : inside.shape[1] - pad] = True
    slots = postprocess.panoptic_slots(
        stored["class_logits"], masks, inside, want["object_mask_threshold"]
    )
    slots = jax.tree.map(np.asarray, slots)
    return postprocess.panoptic_segments(
        slots, len(want["thing_classes"]), want["overlap_threshold"]
    )


@pytest.mark.parametrize("case", ["0", "1"])
def test_official_panoptic_maps(case):
    want, stored = golden(case)
    ids, segments = panoptic(case)
    np.testing.assert_array_equal(ids, stored["panoptic_ids"])
    assert [
        {"id": s.id, "isthing": s.is_thing, "category_id": s.category} for s in segments
    ] == want["segments_info"]


def test_pixels_beyond_the_original_count_for_nothing():
    ids, segments = panoptic("1", pad=7)
    want, plain = panoptic("1")
    np.testing.assert_array_equal(ids[: want.shape[0], : want.shape[1]], want)
    assert not ids[want.shape[0] :].any()
    assert segments == plain


def test_no_slot_above_the_threshold_is_an_empty_map():
    class_logits = np.zeros((3, 5), np.float32)
    slots = postprocess.panoptic_slots(
        class_logits, np.ones((3, 4, 4), np.float32), np.ones((4, 4), bool), 0.8
    )
    ids, segments = postprocess.panoptic_segments(jax.tree.map(np.asarray, slots), 2, 0.8)
    assert not ids.any()
    assert segments == []


@pytest.mark.parametrize("case", ["0", "1"])
def test_official_semantic_scores(case):
    _, stored = golden(case)
    got = postprocess.semantic_scores(stored["class_logits"], stored["mask_logits"])
    np.testing.assert_allclose(got, stored["semantic_scores"], atol=1e-5)


@pytest.mark.parametrize("case", ["0", "1"])
def test_official_instances(case):
    want, stored = golden(case)
    found = postprocess.instances(
        stored["class_logits"], stored["mask_logits"], len(want["thing_classes"]), want["topk"]
    )
    keep = np.asarray(found.valid)
    got = np.stack([found.score, found.label, found.mask.sum((1, 2))], 1)[keep]
    expected = np.stack(
        [stored[f"instance_{key}"] for key in ("scores", "classes", "mask_areas")], 1
    )

    def ordered(rows):  # among equal scores any order is fine
        return rows[np.lexsort((rows[:, 2], rows[:, 1], np.round(rows[:, 0], 4)))]

    np.testing.assert_allclose(ordered(got), ordered(expected), atol=1e-4)


@pytest.mark.parametrize(("name", "size"), [("down", (37, 55)), ("up", (100, 150))])
def test_official_resize_chain(name, size):
    _, stored = golden("resize")
    plan = postprocess.plan_resize(np.array([[60, 90]]), [size], (16, 24), (64, 96))
    got = postprocess.resize(stored["decoder_logits"][None], plan)[0]
    want = stored[f"{name}_crop60x90_to_{size[0]}x{size[1]}"]
    np.testing.assert_allclose(got[:, : size[0], : size[1]], want, atol=1e-4)
    assert not np.asarray(got)[:, size[0] :].any()
    assert plan.inside.sum() == size[0] * size[1]


def test_the_first_step_alone_is_the_official_bilinear():
    _, stored = golden("resize")
    plan = postprocess.plan_resize(
        np.array([[64, 96]]), [(64, 96)], (16, 24), (64, 96), antialias=False
    )
    got = postprocess.resize(stored["decoder_logits"][None], plan)[0]
    np.testing.assert_allclose(got, stored["after_bilinear_64x96"], atol=1e-5)


def test_an_image_larger_than_its_padding_is_refused():
    with pytest.raises(ValueError, match="does not lie"):
        postprocess.chain_matrix(16, 64, 65, 100, antialias=True)
