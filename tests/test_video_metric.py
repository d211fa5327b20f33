"""J, F, their statistics, sequences and proposals, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from seem_jax.evaluation import vos


def box(top, bottom, left, right, size=(40, 60)) -> np.ndarray:
    out = np.zeros(size, bool)
    out[top:bottom, left:right] = True
    return out


def test_region_and_boundary_at_their_ends():
    empty, some = box(0, 0, 0, 0), box(5, 20, 5, 20)
    assert vos.region(empty, empty) == vos.boundary(empty, empty) == 1.0
    assert vos.region(some, empty) == vos.boundary(some, empty) == 0.0
    assert vos.region(some, box(5, 20, 5, 35)) == 0.5
    whole = np.ones((40, 60), bool)
    assert vos.boundary(whole, empty) == 1.0  # neither has an edge inside the image
    assert vos.region(some, box(5, 20, 5, 35), void=box(0, 40, 20, 60)) == 1.0


def test_the_tolerance_of_the_boundary_is_a_disc():
    one, other = box(10, 20, 10, 20), box(12, 22, 10, 20)
    assert vos.boundary(one, other, tolerance=2) == 1.0
    assert vos.boundary(one, other) < 1.0  # one pixel: 0.8% of 72, rounded up
    point, near = np.zeros((2, 41, 41), bool)
    point[20, 20] = near[23, 23] = True  # 3 pixels on both axes: 4.2 apart
    assert vos.boundary(point, near, tolerance=3) < vos.boundary(point, near, tolerance=5) == 1.0


def test_statistics_of_few_and_of_many_frames():
    assert vos.statistics(np.array([0.5])) == (0.5, 0.0, 0.0)  # recall is strict
    assert all(map(math.isnan, vos.statistics(np.zeros(0))))
    mean, recall, decay = vos.statistics(np.linspace(1, 0, 101))
    assert (mean, recall) == pytest.approx((0.5, 50 / 101))
    assert decay == pytest.approx(0.75)
    assert vos.statistics(np.linspace(1, 0, 255))[2] == pytest.approx(0.75, abs=0.01)
    for frames in (256, 300):  # the owner's 8 bits
        assert math.isnan(vos.statistics(np.linspace(1, 0, frames))[2])


def test_a_sequence_without_its_ends_and_with_void_as_background():
    truth = np.stack([box(5, 15, 5, 15)] * 4).astype(np.uint8)
    truth[:, 30:35, 30:35] = 255
    found = truth.copy()
    found[found == 255] = 0
    found[0], found[-1] = 0, 0  # not evaluated
    tracks = vos.semi_supervised(truth, found)
    assert tracks.region.tolist() == [[1.0, 1.0]]
    assert vos.summary([tracks])["j&f"] == 100.0
    found[1, 30:35, 30:35] = 1
    assert vos.semi_supervised(truth, found).region[0, 0] == 100 / 125


def test_proposals_are_matched_whatever_their_numbers():
    truth = np.stack([box(5, 15, 5, 15) + 2 * box(20, 30, 30, 50)] * 3).astype(np.uint8)
    swapped = np.array([0, 3, 1], np.uint8)[truth]
    swapped[:, 0, 0] = 2
    tracks = vos.unsupervised(truth, swapped)
    assert tracks.region.min() == 1.0
    assert tracks.region.shape == (2, 3)
    assert vos.unsupervised(truth, 0 * truth).region.max() == 0.0
    with pytest.raises(ValueError, match="21 proposals"):
        vos.unsupervised(truth, np.full_like(truth, 21))


def test_sequences_without_objects_or_frames_are_nan():
    nothing = np.zeros((5, 8, 8), np.uint8)
    assert all(map(math.isnan, vos.summary([vos.semi_supervised(nothing, nothing)]).values()))
    assert all(map(math.isnan, vos.summary([vos.unsupervised(nothing, nothing)]).values()))
    assert all(map(math.isnan, vos.summary([]).values()))
    two = np.ones((2, 8, 8), np.uint8)  # nothing between first and last frame
    assert math.isnan(vos.summary([vos.semi_supervised(two, two)])["j"])


def test_bad_sequences_are_named():
    truth = np.ones((3, 8, 8), np.uint8)
    with pytest.raises(ValueError, match=r"dog: object 2 is predicted, but its first frame has 1"):
        vos.semi_supervised(truth, 2 * truth, "dog")
    with pytest.raises(ValueError, match=r"dog: truth is \(3, 8, 8\), prediction \(2, 8, 8\)"):
        vos.semi_supervised(truth, truth[:2], "dog")
