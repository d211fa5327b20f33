"""Scores of referring segmentation: cIoU, mIoU and precision, as the official evaluator counts."""

from __future__ import annotations

import numpy as np

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


def expression_iou(intersection: np.ndarray, union: np.ndarray) -> np.ndarray:
    """float32 [n], the IoU of expressions from pixel counts int [n].

    The denominator carries 1e-6 in float32, as officially: empty against empty is 0.
    """
    return intersection.astype(np.float32) / (union.astype(np.float32) + np.float32(1e-6))


def scores(intersection: np.ndarray, union: np.ndarray) -> dict[str, float]:
    """ciou, miou and p@0.5 ... p@0.9 of expressions, from pixel counts int [n], as percentages.

    A precision counts an IoU equal to its threshold, in float32. NaN without any expression, and
    cIoU without any pixel.
    """
    intersection, union = (np.asarray(counts, np.int64) for counts in (intersection, union))
    if intersection.shape != union.shape or (intersection > union).any():
        raise ValueError(
            f"{intersection.shape} intersections and {union.shape} unions: expected equally many, "
            "no intersection above its union."
        )
    iou, count = expression_iou(intersection, union), len(union) or np.nan
    out = {
        "ciou": 100.0 * int(intersection.sum()) / (int(union.sum()) or np.nan),
        "miou": 100.0 * float(iou.sum(dtype=np.float64)) / count,
    }
    for threshold in THRESHOLDS:
        reached = np.count_nonzero(iou >= np.float32(threshold))
        out[f"p@{threshold}"] = 100.0 * reached / count
    return out
