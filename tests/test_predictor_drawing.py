"""Drawings as points of the model: where they were made, on an image of any size, no more than fits."""

from __future__ import annotations

import numpy as np
import pytest

from seem_jax.data import transforms
from seem_jax.predictor import Prompts
from seem_jax.predictor.programs import MAX_POINTS
from seem_jax.predictor.prompts import draw
from seem_jax.predictor.thinning import fair_shares, thin


def placed(height=80, width=120, side=64):
    return transforms.fitted((height, width), side)


def pixels(drawn, side=64):
    return np.round(drawn.points[drawn.valid] * side).astype(int)


def test_a_click_is_nine_pixels_around_its_own():
    drawn = draw(Prompts(points=[[60.4, 40.9]]), placed(), 48)
    centre = np.floor((np.array([60, 40]) + 0.5) * 64 / 120)
    np.testing.assert_array_equal(pixels(drawn).mean(0), centre)
    assert len(pixels(drawn)) == 9
    assert len(pixels(draw(Prompts(points=[[0, 0]]), placed(), 48))) == 4  # cut by the corner


@pytest.mark.parametrize("size", [(80, 120), (1, 1), (1, 500), (700, 2), (64, 64)])
def test_what_is_drawn_lies_where_it_was_drawn(size):
    height, width = size
    placement = placed(*size)
    x0, x1 = width * 0.25, max(width * 0.75, width * 0.25 + 0.5)
    y0, y1 = height * 0.25, max(height * 0.75, height * 0.25 + 0.5)
    mask = np.zeros(size, bool)
    mask[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))] = True
    corners = [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]
    for asked in (
        Prompts(box=[x0, y0, x1, y1]),
        Prompts(polygon=corners),
        Prompts(mask=mask),
        Prompts(scribble=[[x0, y0], [x1 - 0.01, y1 - 0.01]]),
    ):
        found = pixels(draw(asked, placement, 10_000)) + 0.5
        scale = np.array(placement.resized[::-1]) / np.array([width, height])
        assert len(found), asked.given
        margin = 2.5  # a pixel of rounding and half of a stroke
        low, high = np.floor([x0, y0]), np.ceil([x1, y1])
        assert (found >= low * scale - margin).all(), asked.given
        assert (found <= high * scale + margin).all(), asked.given


def test_a_box_marks_its_middle_and_not_what_its_corners_show():
    found = pixels(draw(Prompts(box=[30, 10, 90, 70]), placed(), 10_000))
    scale = np.array(placed().resized[::-1]) / np.array([120, 80])
    away = ((found + 0.5) / scale - [60, 40]) / 30
    assert (np.abs(away) < 0.85).all()
    assert np.hypot(*away.T).max() < 0.9
    assert len(found) == pytest.approx(np.pi * (0.8 * 30) ** 2 * scale.prod(), rel=0.1)


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (2, 2), (3, 2), (9, 1)])
def test_no_box_is_too_small_to_mark_a_pixel(size):
    placement = placed(64, 64)
    assert len(pixels(draw(Prompts(box=[5, 7, 5 + size[0], 7 + size[1]]), placement, 10_000)))


def test_too_many_points_are_thinned_fairly_and_counted():
    rng = np.random.default_rng(0)
    points = np.floor(rng.random((1000, 2)) * [120, 80])
    drawn = draw(Prompts(points=points, box=[0, 0, 120, 80]), placed(), 48)
    assert drawn.valid.sum() <= MAX_POINTS
    assert drawn.dropped > 0
    again = draw(Prompts(points=points[::-1], box=[0, 0, 120, 80]), placed(), 48)
    np.testing.assert_array_equal(again.points, drawn.points)
    assert draw(Prompts(points=points[:5]), placed(), 48).dropped == 0


def test_fair_shares_keep_small_drawings_whole():
    assert fair_shares([9, 9, 1000], 100) == [9, 9, 82]
    assert fair_shares([5, 5, 5], 6) == [2, 2, 2]
    assert fair_shares([], 6) == []
    rows = np.arange(2304)
    np.testing.assert_array_equal(thin(rows, 48), thin(rows, 48))
    assert len(np.unique(thin(rows, 48) % 48)) > 10  # not a single column of a 48 pixel wide box


def test_a_negative_stroke_is_negative():
    asked = Prompts(scribble=[[[5, 5], [30, 5]], [[5, 60], [30, 60]]], scribble_labels=[1, 0])
    drawn = draw(asked, placed(), 48)
    rows = pixels(drawn)[:, 1]
    positive = drawn.positive[drawn.valid]
    assert rows[positive].max() < rows[~positive].min()
