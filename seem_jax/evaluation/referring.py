"""Scores of referring segmentation: cIoU, mIoU and precision, as the official evaluator counts."""

from __future__ import annotations

import numpy as np

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


class ReferringScores:
    """Accumulates expressions by the pixel counts of their answers."""

    def __init__(self):
        self.intersection = self.union = self.count = 0
        self.iou = 0.0
        self.reached = np.zeros(len(THRESHOLDS), np.int64)

    def add(self, intersection: np.ndarray, union: np.ndarray) -> np.ndarray:
        """Adds expressions, int [n] pixels each; returns their IoU, float32 [n].

        The denominator carries 1e-6 in float32, as officially: empty against empty is 0.
        """
        iou = intersection.astype(np.float32) / (union.astype(np.float32) + np.float32(1e-6))
        self.intersection += int(intersection.sum())
        self.union += int(union.sum())
        self.count += len(iou)
        self.iou += float(iou.sum())
        self.reached += (iou[:, None] >= np.float32(THRESHOLDS)[None]).sum(0)
        return iou

    def result(self) -> dict[str, float]:
        """ciou, miou and p@0.5 ... p@0.9 as percentages; NaN without any expression."""
        count = self.count or np.nan
        out = {
            "ciou": 100.0 * self.intersection / (self.union or np.nan),
            "miou": 100.0 * self.iou / count,
        }
        for threshold, reached in zip(THRESHOLDS, self.reached, strict=True):
            out[f"p@{threshold}"] = float(100.0 * reached / count)
        return out
