"""Scores of interactive segmentation: number of clicks to a quality, and quality after a click."""

from __future__ import annotations

import numpy as np

THRESHOLDS = (0.5, 0.8, 0.85, 0.9)


def number_of_clicks(curves: np.ndarray, threshold: float) -> np.ndarray:
    """int [objects], the first click (from 1) with IoU >= threshold, else the number of clicks made.

    curves is float [objects, clicks], the IoU after each click; NaN (nothing to find) never reaches.
    """
    reached = curves >= np.asarray(threshold, curves.dtype)
    return np.where(reached.any(1), reached.argmax(1) + 1, curves.shape[1])


class InteractiveScores:
    """Accumulates the IoU curves of objects."""

    def __init__(self, max_clicks: int):
        self.curves = np.zeros((0, max_clicks), np.float32)

    def add(self, curves: np.ndarray) -> None:
        """Adds IoU curves, float [objects, max_clicks]."""
        if curves.shape[1:] != self.curves.shape[1:]:
            raise ValueError(
                f"IoU curves of {curves.shape[1:]} clicks given, {self.curves.shape[1:]} expected."
            )
        self.curves = np.concatenate([self.curves, curves.astype(np.float32)])

    def result(self) -> dict[str, float]:
        """noc@50, noc@80, noc@85, noc@90 in clicks, and iou@1, iou@2, iou@3, iou@5, iou@10, iou@20
        (those within the clicks made) as percentages; NaN without any object."""
        if not len(self.curves):
            return {f"noc@{round(100 * t)}": np.nan for t in THRESHOLDS} | {"iou@1": np.nan}
        out = {
            f"noc@{round(100 * t)}": float(number_of_clicks(self.curves, t).mean())
            for t in THRESHOLDS
        }
        for click in (1, 2, 3, 5, 10, 20):
            if click <= self.curves.shape[1]:
                out[f"iou@{click}"] = float(100 * self.curves[:, click - 1].mean())
        return out
