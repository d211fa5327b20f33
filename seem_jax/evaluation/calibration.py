"""How far scores can be believed: temperature, calibration error, risk against coverage."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

BINS = 15
DRAWS = 200  # of imagined outcomes, for the error of perfect scores
COLDEST, HOTTEST = 0.05, 20.0  # bounds of the temperature: perfect data would take it to 0


def probabilities(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """float64 [n, C], softmax of logits / temperature."""
    scaled = np.asarray(logits, np.float64) / temperature
    scaled = np.exp(scaled - scaled.max(-1, keepdims=True, initial=-math.inf))
    return scaled / scaled.sum(-1, keepdims=True)


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature that makes int [n] labels most likely (Guo et al. 2017); NaN without any.

    logits is float [n, C]. The likelihood is concave in 1 / temperature, so a search by thirds
    finds its maximum between the bounds above.
    """
    if not len(labels):
        return math.nan

    def loss(log_temperature: float) -> float:
        return surprise(logits, labels, math.exp(log_temperature))

    low, high = math.log(COLDEST), math.log(HOTTEST)
    while high - low > 1e-6:
        third = (high - low) / 3
        if loss(low + third) <= loss(high - third):  # flat: the colder side
            high -= third
        else:
            low += third
    return math.exp((low + high) / 2)


def surprise(logits: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    """Mean negative log-likelihood of int [n] labels, nats: what the temperature makes small.
    NaN without any."""
    if not len(labels):
        return math.nan
    right = probabilities(logits, temperature)[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(right, 1e-300)).mean())


def reliability(confidence: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """float64 [15, 3]: count, mean confidence and share correct in equal steps of confidence."""
    index = np.minimum((np.asarray(confidence) * BINS).astype(int), BINS - 1)
    count = np.bincount(index, minlength=BINS).astype(np.float64)
    with np.errstate(invalid="ignore"):  # an empty bin has no mean
        means = [np.bincount(index, v, minlength=BINS) / count for v in (confidence, correct)]
    return np.stack([count, *means], axis=1)


def calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Expected calibration error, a fraction: mean distance of confidence and share correct over
    the bins of `reliability`, weighted by their counts. NaN without any score."""
    if not len(confidence):
        return math.nan
    count, mean, share = reliability(confidence, correct).T
    filled = count > 0
    return float((count * np.abs(mean - share))[filled].sum() / count.sum())


def error_of_perfect_scores(confidence: np.ndarray) -> float:
    """The mean `calibration_error` that these confidences would have if each were right exactly as
    often as it says: few segments scatter, so an error of this size is no fault. NaN without any."""
    rng = np.random.default_rng(0)
    chances = rng.random((DRAWS, len(confidence))) < confidence
    return float(np.mean([calibration_error(confidence, correct) for correct in chances]))


def halves(results: Sequence[Mapping]) -> list[tuple[np.ndarray, np.ndarray]]:
    """(logits float [n, C], labels int [n]) of the segments of even and of odd samples: the former
    to fit a temperature on, the latter to measure. Results are those of the panoptic task."""
    parts = [
        [segment for r in results if r["sample"] % 2 == odd for segment in r["segments"]]
        for odd in (0, 1)
    ]
    return [
        (
            np.array([s["logits"] for s in part], float),
            np.array([s["meant"] for s in part], np.int64),
        )
        for part in parts
    ]


def believed(
    logits: np.ndarray, labels: np.ndarray, temperature: float
) -> tuple[np.ndarray, np.ndarray]:
    """(confidence float [n], correct bool [n]) of segments whose class is the best but the last,
    which is "no object"."""
    if not len(labels):
        return np.zeros(0), np.zeros(0, bool)
    probability = probabilities(logits, temperature)
    category = probability[:, :-1].argmax(1)
    return probability[np.arange(len(category)), category], category == labels


def risk_coverage(confidence: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """float64 [k, 2]: (coverage, share wrong) when only scores from some confidence on are kept.

    One point per distinct confidence, from the surest on: equal scores come in together.
    """
    confidence = np.asarray(confidence, np.float64)
    order = np.argsort(-confidence, kind="stable")
    wrong = np.cumsum(~np.asarray(correct, bool)[order])
    last = np.flatnonzero(np.append(np.diff(confidence[order]) != 0, True)[: len(order)])
    kept = last + 1
    return np.stack([kept / max(len(order), 1), wrong[last] / kept], axis=1)


def area_under_risk(curve: np.ndarray) -> float:
    """The mean risk over all coverages of `risk_coverage`; NaN for an empty curve."""
    if not len(curve):
        return math.nan
    return float((np.diff(curve[:, 0], prepend=0.0) * curve[:, 1]).sum())
