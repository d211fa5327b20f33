"""Scores of interactive segmentation: number of clicks to a quality, and quality after a click."""

from __future__ import annotations

import numpy as np

THRESHOLDS = (0.5, 0.8, 0.85, 0.9)
SHORT = (5, 10)  # k of k-NoC besides the clicks made
REPORTED = (1, 2, 3, 5, 10, 20)  # clicks after which the mean IoU is reported


def number_of_clicks(curves: np.ndarray, threshold: float) -> np.ndarray:
    """int [objects], the first click (from 1) with IoU >= threshold, else the number of clicks made.

    curves is float [objects, clicks], the IoU after each click; NaN (nothing to find) never reaches.
    """
    reached = curves >= np.asarray(threshold, curves.dtype)
    return np.where(reached.any(1), reached.argmax(1) + 1, curves.shape[1])


def scores(curves: np.ndarray) -> dict[str, float]:
    """Mean scores of IoU curves, float [objects, clicks]; NaN without any object.

    noc@50, noc@80, noc@85, noc@90 in clicks; noc@90/5, noc@90/10 the same with only that many
    clicks allowed (k-NoC); full@... the number of objects whose count equals the clicks made,
    whether they reached the quality with the last one or never (RITM's ">= 20"); iou@1, iou@2,
    iou@3, iou@5, iou@10, iou@20 (those within the clicks made) as percentages.
    """
    curves = np.asarray(curves, np.float32)
    made = curves.shape[1]
    out = {}
    for threshold in THRESHOLDS:
        percent = round(100 * threshold)
        clicks = number_of_clicks(curves, threshold)
        out[f"noc@{percent}"] = _mean(clicks)
        out[f"full@{percent}"] = float(np.count_nonzero(clicks == made))
    for k in SHORT:
        if k < made:
            out[f"noc@90/{k}"] = _mean(number_of_clicks(curves[:, :k], 0.9))
    for click in REPORTED:
        if click <= made:
            out[f"iou@{click}"] = 100 * _mean(curves[:, click - 1])
    return out


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values, dtype=np.float64)) if len(values) else np.nan
