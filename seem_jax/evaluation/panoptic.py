"""Panoptic quality (Kirillov et al. 2019), number for number that of panopticapi."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping

import numpy as np

VOID = 0


@dataclasses.dataclass(frozen=True)
class TruthSegment:
    """A true segment: its id in the map, category, crowd flag and area in pixels.

    The owner of the metric reads the area from the JSON file; None counts it in the map.
    """

    id: int
    category: int
    crowd: bool = False
    area: int | None = None


@dataclasses.dataclass
class Counts:
    true_positive: int = 0
    false_positive: int = 0
    false_negative: int = 0
    iou: float = 0.0  # sum over the true positives

    def quality(self) -> tuple[float, float, float]:
        """(PQ, SQ, RQ) as fractions; NaN where the category occurred nowhere."""
        total = self.true_positive + 0.5 * self.false_positive + 0.5 * self.false_negative
        if total == 0:
            return math.nan, math.nan, math.nan
        segmentation = self.iou / self.true_positive if self.true_positive else 0.0
        return self.iou / total, segmentation, self.true_positive / total


class PanopticQuality:
    """Accumulates images; `is_thing` names the known categories: category -> thing or stuff."""

    def __init__(self, is_thing: Mapping[int, bool]):
        self.is_thing = dict(is_thing)
        self.counts = {category: Counts() for category in self.is_thing}

    def add(
        self,
        truth: np.ndarray,
        truth_segments: Iterable[TruthSegment],
        predicted: np.ndarray,
        predicted_segments: Iterable[tuple[int, int]],
        name: str = "image",
    ) -> None:
        """One image: integer maps [H, W] of segment ids, 0 for void, and their segments.

        predicted_segments holds (id, category). Raises ValueError, naming the image, for maps of
        unequal size, ids without a segment, segments without a pixel and unknown categories.
        """
        if truth.shape != predicted.shape:
            raise ValueError(
                f"{name}: truth is {truth.shape}, prediction {predicted.shape} pixels."
            )
        truth_ids, truth_at = np.unique(truth, return_inverse=True)
        predicted_ids, predicted_at = np.unique(predicted, return_inverse=True)
        shape = (len(truth_ids), len(predicted_ids))
        pair = truth_at.reshape(-1) * shape[1] + predicted_at.reshape(-1)
        overlap = np.bincount(pair, minlength=shape[0] * shape[1]).reshape(shape)

        true = {s.id: s for s in truth_segments}
        found = dict(predicted_segments)
        self._check(true, truth_ids, {i: s.category for i, s in true.items()}, f"{name}, truth")
        self._check(found, predicted_ids, found, f"{name}, prediction")
        self._count(true, found, truth_ids, predicted_ids, overlap)

    def _check(self, segments, ids: np.ndarray, categories: Mapping[int, int], name: str) -> None:
        present = set(ids.tolist()) - {VOID}
        if present != set(segments):
            raise ValueError(
                f"{name}: ids only in the map {sorted(present - set(segments))}, only among the "
                f"segments {sorted(set(segments) - present)}; they must coincide."
            )
        unknown = sorted(set(categories.values()) - set(self.is_thing))
        if unknown:
            raise ValueError(
                f"{name}: unknown categories {unknown}; known are {sorted(self.is_thing)}."
            )

    def _count(self, true, found, truth_ids, predicted_ids, overlap: np.ndarray) -> None:
        row = {int(i): k for k, i in enumerate(truth_ids)}
        column = {int(i): k for k, i in enumerate(predicted_ids)}
        nothing = np.zeros(len(predicted_ids), np.int64)
        void = overlap[row[VOID]] if VOID in row else nothing
        area = {i: int(overlap[:, column[i]].sum()) for i in found}
        crowd: dict[int, np.ndarray] = {}  # the last crowd segment listed of each category
        matched: set[int] = set()
        for segment in true.values():
            pixels = overlap[row[segment.id]]
            if segment.crowd:
                crowd[segment.category] = pixels
                continue
            size = int(pixels.sum()) if segment.area is None else segment.area
            counts = self.counts[segment.category]
            for i, category in found.items():
                if category != segment.category or i in matched:
                    continue
                shared = int(pixels[column[i]])
                union = area[i] + size - shared - int(void[column[i]])
                if union > 0 and shared / union > 0.5:
                    counts.true_positive += 1
                    counts.iou += shared / union
                    matched.add(i)
                    break
            else:
                counts.false_negative += 1
        for i in set(found) - matched:
            ignored = int(void[column[i]]) + int(crowd.get(found[i], nothing)[column[i]])
            if ignored / area[i] <= 0.5:
                self.counts[found[i]].false_positive += 1

    def per_category(self) -> dict[int, tuple[float, float, float]]:
        """category -> (PQ, SQ, RQ) as fractions, NaN where it occurred nowhere."""
        return {category: counts.quality() for category, counts in self.counts.items()}

    def result(self) -> dict[str, float]:
        """Means over the categories that occurred, as percentages; NaN for a group without any.

        Keys pq, sq, rq (all categories), and the same with _things and _stuff.
        """
        out = {}
        for suffix, wanted in (("", (True, False)), ("_things", (True,)), ("_stuff", (False,))):
            rows = [
                quality
                for category, quality in self.per_category().items()
                if self.is_thing[category] in wanted and not math.isnan(quality[0])
            ]
            means = np.mean(rows, axis=0) * 100 if rows else np.full(3, math.nan)
            for key, value in zip(("pq", "sq", "rq"), means, strict=True):
                out[key + suffix] = float(value)
        return out
