"""Semantic segmentation: mIoU, frequency-weighted IoU and accuracies from one confusion matrix."""

from __future__ import annotations

import math

import numpy as np


class SemanticScores:
    """Accumulates label maps. As the official SemSegEvaluator (detectron2), number for number."""

    def __init__(self, num_classes: int, ignore: int = 255):
        self.num_classes, self.ignore = num_classes, ignore
        self.confusion = np.zeros((num_classes, num_classes), np.int64)  # [prediction, truth]

    def add(self, truth: np.ndarray, predicted: np.ndarray, name: str = "image") -> np.ndarray:
        """Adds one image, integer maps [H, W]; returns its own confusion matrix.

        Pixels whose truth is `ignore` count nowhere. Raises ValueError, naming the image, for maps
        of unequal size and for classes outside 0 ... num_classes - 1.
        """
        if truth.shape != predicted.shape:
            raise ValueError(
                f"{name}: truth is {truth.shape}, prediction {predicted.shape} pixels."
            )
        counted = truth != self.ignore
        truth, predicted = truth[counted].astype(np.int64), predicted[counted].astype(np.int64)
        for kind, labels in (("truth", truth), ("prediction", predicted)):
            wrong = np.unique(labels[(labels < 0) | (labels >= self.num_classes)]).tolist()
            if wrong:
                raise ValueError(
                    f"{name}: the {kind} holds the classes {wrong[:5]}; expected 0 to "
                    f"{self.num_classes - 1}" + (f" or {self.ignore}." if kind == "truth" else ".")
                )
        pairs = np.bincount(self.num_classes * predicted + truth, minlength=self.num_classes**2)
        confusion = pairs.reshape(self.num_classes, self.num_classes)
        self.confusion += confusion
        return confusion

    def per_class(self) -> tuple[np.ndarray, np.ndarray]:
        """(IoU [C], accuracy [C]) as fractions; NaN for a class without true pixels."""
        hit, true, found = self._counts()
        exists = true > 0
        iou, accuracy = np.full((2, self.num_classes), math.nan)
        iou[exists] = hit[exists] / (true + found - hit)[exists]
        accuracy[exists] = hit[exists] / true[exists]
        return iou, accuracy

    def result(self) -> dict[str, float]:
        """miou, miou_true, fwiou, macc, pacc as percentages; NaN without any true pixel.

        miou is the official mean: the sum over the classes that occur in the truth, divided by the
        number of those that occur in the truth or in a prediction. miou_true divides by the former
        number. They are equal where every class occurs.
        """
        hit, true, found = self._counts()
        iou, accuracy = self.per_class()
        exists = true > 0
        total, pixels = float(np.sum(iou[exists])), int(true.sum())
        if not pixels:
            return dict.fromkeys(("miou", "miou_true", "fwiou", "macc", "pacc"), math.nan)
        return {
            "miou": 100.0 * total / np.count_nonzero(true + found),
            "miou_true": 100.0 * total / np.count_nonzero(exists),
            "fwiou": 100.0 * float(np.sum(iou[exists] * true[exists])) / pixels,
            "macc": 100.0 * float(np.mean(accuracy[exists])),
            "pacc": 100.0 * float(hit.sum()) / pixels,
        }

    def _counts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pixels int64 [C] that are right, that are true, that were predicted."""
        return np.diag(self.confusion), self.confusion.sum(0), self.confusion.sum(1)
