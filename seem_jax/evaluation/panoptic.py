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

    def add(self, other: Counts) -> None:
        self.true_positive += other.true_positive
        self.false_positive += other.false_positive
        self.false_negative += other.false_negative
        self.iou += other.iou

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

        predicted_segments holds (id, category). A true segment without a pixel is a miss, as for
        the owner. Raises ValueError, naming the image, for maps of unequal size, ids without a
        segment, predicted segments without a pixel, ids listed twice and unknown categories.
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

        truth_segments, predicted_segments = list(truth_segments), list(predicted_segments)
        true = [(segment.id, segment.category) for segment in truth_segments]
        self._check(true, truth_ids, f"{name}, truth", must_show=False)
        self._check(predicted_segments, predicted_ids, f"{name}, prediction", must_show=True)
        self._count(truth_segments, dict(predicted_segments), truth_ids, predicted_ids, overlap)

    def _check(self, pairs: list[tuple[int, int]], ids: np.ndarray, name: str, must_show: bool):
        listed = [i for i, _ in pairs]
        twice = sorted({i for i in listed if listed.count(i) > 1})
        if twice:
            raise ValueError(f"{name}: the ids {twice} are listed more than once.")
        present = set(ids.tolist()) - {VOID}
        unlisted, unseen = sorted(present - set(listed)), sorted(set(listed) - present)
        if unlisted or (must_show and unseen) or VOID in listed:
            raise ValueError(
                f"{name}: ids only in the map {unlisted}, only among the segments {unseen}; they "
                f"must coincide ({VOID} is void)."
            )
        unknown = sorted({category for _, category in pairs} - set(self.is_thing))
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
        for segment in true:
            pixels = overlap[row[segment.id]] if segment.id in row else nothing
            if segment.crowd:
                crowd[segment.category] = pixels
                continue
            size = int(pixels.sum()) if segment.area is None else segment.area
            counts, missed = self.counts[segment.category], True
            # Maps match once at most; with an area from elsewhere more can, and the owner counts all.
            for i, category in found.items():
                shared = int(pixels[column[i]])
                if category != segment.category or not shared:
                    continue
                union = area[i] + size - shared - int(void[column[i]])
                if union > 0 and shared / union > 0.5:
                    counts.true_positive += 1
                    counts.iou += shared / union
                    matched.add(i)
                    missed = False
            counts.false_negative += missed
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
