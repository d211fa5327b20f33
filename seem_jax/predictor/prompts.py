"""What a user asks about an image, and how it becomes points of the model image."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from seem_jax import image as images
from seem_jax.data.transforms import Placement, place_map
from seem_jax.predictor import checks
from seem_jax.predictor.programs import MAX_POINTS
from seem_jax.predictor.reference import Reference
from seem_jax.predictor.thinning import fair_shares, thin

STROKE_WIDTH = 3  # pixels of the model image; trained strokes are 2 to 10
# Of a box, the ellipse that is this wide and high stands for the object: no stroke of the official training
# fills a box, and its corners show what is behind.
BOX_SHARE = 0.8


@dataclasses.dataclass(frozen=True, eq=False)
class MaskMemory:
    """What an earlier answer on the same image was: give it to the next round."""

    embedding: np.ndarray  # float32 [D]


@dataclasses.dataclass(frozen=True, eq=False)
class Prompts:
    """One question: any mix of prompts, all about one object, in pixels of the original image.

    Points are (x, y), boxes (x0, y0, x1, y1). Several phrases are several questions, each with
    all other prompts. At least one prompt is given.
    """

    points: Any = None  # numbers [n, 2] or [2]
    point_labels: Any = None  # 1 "this object", 0 "not this"; all 1 if absent
    box: Any = None  # numbers [4], or [n, 4] for an object in parts
    scribble: Any = None  # a line [n, 2], several of them, or painted pixels bool [H, W]
    scribble_labels: Any = None  # one per line, as point_labels
    polygon: Any = None  # corners [n, 2], or a list of such
    mask: Any = None  # bool [H, W]
    text: str | Sequence[str] | None = None
    reference: Reference | None = None
    memory: MaskMemory | None = None

    @property
    def given(self) -> tuple[str, ...]:
        """Names of the kinds of prompts that are there."""
        kinds = (field.name for field in dataclasses.fields(self) if "labels" not in field.name)
        return tuple(kind for kind in kinds if getattr(self, kind) is not None)

    def check_given(self) -> None:
        """Raises ValueError where nothing is asked, or labels stand alone."""
        for labels, name, of in (
            (self.point_labels, "point_labels", "points"),
            (self.scribble_labels, "scribble_labels", "scribble"),
        ):
            if labels is not None and getattr(self, of) is None:
                raise ValueError(f"{name} was given without {of}.")
        if not self.given:
            raise ValueError(
                "no prompt was given: expected points, box, scribble, polygon, mask, text, reference "
                "or memory; for everything in the image call panoptic() or instances()."
            )


def prompts_of(asked: Any, name: str) -> Prompts:
    """The prompts, or the dict of their fields, that a caller gave under this name."""
    if isinstance(asked, Prompts):
        return asked
    if not isinstance(asked, Mapping):
        raise ValueError(
            f"{name} is or holds a {type(asked).__name__}; expected Prompts or a dict."
        )
    known = {field.name for field in dataclasses.fields(Prompts)}
    unknown = sorted(map(str, set(asked) - known))
    if unknown:
        raise ValueError(f"{name} has {unknown}; expected some of {sorted(known)}.")
    return Prompts(**asked)


def joined(parts: Sequence[Prompts]) -> Prompts:
    """One question out of several about the same object, of which one at most has a phrase, a
    reference or a memory."""

    def given(kind: str) -> list[Any]:
        values = (getattr(part, kind) for part in parts)
        return [value for value in values if value is not None]

    def single(kind: str) -> Any:
        values = given(kind)
        if len(values) > 1:
            raise ValueError(f"{kind} was given {len(values)} times for one object; expected once.")
        return values[0] if values else None

    points = [(np.atleast_2d(p.points), p.point_labels) for p in parts if p.points is not None]
    lines = [(_lines(p.scribble), p.scribble_labels) for p in parts if p.scribble is not None]
    boxes = [np.atleast_2d(box) for box in given("box")]
    masks = [np.asarray(mask) > 0 for mask in given("mask")]
    rings = [ring for polygon in given("polygon") for ring in checks.several(polygon, "polygon")]
    return Prompts(
        points=np.concatenate([where for where, _ in points]) if points else None,
        point_labels=_labels(points),
        box=np.concatenate(boxes) if boxes else None,
        scribble=[line for group, _ in lines for line in group] or None,
        scribble_labels=_labels(lines),
        polygon=rings or None,
        mask=np.logical_or.reduce(masks) if masks else None,
        text=single("text"),
        reference=single("reference"),
        memory=single("memory"),
    )


def _lines(scribble: Any) -> list[Any]:
    """The lines and painted regions of a scribble."""
    painted = isinstance(scribble, np.ndarray) and scribble.dtype == bool
    return [scribble] if painted else list(checks.several(scribble, "scribble"))


def _labels(groups: list[tuple[Sequence[Any], Any]]) -> np.ndarray | None:
    """The labels of all groups, 1 where a group has none; None without groups."""
    labels = [
        np.ones(len(group)) if given is None else np.atleast_1d(given) for group, given in groups
    ]
    return np.concatenate(labels) if labels else None


@dataclasses.dataclass(frozen=True, eq=False)
class Drawn:
    """The points of all that was drawn, of one static shape."""

    points: np.ndarray  # float32 [K, 2] in [0, 1)
    positive: np.ndarray  # bool [K]
    valid: np.ndarray  # bool [K]
    dropped: int  # marked pixels beyond what fits


def draw(prompts: Prompts, placement: Placement, region_points: int) -> Drawn:
    """The points of a question's drawings; clicks are 3 x 3 pixels of the model image.

    Of a line or region at most region_points pixels are kept, and of all drawings MAX_POINTS in
    fair shares: pixels chosen once and for all by their number, so that the same drawing always
    gives the same points. Raises ValueError naming the argument that cannot be drawn.
    """
    size, pen = placement.original, _Pen(placement)
    parts: list[tuple[np.ndarray, bool]] = []
    if prompts.points is not None:
        where = checks.points(prompts.points, size)
        labels = checks.labels(prompts.point_labels, len(where))
        parts += [(pen.click(xy), bool(good)) for xy, good in zip(where, labels, strict=True)]
    regions: list[tuple[np.ndarray, bool]] = []
    if prompts.box is not None:
        regions += [(pen.box(box), True) for box in checks.boxes(prompts.box, size)]
    if prompts.scribble is not None:
        lines = checks.strokes(prompts.scribble, size)
        labels = checks.labels(prompts.scribble_labels, len(lines), "scribble_labels")
        for line, good in zip(lines, labels, strict=True):
            pixels = pen.mask(line) if line.dtype == bool else pen.line(line)
            regions.append((pixels, bool(good)))
    if prompts.polygon is not None:
        regions.append((pen.polygons(checks.polygons(prompts.polygon, size)), True))
    if prompts.mask is not None:
        regions.append((pen.mask(checks.mask(prompts.mask, size)), True))
    parts += regions
    marked = sum(len(pixels) for pixels, _ in parts)
    # Neither the order of drawings nor a repetition may change what is kept of them.
    parts = [(thin(pixels, region_points), good) for pixels, good in parts]
    different = {(good, pixels.tobytes()): (pixels, good) for pixels, good in parts}
    ordered = [different[key] for key in sorted(different)]
    return _collect(ordered, placement.side, marked)


def _collect(parts: list[tuple[np.ndarray, bool]], side: int, marked: int) -> Drawn:
    """The points in a fixed order, each once."""
    shares = fair_shares([len(pixels) for pixels, _ in parts], MAX_POINTS)
    kept = [
        np.concatenate([thin(pixels, share), np.full((min(share, len(pixels)), 1), good)], axis=1)
        for (pixels, good), share in zip(parts, shares, strict=True)
    ]
    rows = np.unique(np.concatenate(kept), axis=0) if kept else np.zeros((0, 3), np.int64)
    points = np.zeros((MAX_POINTS, 2), np.float32)
    points[: len(rows)] = rows[:, :2] / side
    positive = np.zeros(MAX_POINTS, bool)
    positive[: len(rows)] = rows[:, 2] > 0
    valid = np.arange(MAX_POINTS) < len(rows)
    return Drawn(points, positive, valid, dropped=marked - sum(len(part) for part in kept))


class _Pen:
    """Marks pixels of the model image; every result is int64 [n, 2] of (column, row), not empty."""

    def __init__(self, placement: Placement):
        self.placement = placement
        height, width = placement.resized
        self.scale = np.array([width, height]) / np.array(placement.original[::-1])
        self.last = np.array([width - 1, height - 1])

    def click(self, xy: np.ndarray) -> np.ndarray:
        """The 3 x 3 pixels about a click, as far as the model image reaches."""
        centre = self._pixels(xy[None])[0]
        near = np.stack(np.meshgrid([-1, 0, 1], [-1, 0, 1]), -1).reshape(-1, 2)
        square = centre[None] + near
        return square[((square >= 0) & (square < self.placement.side)).all(1)]

    def box(self, box: np.ndarray) -> np.ndarray:
        """The pixels of an ellipse in the middle of the box; every box has a middle pixel or four."""
        start = np.minimum(np.floor(box[:2] * self.scale).astype(np.int64), self.last)
        end = np.minimum(np.ceil(box[2:] * self.scale).astype(np.int64) - 1, self.last)
        end = np.maximum(start, end)
        columns, rows = (np.arange(a, b + 1) for a, b in zip(start, end, strict=True))
        inside = np.stack(np.meshgrid(columns, rows), -1).reshape(-1, 2)
        away = (2 * inside - start - end) / (BOX_SHARE * (end - start + 1))
        return inside[(away**2).sum(-1) <= 1]

    def line(self, corners: np.ndarray) -> np.ndarray:
        pixels = self._pixels(corners).astype(np.int32)
        canvas = np.zeros(self.placement.resized, np.uint8)
        cv2.polylines(canvas, [pixels[:, None]], False, 1, STROKE_WIDTH)
        canvas[pixels[:, 1], pixels[:, 0]] = 1
        return _marked(canvas)

    def polygons(self, rings: list[np.ndarray]) -> np.ndarray:
        canvas = np.zeros(self.placement.resized, np.uint8)
        for ring in rings:  # one by one: together, overlapping ones would cut each other out
            corners = np.clip(np.round(ring * self.scale[None] - 0.5), 0, self.last[None])
            cv2.fillPoly(canvas, [corners.astype(np.int32)[:, None]], 1)
        return _marked(canvas)

    def mask(self, mask: np.ndarray) -> np.ndarray:
        pixels = _marked(place_map(mask, self.placement))
        if len(pixels):
            return pixels
        # So thin that no centre of a model pixel meets it.
        return np.unique(self._pixels(_marked(mask)), axis=0)

    def _pixels(self, where: np.ndarray) -> np.ndarray:
        """int64 [n, 2], the model pixels that hold points of the original image."""
        placed = self.placement
        unit = images.fit_points(where, placed.original, placed.resized, placed.side)
        return np.round(unit * placed.side).astype(np.int64)


def _marked(canvas: np.ndarray) -> np.ndarray:
    return np.argwhere(canvas)[:, ::-1]
