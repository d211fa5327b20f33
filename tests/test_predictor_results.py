"""Answers as COCO results, polygons, panoptic PNGs and pictures hold the masks they were made of."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from seem_jax import postprocess
from seem_jax.predictor import results
from tests.predictor_support import picture


def made_prediction():
    masks = np.zeros((2, 20, 30), bool)
    masks[0, 2:10, 3:20] = True
    masks[0, 4:6, 5:9] = False  # a hole
    return results.Prediction(
        masks=masks,
        scores=np.array([0.9, 0.1], np.float32),
        quality=np.ones(2, np.float32),
        texts=("a thing", None),
        logits=np.zeros((2, 4, 4), np.float32),
        memories=(),
        classes=("cat", "dog"),
        labels=np.array([1, 0], np.int32),
        probabilities=np.array([[0.2, 0.8], [0.6, 0.1]], np.float32),
        dropped_points=0,
    )


def test_coco_results_hold_the_same_masks():
    prediction = made_prediction()
    entries = json.loads(json.dumps(prediction.to_coco(7, category_ids=[17, 18])))
    decoded = coco_mask.decode([entry["segmentation"] for entry in entries])
    np.testing.assert_array_equal(np.moveaxis(decoded, -1, 0).astype(bool), prediction.masks)
    assert entries[0]["bbox"] == [3, 2, 17, 8]
    assert entries[0]["area"] == prediction.masks[0].sum()
    assert (entries[0]["category_id"], entries[0]["image_id"], entries[0]["name"]) == (18, 7, "dog")
    assert entries[1]["bbox"] == [0, 0, 0, 0]
    with pytest.raises(ValueError, match="category_ids has 1 numbers for 2 classes"):
        prediction.to_coco(7, category_ids=[1])


def test_polygons_and_boxes_surround_the_mask():
    prediction = made_prediction()
    (ring,) = prediction.to_polygons()[0]
    assert (ring.min(0) == [3, 2]).all() and (ring.max(0) == [19, 9]).all()
    assert prediction.to_polygons()[1] == []
    fields = prediction.to_supervision()
    np.testing.assert_array_equal(fields["xyxy"][0], [3, 2, 20, 10])
    assert fields["xyxy"].shape == (2, 4) and fields["mask"].shape == (2, 20, 30)
    assert list(fields["data"]["class_name"]) == ["dog", "cat"]


def test_panoptic_png_holds_the_ids():
    ids = np.array([[0, 1, 300], [70000, 1, 0]], np.int32)
    segments = tuple(postprocess.Segment(n, 0, True, 0.5) for n in (1, 300, 70000))
    prediction = results.PanopticPrediction(ids, segments, ("cat",))
    png = prediction.to_png().astype(int)
    np.testing.assert_array_equal(png[..., 0] + 256 * png[..., 1] + 65536 * png[..., 2], ids)
    info = json.loads(json.dumps(prediction.segments_info()))
    assert [(s["id"], s["area"]) for s in info] == [(1, 2), (300, 1), (70000, 1)]
    assert info[0]["bbox"] == [1, 0, 1, 2]


def test_a_picture_shows_the_mask_and_leaves_the_image_alone():
    image = picture(20, 30)
    before = image.copy()
    drawn = made_prediction().draw(image)
    assert drawn.shape == image.shape and (drawn != image).any()
    assert made_prediction().draw(image, 300).shape == (200, 300, 3)
    np.testing.assert_array_equal(image, before)
    with pytest.raises(ValueError, match="the image of this prediction"):
        made_prediction().draw(picture(21, 30))


def test_different_answers_are_the_best_of_those_that_say_the_same():
    made = made_prediction()
    logits = np.full((4, 8, 8), -1.0, np.float32)
    logits[0, :4], logits[1, :5], logits[2, 4:], logits[3, :, :4] = 1, 1, 1, 1
    made = dataclasses.replace(
        made,
        masks=np.repeat(made.masks, 2, axis=0),
        scores=np.array([0.9, 0.8, 0.7, 0.6], np.float32),
        quality=np.ones(4, np.float32),
        texts=("a", "b", "c", "d"),
        logits=logits,
        memories=(None,) * 4,
        labels=np.zeros(4, np.int32),
        probabilities=np.zeros((4, 2), np.float32),
    )
    assert made.different().texts == ("a", "c", "d")  # b says what a says: IoU 0.8
    assert made.different(0.9).texts == ("a", "b", "c", "d")
    assert made.different(0.3).texts == ("a", "c")
    assert len(made.take([]).different()) == 0
    assert made.take([2, 0]).scores.tolist() == pytest.approx([0.7, 0.9])
