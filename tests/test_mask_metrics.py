"""Instance AP and semantic scores, by hand and on sets with little in them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from seem_jax.evaluation.instance_ap import STATISTICS, average_precision
from seem_jax.evaluation.semantic import SemanticScores

SIZE = (60, 80)


def rle(top, bottom, left, right, size=SIZE) -> dict:
    mask = np.zeros(size, np.uint8, order="F")
    mask[top:bottom, left:right] = 1
    found = coco_mask.encode(mask)
    return {"size": list(size), "counts": found["counts"].decode()}


def truth(*objects) -> dict:
    """A data set of two images and two categories; objects are (image, category, mask, crowd)."""
    annotations = [
        {
            "id": k,
            "image_id": image,
            "category_id": category,
            "segmentation": mask,
            "iscrowd": crowd,
            "area": float(coco_mask.area(mask)),
            "bbox": coco_mask.toBbox(mask).tolist(),
        }
        for k, (image, category, mask, crowd) in enumerate(objects, 1)
    ]
    images = [{"id": i, "height": SIZE[0], "width": SIZE[1]} for i in (1, 2)]
    categories = [{"id": c, "name": str(c)} for c in (3, 7)]
    return {"images": images, "categories": categories, "annotations": annotations}


def found(image, category, mask, score) -> dict:
    return {"image_id": image, "category_id": category, "segmentation": mask, "score": score}


BOX = rle(5, 45, 5, 45)


def test_a_perfect_detection_and_a_missing_class():
    got = average_precision(truth((1, 3, BOX, 0)), [found(1, 3, BOX, 0.9)])
    assert got.statistics["ap"] == pytest.approx(1)
    assert math.isnan(got.statistics["ap_small"])
    assert got.per_category[3] == pytest.approx(1)
    assert math.isnan(got.per_category[7])
    assert tuple(got.result()) == STATISTICS


def test_a_crowd_takes_any_number_of_detections():
    data = truth((1, 3, BOX, 0), (2, 3, rle(0, 60, 0, 80), 1))
    many = [found(2, 3, rle(0, 9, 0, 9 + k), 0.95) for k in range(3)]
    got = average_precision(data, [*many, found(1, 3, BOX, 0.5)])
    assert got.statistics["ap"] == pytest.approx(1)


def test_no_more_than_a_hundred_detections_of_an_image_count():
    wrong = [found(1, 3, rle(50, 55, 50, 55), 0.9)] * 100
    got = average_precision(truth((1, 3, BOX, 0)), [*wrong, found(1, 3, BOX, 0.1)])
    assert got.statistics["ap"] == 0.0
    got = average_precision(truth((1, 3, BOX, 0)), [*wrong[:99], found(1, 3, BOX, 0.1)])
    assert got.statistics["ap"] > 0


@pytest.mark.parametrize("detections", [[], [found(1, 3, BOX, 0.5)]])
def test_sets_without_truth_or_detections_have_values(detections):
    assert math.isnan(average_precision(truth(), detections).statistics["ap"])
    value = average_precision(truth((1, 3, BOX, 0)), [])
    assert value.statistics["ap"] == 0.0
    empty = {"images": [], "categories": [], "annotations": []}
    assert math.isnan(average_precision(empty, []).statistics["ap"])


def test_boxes_and_the_faster_package_give_the_same(monkeypatch):
    data = truth((1, 3, BOX, 0), (2, 7, rle(0, 9, 0, 30), 0))
    detections = [found(1, 3, rle(5, 45, 9, 50), 0.9), found(2, 7, rle(0, 9, 0, 30), 0.3)]
    assert average_precision(data, detections, boxes=True).statistics["ap50"] == pytest.approx(1)
    pytest.importorskip("faster_coco_eval")
    slow, fast = (average_precision(data, detections, faster=f).statistics for f in (False, True))
    assert fast == pytest.approx(slow, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 9}, r"detection 1: unknown image 9"),
        ({"category_id": 5}, r"detection 1 \(image 1\): unknown category 5"),
        ({"score": math.nan}, r"detection 1: its score is nan"),
        ({"score": "0.9"}, r"detection 1: its score is '0.9'"),
        (
            {"segmentation": rle(0, 2, 0, 2, (4, 4))},
            r"detection 1: its mask is \(4, 4\)",
        ),
        # pycocotools never returns from this one, and takes the next for another mask.
        (
            {"segmentation": {**BOX, "counts": b"zz"}},
            r"detection 1: .* covers -1 pixels, image 1 is",
        ),
        (
            {"segmentation": {**BOX, "counts": b"d0"}},
            r"detection 1: .* covers 20 pixels, image 1 is",
        ),
        ({"segmentation": {**BOX, "counts": [1]}}, r"detection 1: .* covers 1 pixels, image 1 is"),
        ({"segmentation": [[0, 0, 5, 0, 5, 5]]}, r"detection 1: .* no compressed COCO code"),
    ],
)
def test_bad_detections_are_named(change, message):
    good = found(1, 3, BOX, 0.5)
    with pytest.raises(ValueError, match=message):
        average_precision(truth((1, 3, BOX, 0)), [good, good | change])


def test_missing_fields_are_named():
    good = found(1, 3, BOX, 0.5)
    for field in good:
        bad = {name: value for name, value in good.items() if name != field}
        with pytest.raises(ValueError, match=f"detection 1 has no {field}"):
            average_precision(truth((1, 3, BOX, 0)), [good, bad])
    data = truth((1, 3, BOX, 0))
    del data["annotations"][0]["area"]
    with pytest.raises(ValueError, match="annotation 1 of the truth has no area"):
        average_precision(data, [good])


def test_duplicate_ids_in_the_truth_are_named():
    data = truth((1, 3, BOX, 0))
    data["annotations"] *= 2
    with pytest.raises(ValueError, match=r"ids \[1\] occur more than once among its annotations"):
        average_precision(data, [])


def test_a_class_that_is_only_predicted_lowers_the_official_mean():
    scores = SemanticScores(4)
    scores.add(np.array([[0, 0, 1, 1, 255]]), np.array([[0, 0, 1, 2, 3]]))
    got = scores.result()
    assert got["miou"] == pytest.approx(100 * (1 + 0.5) / 3)
    assert got["miou_true"] == pytest.approx(75)
    assert got["fwiou"] == pytest.approx(75)
    assert got["macc"] == got["pacc"] == pytest.approx(75)
    assert np.isnan(scores.per_class()[0]).tolist() == [False, False, True, True]


def test_only_ignored_pixels_are_nan():
    scores = SemanticScores(2)
    scores.add(np.full((2, 2), 255), np.zeros((2, 2), int))
    assert all(map(math.isnan, scores.result().values()))


def test_bad_label_maps_are_named():
    scores = SemanticScores(2)
    with pytest.raises(ValueError, match=r"img: the prediction holds the classes \[2\]"):
        scores.add(np.zeros((1, 2), int), np.array([[0, 2]]), "img")
    with pytest.raises(ValueError, match=r"img: the truth holds the classes \[9\]"):
        scores.add(np.array([[0, 9]]), np.zeros((1, 2), int), "img")
    with pytest.raises(ValueError, match=r"img: truth is \(1, 2\)"):
        scores.add(np.zeros((1, 2), int), np.zeros((2, 1), int), "img")
