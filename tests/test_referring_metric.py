"""cIoU, mIoU and precision, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from seem_jax.evaluation.referring import expression_iou, scores


def test_ciou_weighs_by_pixels_and_miou_by_expressions():
    got = scores(np.array([10, 900]), np.array([100, 1000]))
    assert got["ciou"] == pytest.approx(100 * 910 / 1100)
    assert got["miou"] == pytest.approx(50)
    assert [got[f"p@{t}"] for t in (0.5, 0.8, 0.9)] == [50.0, 50.0, 50.0]


def test_the_denominator_counts_at_an_exact_threshold_of_few_pixels():
    assert scores(np.array([10]), np.array([20]))["p@0.5"] == 0.0
    assert scores(np.array([100]), np.array([200]))["p@0.5"] == 100.0  # 1e-6 vanishes in float32


def test_empty_against_empty_is_zero():
    assert expression_iou(np.array([0]), np.array([0])).tolist() == [0.0]
    got = scores(np.array([0]), np.array([0]))
    assert np.isnan(got["ciou"])
    assert got["miou"] == 0.0


def test_nothing_to_score_is_nan():
    empty = np.zeros(0, np.int64)
    assert all(np.isnan(value) for value in scores(empty, empty).values())


def test_an_intersection_above_its_union_is_refused():
    with pytest.raises(ValueError, match="no intersection above"):
        scores(np.array([3]), np.array([2]))
