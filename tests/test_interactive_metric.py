"""Clicks to a quality and quality after clicks, against both owners' numbers."""

from __future__ import annotations

import numpy as np
import pytest

from seem_jax.evaluation.interactive import InteractiveScores, number_of_clicks
from tests.goldens import cases

CURVES = ("smooth_20", "smooth_20_iou_at_3", "cap_5", "cap_10", "special")


@pytest.mark.parametrize("name", CURVES)
def test_the_official_numbers(name):
    golden = cases("interactive_noc")["cases"][name]
    curves = np.array(golden["iou_curves"], np.float64).astype(np.float32)
    scores = InteractiveScores(golden["max_clicks"])
    for curve in curves:
        scores.add(curve[None])
    got, want = scores.result(), golden["expected_seem"]
    for threshold in (0.5, 0.8, 0.85, 0.9):
        clicks = got[f"noc@{round(100 * threshold)}"]
        assert clicks == pytest.approx(want[f"noc@{threshold}"])
        assert clicks == pytest.approx(golden["expected_ritm"][f"{threshold}"]["mean_noc"])
    click = golden["iou_iter"]
    expected = 100 * float(want[f"miou@iter{click}"])
    assert got[f"iou@{click}"] == pytest.approx(expected, rel=1e-5, nan_ok=True)


def test_a_later_fall_does_not_count_and_a_miss_counts_all_clicks():
    curves = np.array([[0.2, 0.9, 0.1], [0.3, 0.4, 0.5], [np.nan] * 3], np.float32)
    assert number_of_clicks(curves, 0.85).tolist() == [2, 3, 3]


def test_curves_of_another_length_are_refused():
    with pytest.raises(ValueError, match="20"):
        InteractiveScores(20).add(np.zeros((1, 5)))
