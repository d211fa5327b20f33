"""Panoptic quality against panopticapi's own numbers."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from seem_jax.evaluation.panoptic import PanopticQuality, TruthSegment
from tests.goldens import FOLDER, arrays, cases, path

NUMBERS = ("random3", "void_half", "crowd_absorbs", "one_image_empty_pred")
NUMBERS += ("class_missing_in_pred", "iou_exactly_half", "gt_json_area_wins")


def accumulate(name: str) -> PanopticQuality:
    golden, maps = cases("panoptic"), arrays("panoptic")
    quality = PanopticQuality({c["id"]: bool(c["isthing"]) for c in golden["categories"]})
    for k, image in enumerate(golden["cases"][name]["images"]):
        truth = [
            TruthSegment(s["id"], s["category_id"], bool(s["iscrowd"]), s["area"])
            for s in image["gt_segments_info"]
        ]
        found = [(s["id"], s["category_id"]) for s in image["pred_segments_info"]]
        quality.add(maps[f"{name}/{k}/gt"], truth, maps[f"{name}/{k}/pred"], found, name)
    return quality


def check(quality: PanopticQuality, want: dict) -> None:
    got = quality.result()
    for group, suffix in (("All", ""), ("Things", "_things"), ("Stuff", "_stuff")):
        for key in ("pq", "sq", "rq"):
            assert got[key + suffix] == pytest.approx(100 * want[group][key], abs=1e-10)
    for category, (pq, sq, rq) in quality.per_category().items():
        if not math.isnan(pq) and str(category) in want["per_class"]:
            expected = want["per_class"][str(category)]
            assert (pq, sq, rq) == pytest.approx([expected[k] for k in ("pq", "sq", "rq")])


@pytest.mark.parametrize("name", NUMBERS)
def test_the_owners_numbers(name):
    want = cases("panoptic")["cases"][name]["expected"]
    quality = accumulate(name)
    check(quality, want)
    for category, counts in quality.counts.items():
        expected = want["counts"].get(str(category), {"tp": 0, "fp": 0, "fn": 0, "iou_sum": 0.0})
        got = (counts.true_positive, counts.false_positive, counts.false_negative, counts.iou)
        assert got == pytest.approx([expected[k] for k in ("tp", "fp", "fn", "iou_sum")])


def test_a_group_without_categories_is_nan_where_the_owner_divides_by_zero():
    got = accumulate("no_stuff").result()
    assert got["pq"] == got["pq_things"] == 100.0
    assert math.isnan(got["pq_stuff"])


def test_an_unknown_category_is_named():
    with pytest.raises(
        ValueError, match=r"unknown_category, prediction: unknown categories \[\d+\]"
    ):
        accumulate("unknown_category")


def test_ids_without_a_segment_are_named():
    quality = PanopticQuality({1: True})
    ones = np.ones((4, 4), np.int32)
    with pytest.raises(ValueError, match=r"prediction: ids only in the map \[1\]"):
        quality.add(ones, [TruthSegment(1, 1)], ones, [])


@pytest.mark.parametrize("name", ["identical", "rolled"])
def test_real_panoptic_images(name):
    """Two images of COCO, the prediction made from the truth by the recipe of the golden."""
    want = json.loads(path("panoptic", "coco_sample_cases.json").read_text())["cases"][name]
    folder = FOLDER.parent / "samples" / "coco"
    if not folder.exists():
        pytest.skip("needs ../shared/samples/coco beside the checkout")
    from PIL import Image

    file = next(folder.rglob("panoptic*.json"))
    stored = json.loads(file.read_text())
    quality = PanopticQuality({c["id"]: bool(c["isthing"]) for c in stored["categories"]})
    shift = (0, 0) if name == "identical" else (5, 7)
    for image in stored["annotations"]:
        rgb = np.asarray(Image.open(folder / file.stem / image["file_name"]), np.int64)
        truth = rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]
        segments = [
            TruthSegment(s["id"], s["category_id"], bool(s["iscrowd"]), s["area"])
            for s in image["segments_info"]
        ]
        predicted = np.roll(truth, shift, (0, 1))
        predicted[np.isin(predicted, [s.id for s in segments if s.crowd])] = 0
        found = [(s.id, s.category) for s in segments if not s.crowd]
        quality.add(truth, segments, predicted, found)
    check(quality, want)
