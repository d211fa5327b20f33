"""Panoptic quality, by hand: crowds, void, exact halves, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from seem_jax.evaluation.panoptic import PanopticQuality, TruthSegment


def scene(**boxes) -> np.ndarray:
    """int [10, 20]: 0, with segment k in rows and columns boxes["s<k>"]."""
    out = np.zeros((10, 20), np.int64)
    for name, (top, bottom, left, right) in boxes.items():
        out[top:bottom, left:right] = int(name[1:])
    return out


def counts(quality: PanopticQuality, category: int) -> list[float]:
    return list(vars(quality.counts[category]).values())


def test_an_iou_of_exactly_one_half_is_no_match():
    quality = PanopticQuality({1: True, 2: True})
    truth = scene(s1=(0, 10, 0, 10), s2=(0, 10, 10, 20))
    segments = [TruthSegment(1, 1), TruthSegment(2, 2)]
    quality.add(truth, segments, scene(s1=(0, 10, 0, 20)), [(1, 1)])
    assert counts(quality, 1) == [0, 1, 1, 0.0]


def test_void_leaves_the_union_and_forgives_what_lies_on_it_by_more_than_half():
    truth = scene(s1=(0, 10, 0, 10))
    quality = PanopticQuality({1: True, 2: True})
    quality.add(truth, [TruthSegment(1, 1)], scene(s1=(0, 10, 0, 20)), [(1, 1)])
    assert counts(quality, 1) == [1, 0, 0, 1.0]
    quality.add(truth, [TruthSegment(1, 1)], scene(s5=(0, 10, 9, 12)), [(5, 2)])
    quality.add(truth, [TruthSegment(1, 1)], scene(s5=(0, 10, 9, 11)), [(5, 2)])
    assert counts(quality, 2) == [0, 1, 0, 0.0]  # two thirds on void: forgiven; one half: not


def test_a_crowd_is_no_miss_and_forgives_its_own_category_only():
    truth = scene(s1=(0, 10, 0, 20))
    crowd = [TruthSegment(1, 1, crowd=True)]
    quality = PanopticQuality({1: True, 2: True})
    quality.add(truth, crowd, scene(), [])
    quality.add(truth, crowd, scene(s3=(0, 5, 0, 5)), [(3, 1)])
    quality.add(truth, crowd, scene(s3=(0, 5, 0, 5)), [(3, 2)])
    assert counts(quality, 1) == [0, 0, 0, 0.0]
    assert counts(quality, 2) == [0, 1, 0, 0.0]


def test_an_area_from_elsewhere_counts_as_the_owner_counts_it():
    quality = PanopticQuality({1: False})
    truth = scene(s1=(0, 10, 0, 20))
    halves = scene(s1=(0, 10, 0, 10), s2=(0, 10, 10, 20))
    quality.add(truth, [TruthSegment(1, 1, area=100)], halves, [(1, 1), (2, 1)])
    assert counts(quality, 1) == [2, 0, 0, 2.0]


def test_groups_and_sets_without_categories_are_nan():
    quality = PanopticQuality({1: True, 7: False})
    assert all(math.isnan(value) for value in quality.result().values())
    box = scene(s4=(0, 5, 0, 5))
    quality.add(box, [TruthSegment(4, 1)], box, [(4, 1)])
    got = quality.result()
    assert got["pq"] == got["pq_things"] == 100.0
    assert math.isnan(got["pq_stuff"])


def test_a_true_segment_without_pixels_is_a_miss():
    quality = PanopticQuality({1: True})
    quality.add(scene(), [TruthSegment(9, 1)], scene(), [])
    assert counts(quality, 1) == [0, 0, 1, 0.0]


@pytest.mark.parametrize(
    ("predicted", "segments", "message"),
    [
        (scene(s1=(0, 2, 0, 2)), [], r"img, prediction: ids only in the map \[1\]"),
        (scene(), [(3, 1)], r"img, prediction: .* only among the segments \[3\]"),
        (scene(s1=(0, 2, 0, 2)), [(1, 8)], r"img, prediction: unknown categories \[8\]"),
        (scene(s1=(0, 2, 0, 2)), [(1, 1), (1, 1)], r"the ids \[1\] are listed more than once"),
        (np.zeros((3, 3), int), [], r"img: truth is \(10, 20\), prediction \(3, 3\)"),
    ],
)
def test_bad_predictions_are_named(predicted, segments, message):
    with pytest.raises(ValueError, match=message):
        PanopticQuality({1: True}).add(scene(), [], predicted, segments, "img")
