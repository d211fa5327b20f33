"""Clicks to a quality and quality after clicks, and the click of RITM's user."""

from __future__ import annotations

import jax
import numpy as np

from seem_jax.evaluation import ritm
from seem_jax.evaluation.interactive import number_of_clicks, scores

next_click = jax.jit(ritm.next_click)


def test_a_later_fall_does_not_count_and_a_miss_counts_all_clicks():
    curves = np.array([[0.2, 0.9, 0.1], [0.3, 0.4, 0.5], [np.nan] * 3], np.float32)
    assert number_of_clicks(curves, 0.85).tolist() == [2, 3, 3]
    got = scores(curves[:2])
    assert got["noc@85"] == 2.5
    assert got["full@85"] == 1
    assert np.isclose(got["iou@1"], 25)


def test_a_click_limit_counts_what_misses_it_as_the_limit():
    curves = np.zeros((2, 20), np.float32)
    curves[0, 6:] = curves[1, 2:] = 0.95
    got = scores(curves)
    assert (got["noc@90"], got["noc@90/5"], got["noc@90/10"]) == (5.0, 4.0, 5.0)


def test_a_threshold_is_reached_by_equality_in_single_precision():
    curves = np.full((1, 4), 0.9, np.float32)
    assert scores(curves)["noc@90"] == 1.0


def test_no_object_is_nan_not_an_exception():
    got = scores(np.zeros((0, 20), np.float32))
    assert got.pop("full@50") == got.pop("full@80") == got.pop("full@85") == 0
    assert got.pop("full@90") == 0
    assert all(np.isnan(value) for value in got.values())


def test_ritm_clicks_the_deeper_error_and_bars_only_the_clicked_pixel():
    truth, shown = np.zeros((40, 60), np.int8), np.zeros((40, 60), bool)
    truth[5:16, 5:16] = 1
    shown[20:39, 30:49] = True  # 19 pixels wide: deeper than the missing 11
    none = np.zeros(truth.shape, bool)
    row, column, positive = next_click(shown, truth, none)
    assert (int(row), int(column), bool(positive)) == (29, 39, False)
    clicked = none.copy()
    clicked[29, 39] = True
    row, column, positive = next_click(shown, truth, clicked)
    assert (int(row), int(column), bool(positive)) == (28, 38, False)  # first of its neighbours
    truth[20:39, 30:49] = ritm.IGNORE
    row, column, positive = next_click(shown, truth, none)
    assert (int(row), int(column), bool(positive)) == (10, 10, True)
    assert float(ritm.iou(shown, truth)) == 0.0


def test_ritm_with_nothing_wrong_is_a_negative_click_in_the_corner():
    truth = np.ones((8, 8), np.int8)
    row, column, positive = next_click(truth == 1, truth, np.zeros((8, 8), bool))
    assert (int(row), int(column), bool(positive)) == (0, 0, False)
