"""Video object segmentation: region J, boundary F and their statistics, as davis2017-evaluation."""

from __future__ import annotations

import dataclasses
import math

import cv2
import numpy as np
from scipy.optimize import linear_sum_assignment

VOID = 255
BOUNDARY = 0.008  # tolerance of F, share of the image diagonal
RECALL = 0.5  # a frame above it is recalled
MAX_PROPOSALS = 20


def region(truth: np.ndarray, predicted: np.ndarray, void: np.ndarray | None = None) -> float:
    """J, the IoU of two masks bool [H, W] outside void; 1 where both are empty."""
    _same_size(truth, predicted)
    counted = np.ones(truth.shape, bool) if void is None else ~void
    union = np.count_nonzero((truth | predicted) & counted)
    return np.count_nonzero(truth & predicted & counted) / union if union else 1.0


def boundary(
    truth: np.ndarray,
    predicted: np.ndarray,
    void: np.ndarray | None = None,
    tolerance: float = BOUNDARY,
) -> float:
    """F, the harmonic mean of precision and recall of the boundary pixels, bool [H, W] masks.

    tolerance is in pixels from 1 on, below 1 a share of the diagonal (rounded up). Two empty
    boundaries give 1, one gives 0.
    """
    _same_size(truth, predicted)
    if void is not None:
        truth, predicted = truth & ~void, predicted & ~void
    radius = tolerance if tolerance >= 1 else math.ceil(tolerance * np.linalg.norm(truth.shape))
    disc = _disc(int(radius))
    true_edge, found_edge = boundary_map(truth), boundary_map(predicted)
    num_true, num_found = np.count_nonzero(true_edge), np.count_nonzero(found_edge)
    if not num_true and not num_found:
        return 1.0
    if not num_true or not num_found:
        return 0.0
    near_true, near_found = (
        cv2.dilate(edge.astype(np.uint8), disc) > 0 for edge in (true_edge, found_edge)
    )
    precision = np.count_nonzero(found_edge & near_true) / num_found
    recall = np.count_nonzero(true_edge & near_found) / num_true
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def boundary_map(mask: np.ndarray) -> np.ndarray:
    """bool [H, W]: pixels that differ from the right, lower or lower right neighbour."""
    edge = np.zeros(mask.shape, bool)
    edge[:, :-1] |= mask[:, :-1] ^ mask[:, 1:]
    edge[:-1] |= mask[:-1] ^ mask[1:]
    edge[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
    return edge


def statistics(per_frame: np.ndarray) -> tuple[float, float, float]:
    """(mean, recall, decay) of float [frames] scores; NaN without a frame.

    Decay is the mean of the first quarter of the frames minus that of the last; neighbouring
    quarters share a frame. The owner keeps the borders in 8 bits, so from 256 frames on they wrap
    (the end of a quarter is one more than its border, in 8 bits too by the rules of NumPy 2) and
    decay may be NaN; so it is here.
    """
    values = np.asarray(per_frame, np.float64)
    if not len(values):
        return math.nan, math.nan, math.nan
    borders = np.round(np.linspace(1, len(values), 5) + 1e-10).astype(np.int64) - 1
    starts, ends = (borders % 256).tolist(), ((borders + 1) % 256).tolist()
    first = values[starts[0] : ends[1]]
    last = values[starts[3] : ends[4]]
    return _mean(values), _mean(values > RECALL), _mean(first) - _mean(last)


@dataclasses.dataclass(frozen=True)
class Tracks:
    """Scores of the objects of a sequence, float64 [objects, frames evaluated]."""

    region: np.ndarray
    boundary: np.ndarray


def semi_supervised(truth: np.ndarray, predicted: np.ndarray, name: str = "sequence") -> Tracks:
    """Scores where the first frame was given: label maps [frames, H, W], 0 background.

    The objects are 1 ... the largest of the first true frame; the first and the last frame are left
    out; void (255) of the truth is background; an object without prediction counts as empty.
    Raises ValueError, naming the sequence, for unequal sizes and for an object that is not there.
    """
    _same_size(truth, predicted, name)
    scores = FrameScores(name)
    for pair in zip(truth, predicted, strict=True):
        scores.add(*pair)
    return scores.tracks()


class FrameScores:
    """`semi_supervised` of frames that come one by one; keeps the scores and no frame but the last."""

    def __init__(self, name: str = "sequence"):
        self.name, self.num_objects = name, -1  # until the first frame
        self._rows: list[np.ndarray] = []  # [2, objects] of each frame evaluated
        self._waiting: tuple[np.ndarray, np.ndarray] | None = None  # counts once another follows

    def add(self, truth: np.ndarray, predicted: np.ndarray) -> None:
        """The next frame: label maps [H, W]. The first one only tells how many objects there are."""
        _same_size(truth, predicted, self.name)
        truth = np.where(truth == VOID, 0, truth)
        if self.num_objects < 0:
            self.num_objects = int(truth.max(initial=0))
            return
        self._count()
        self._waiting = truth, predicted

    def _count(self) -> None:
        if self._waiting is None:
            return
        truth, predicted = self._waiting
        highest = int(predicted.max(initial=0))
        if highest > self.num_objects:
            raise ValueError(
                f"{self.name}: object {highest} is predicted, but its first frame has "
                f"{self.num_objects}."
            )
        pairs = [(truth == i, predicted == i) for i in range(1, self.num_objects + 1)]
        both = [[region(*pair) for pair in pairs], [boundary(*pair) for pair in pairs]]
        self._rows.append(np.array(both).reshape(2, self.num_objects))

    def tracks(self) -> Tracks:
        """The scores of the frames between the first and the last."""
        shape = (len(self._rows), 2, max(self.num_objects, 0))
        scores = np.array(self._rows).reshape(shape)
        return Tracks(region=scores[:, 0].T, boundary=scores[:, 1].T)


def unsupervised(truth: np.ndarray, predicted: np.ndarray, name: str = "sequence") -> Tracks:
    """Scores of up to 20 proposals, matched to the true objects so that the mean J&F is largest.

    Label maps [frames, H, W]. All frames count, void pixels (255 in the truth) do not. Rows are in
    the order of the proposals, as the owner reports them. Raises ValueError as `semi_supervised`.
    """
    _same_size(truth, predicted, name)
    void = truth == VOID
    num_objects = int(np.where(void, 0, truth)[0].max(initial=0)) if len(truth) else 0
    num_proposals = int(predicted.max(initial=0))
    if num_proposals > MAX_PROPOSALS:
        raise ValueError(f"{name}: {num_proposals} proposals; at most {MAX_PROPOSALS} are allowed.")
    num_proposals = max(num_proposals, num_objects)  # those that lack are empty
    scores = np.zeros((2, num_proposals, num_objects, len(truth)))
    for p in range(num_proposals):
        for i in range(num_objects):
            for f, (true, found, hidden) in enumerate(zip(truth, predicted, void, strict=True)):
                pair = true == i + 1, found == p + 1, hidden
                scores[:, p, i, f] = region(*pair), boundary(*pair)
    if not scores.size:
        none = np.zeros((0, len(truth)))
        return Tracks(region=none, boundary=none)
    rows, columns = linear_sum_assignment(-scores.mean((0, 3)))
    return Tracks(region=scores[0, rows, columns], boundary=scores[1, rows, columns])


def summary(tracks: list[Tracks]) -> dict[str, float]:
    """j&f, j, j_recall, j_decay, f, f_recall, f_decay as percentages: means over all objects."""
    out = {}
    for key, rows in (("j", [t.region for t in tracks]), ("f", [t.boundary for t in tracks])):
        objects = [statistics(row) for track in rows for row in track]
        means = np.mean(objects, axis=0) if objects else np.full(3, math.nan)
        for name, value in zip((key, f"{key}_recall", f"{key}_decay"), means, strict=True):
            out[name] = 100.0 * float(value)
    return {"j&f": (out["j"] + out["f"]) / 2, **out}


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def _disc(radius: int) -> np.ndarray:
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return (x * x + y * y <= radius * radius).astype(np.uint8)


def _same_size(truth: np.ndarray, predicted: np.ndarray, name: str = "mask") -> None:
    if truth.shape != predicted.shape:
        raise ValueError(f"{name}: truth is {truth.shape}, prediction {predicted.shape}.")
