"""The first drawing of a simulated user: points, circles, scribbles, polygons, boxes on a mask.

A drawing is the set of pixels it covers. Shapes, presets and random laws are those of the official
training samplers (datasets/visual_sampler); lengths are pixels of the training image. Circles and
scribbles are free-form walks (Yu et al. 2019, "Free-Form Image Inpainting with Gated Convolution").
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np

MIN_AREA = 10  # pixels; nobody draws on less
MAX_CLICKS = 20  # of a drawing of kind "point"
MAX_STROKES = 5
MAX_CORNERS = 9  # of a polygon
CURVE_RADIUS = 0.2  # distance of a Bezier control point, as a share of the side
EDGINESS = 0.05
CURVE_POINTS = 100  # pixels marked along one side
SHIFT = 4  # fractional bits of the corners that cv2 fills between


@dataclasses.dataclass(frozen=True)
class Walk:
    """How a pen walks. Bounds are half open, as the official code draws them."""

    vertices: tuple[int, int]
    max_speed: float  # pixels a step
    acceleration: float  # pixels a step, either way
    turn: float  # radians a step, either way
    brush: tuple[int, int]  # width in pixels
    shift: float  # spread of the displacement of the whole line, pixels
    shake: tuple[int, int]  # displacement of half of the vertices, pixels


CIRCLES = (
    Walk((5, 30), 15, 10, 1.5, (20, 50), 10, (-10, 10)),
    Walk((5, 15), 8, 4, 1.5, (20, 50), 10, (-5, 5)),
    Walk((5, 20), 7, 3.5, 1.5, (10, 30), 4, (-5, 5)),
)
SCRIBBLES = (
    Walk((10, 30), 20, 15, 0.5, (3, 10), 6, (-3, 3)),
    Walk((6, 22), 12, 8, 0.5, (2, 5), 3, (-1, 1)),
)


def point(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """1 to 20 pixels of the mask, without repetition."""
    return _pixels_of(mask, int(rng.integers(1, MAX_CLICKS + 1)), rng)


def click(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The 3x3 square about one pixel of the mask, as far as it lies in the box of the mask: what a
    click is in rounds and in evaluation (not drawn in the official training)."""
    marked = np.zeros(mask.shape, np.uint8)
    column, row = _pixels_of(mask, 1, rng)[0]
    marked[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] = 1
    return _pixels(marked)


def circle(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """1 to 5 thick round strokes that begin inside the mask, as far as they cover it."""
    return _strokes(mask, CIRCLES, rng)


def scribble(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """1 to 5 thin strokes that begin inside the mask, as far as they cover it."""
    return _strokes(mask, SCRIBBLES, rng)


def polygon(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A closed curve through 1 to 9 pixels of the mask; it may leave the mask, not its box."""
    height, width = mask.shape
    count = int(rng.integers(1, MAX_CORNERS + 1))
    corners = _pixels_of(mask, count, rng) / np.array([width + 1, height + 1])
    curve = np.clip(closed_curve(corners), 0, 1) * np.array([width - 1, height - 1])
    flat = np.unique(curve[:, 1].astype(np.int64) * width + curve[:, 0].astype(np.int64))
    return np.stack([flat % width, flat // width], axis=1).astype(np.int32)


def box(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """All pixels of the box around the mask (not drawn in the official training)."""
    return _pixels(np.ones(mask.shape, np.uint8))


KINDS = {
    "point": point,
    "click": click,
    "circle": circle,
    "scribble": scribble,
    "polygon": polygon,
    "box": box,
}


def draw(kind: str, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The pixels of a random drawing on a boolean mask [H, W], as int32 [K, 2] of (column, row).

    In reading order, each once. Empty for a mask of fewer than 10 pixels, and now and then for
    another, when every stroke misses it.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown drawing {kind!r}; choose from {sorted(KINDS)}.")
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
    inside = mask[top : top + height, left : left + width]
    if np.count_nonzero(inside) < MIN_AREA:
        return np.zeros((0, 2), np.int32)
    return KINDS[kind](inside, rng) + np.array([left, top], np.int32)


def sample(
    drawings: Sequence[np.ndarray], max_points: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """At most max_points pixels of several drawings: int32 [K, 2] and, int32 [K], whose they are.

    Without replacement; every drawing has the same weight, shared evenly by its pixels, so a large
    one does not crowd out a click (official: rand_sample). Grouped by drawing, in reading order.
    """
    sizes = np.array([len(d) for d in drawings], np.int64)
    if sizes.sum() <= max_points:
        kept = list(drawings)
    else:
        # The smallest of exponential variables of rate 1 / size are a weighted draw. How many fall
        # to a drawing is told by the smallest of its variables, which are sums of their gaps.
        bounds = np.minimum(sizes, max_points)
        owner = np.repeat(np.arange(len(drawings)), bounds)
        keys = [
            np.cumsum(rng.standard_exponential(bound) / (size - np.arange(bound))) * size
            for size, bound in zip(sizes.tolist(), bounds.tolist())
        ]
        smallest = np.argpartition(np.concatenate(keys), max_points - 1)[:max_points]
        counts = np.bincount(owner[smallest], minlength=len(drawings)).tolist()
        kept = [
            drawing[np.sort(rng.choice(len(drawing), count, replace=False, shuffle=False))]
            for drawing, count in zip(drawings, counts)
        ]
    owner = np.repeat(np.arange(len(kept), dtype=np.int32), [len(points) for points in kept])
    return np.concatenate([np.zeros((0, 2), np.int32), *kept]), owner


def closed_curve(corners: np.ndarray) -> np.ndarray:
    """[100 n, 2] points of a chain of cubic Bezier curves through corners [n, 2] sorted by angle.

    Its tangent at a corner lies between the directions of the two sides that meet there; corners
    are scaled to the unit square, as the official get_bezier_curve expects.
    """
    around = corners - corners.mean(axis=0)
    corners = corners[np.argsort(np.arctan2(around[:, 0], around[:, 1]), kind="stable")]
    following = np.roll(corners, -1, axis=0)
    side = following - corners
    ahead = np.arctan2(side[:, 1], side[:, 0]) % (2 * np.pi)
    behind = np.roll(ahead, 1)
    share = np.arctan(EDGINESS) / np.pi + 0.5
    angle = share * ahead + (1 - share) * behind + (np.abs(behind - ahead) > np.pi) * np.pi
    heading = np.stack([np.cos(angle), np.sin(angle)], axis=1)  # [n, 2]
    reach = CURVE_RADIUS * np.linalg.norm(side, axis=1, keepdims=True)
    control = np.stack(
        [
            corners,
            corners + reach * heading,
            following - reach * np.roll(heading, -1, axis=0),
            following,
        ]
    )  # [4, n, 2]
    return np.einsum("tc,cnd->ntd", BERNSTEIN, control).reshape(-1, 2)


def _bernstein(count: int) -> np.ndarray:
    t = np.linspace(0, 1, count)
    return np.stack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3], axis=1)


BERNSTEIN = _bernstein(CURVE_POINTS)  # [100, 4]


def _pixels(canvas: np.ndarray) -> np.ndarray:
    """(column, row) int32 [K, 2] of the pixels of a uint8 canvas that are not 0, in reading order."""
    found = cv2.findNonZero(canvas)
    return np.zeros((0, 2), np.int32) if found is None else found.reshape(-1, 2)


def _pixels_of(mask: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """(column, row) int32 [K, 2] of `count` pixels of a mask, or of all, in random order."""
    per_column = cv2.reduce(mask.view(np.uint8), 0, cv2.REDUCE_SUM, dtype=cv2.CV_32S)
    ends = np.cumsum(per_column)
    chosen = rng.choice(int(ends[-1]), min(count, int(ends[-1])), replace=False)  # of all pixels
    columns = np.searchsorted(ends, chosen, "right")
    before = np.where(columns > 0, ends[columns - 1], 0)
    rows = [np.flatnonzero(mask[:, x])[n] for x, n in zip(columns, chosen - before)]
    return np.stack([columns, rows], axis=1).astype(np.int32)


def _strokes(mask: np.ndarray, presets: tuple[Walk, ...], rng: np.random.Generator) -> np.ndarray:
    walk = presets[int(rng.integers(len(presets)))]
    starts = _pixels_of(mask, int(rng.integers(1, MAX_STROKES + 1)), rng)
    return strokes_from(mask, starts, walk, rng)


def strokes_from(
    mask: np.ndarray, starts: np.ndarray, walk: Walk, rng: np.random.Generator
) -> np.ndarray:
    """The pixels, int32 [K, 2] as of `draw`, of a stroke from each of starts [n, 2] (column, row), as
    far as they cover the mask."""
    canvas = np.zeros(mask.shape, np.uint8)
    counts = rng.integers(*walk.vertices, len(starts)) + 1
    lines = _shake(_walk(starts, counts, walk, rng), counts, walk, rng)
    for line, count, brush in zip(lines, counts, rng.integers(*walk.brush, len(starts)).tolist()):
        _paint(canvas, line[:count], brush)
    return _pixels(cv2.bitwise_and(canvas, mask.view(np.uint8)))


def _walk(
    starts: np.ndarray, counts: np.ndarray, walk: Walk, rng: np.random.Generator
) -> np.ndarray:
    """The vertices of strokes that begin at `starts` [n, 2], float64 [n, v, 2].

    Stroke i has counts[i] of them; what follows is of no use.
    """
    shape = len(starts), int(counts.max()) - 1
    angle = rng.uniform(0, 2 * np.pi, (shape[0], 1))
    angle = angle + np.cumsum(rng.uniform(-walk.turn, walk.turn, shape), axis=1)
    first = rng.uniform(0, walk.max_speed, shape[0]).tolist()
    speeds = []
    for speed, changes in zip(
        first, rng.uniform(-walk.acceleration, walk.acceleration, shape).tolist()
    ):
        for change in changes:
            speed = min(max(speed + change, 0.0), walk.max_speed)
            speeds.append(speed)
    lines = np.empty((shape[0], shape[1] + 1, 2))
    lines[:, 0] = starts
    lines[:, 1:, 0], lines[:, 1:, 1] = np.sin(angle), np.cos(angle)
    lines[:, 1:] *= np.reshape(speeds, (*shape, 1))
    return np.cumsum(lines, axis=1)


def _shake(
    lines: np.ndarray, counts: np.ndarray, walk: Walk, rng: np.random.Generator
) -> np.ndarray:
    """The lines displaced as a whole, and then half of their vertices displaced a little each."""
    distance = np.abs(rng.normal(0, walk.shift / 2, (len(lines), 1, 1)))
    angle = rng.uniform(0, 2 * np.pi, (len(lines), 1, 1))
    lines = lines + np.trunc(distance * np.concatenate([np.cos(angle), np.sin(angle)], axis=2))
    keys = rng.random(lines.shape[:2])
    keys[np.arange(lines.shape[1]) >= counts[:, None]] = 1  # after all others
    ranks = np.argsort(np.argsort(keys, axis=1), axis=1)
    moved = ranks < (counts // 2)[:, None]  # [n, v]
    return lines + rng.integers(*walk.shake, lines.shape) * moved[:, :, None]


def _paint(canvas: np.ndarray, line: np.ndarray, brush: int) -> None:
    """Marks the pixels of a line of this width with square ends, and discs at its vertices."""
    line = np.trunc(line)
    along = np.diff(line, axis=0)
    length = np.maximum(np.hypot(along[:, :1], along[:, 1:]), 1)
    aside = along[:, ::-1] / length * np.array([[-0.5, 0.5]]) * (brush - 1)
    corners = np.empty((len(aside), 4, 2))
    corners[:, 0], corners[:, 1] = line[:-1] - aside, line[:-1] + aside
    corners[:, 2], corners[:, 3] = line[1:] + aside, line[1:] - aside
    for side in np.round(corners * (1 << SHIFT)).astype(np.int32):
        cv2.fillConvexPoly(canvas, side, 1, shift=SHIFT)
    radius = max(brush // 2 - 1, 0)
    for centre in line.astype(np.int32).tolist():
        cv2.circle(canvas, centre, radius, 1, cv2.FILLED)
