"""cIoU, mIoU and precision against the official evaluator."""

from __future__ import annotations

import numpy as np
import pytest

from seem_jax.evaluation.referring import THRESHOLDS, ReferringScores
from tests.goldens import arrays, cases


def check(scores: ReferringScores, want: dict) -> None:
    got = scores.result()
    assert got["ciou"] == pytest.approx(want["cIoU"], rel=1e-6)
    assert got["miou"] == pytest.approx(want["mIoU"], rel=1e-6)
    for t in THRESHOLDS:
        assert got[f"p@{t}"] == pytest.approx(want[f"precision@{t}"], rel=1e-6)


@pytest.mark.parametrize("name", ["plain", "empty_pred", "zero_logit"])
def test_the_official_numbers(name):
    golden, stored = cases("grounding")["cases"][name], arrays("grounding")
    scores = ReferringScores()
    for k in range(golden["num_images"]):
        predicted = stored[f"{name}/{k}/logits"].astype(np.float32) > 0
        truth = stored[f"{name}/{k}/gt"] > 0
        scores.add((predicted & truth).sum((1, 2)), (predicted | truth).sum((1, 2)))
    check(scores, golden["expected"])
    assert scores.intersection == golden["sums"]["intersection"]
    assert scores.union == golden["sums"]["union"]


def test_the_denominator_counts_at_an_exact_threshold():
    golden = cases("grounding")["cases"]["exact_threshold"]
    scores = ReferringScores()
    scores.add(np.array([10]), np.array([20]))
    check(scores, golden["expected"])


def test_nothing_to_score_is_nan():
    assert all(np.isnan(value) for value in ReferringScores().result().values())
