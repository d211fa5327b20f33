"""Temperature, calibration error and risk against coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest

from seem_jax.evaluation import calibration


def test_the_temperature_that_made_the_data_is_found():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (4000, 5))
    draws = calibration.probabilities(logits, 2.5).cumsum(1)
    labels = (rng.random((len(logits), 1)) > draws).sum(1)
    temperature = calibration.fit_temperature(logits, labels)
    assert temperature == pytest.approx(2.5, rel=0.08)
    before, after = (
        calibration.calibration_error(p.max(1), p.argmax(1) == labels)
        for p in (calibration.probabilities(logits, t) for t in (1.0, temperature))
    )
    assert after < 0.02 < before


def test_perfect_data_stop_at_the_coldest_temperature():
    logits = np.array([[5.0, 0.0], [0.0, 5.0]])
    found = calibration.fit_temperature(logits, np.array([0, 1]))
    assert found == pytest.approx(calibration.COLDEST, rel=0.2)


def test_the_error_is_the_weighted_distance_of_the_bins():
    confidence = np.array([0.95, 0.95, 0.55, 1.0])
    correct = np.array([True, False, True, True])
    # Bins of 1/15: [14/15, 1] holds three (mean 0.9667, two right), 0.55 is alone.
    want = (3 * abs(2.9 / 3 - 2 / 3) + abs(0.55 - 1)) / 4
    assert calibration.calibration_error(confidence, correct) == pytest.approx(want)


def test_perfect_scores_have_an_error_that_falls_with_their_number():
    rng = np.random.default_rng(1)
    confidence = rng.uniform(0.5, 1, 10_000)
    few, many = (calibration.error_of_perfect_scores(confidence[:n]) for n in (100, 10_000))
    assert 0.05 < few < 0.15 and many == pytest.approx(few / 10, rel=0.2)
    lucky = calibration.calibration_error(confidence, rng.random(10_000) < confidence)
    assert lucky == pytest.approx(many, rel=0.6)


def test_equal_confidences_come_in_together():
    curve = calibration.risk_coverage(
        np.array([0.9, 0.9, 0.5, 0.2]), np.array([True, False, True, False])
    )
    np.testing.assert_allclose(curve, [[0.5, 0.5], [0.75, 1 / 3], [1.0, 0.5]])
    assert calibration.area_under_risk(curve) == pytest.approx(0.25 + 1 / 12 + 0.125)


def test_nothing_to_measure_is_nan():
    none = np.zeros(0)
    assert math.isnan(calibration.calibration_error(none, none))
    assert math.isnan(calibration.fit_temperature(np.zeros((0, 3)), np.zeros(0, int)))
    assert math.isnan(calibration.surprise(np.zeros(0), np.zeros(0, int), 1.0))
    assert math.isnan(calibration.error_of_perfect_scores(none))
    curve = calibration.risk_coverage(none, none)
    assert curve.shape == (0, 2)
    assert math.isnan(calibration.area_under_risk(curve))
