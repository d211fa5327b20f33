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
    return _pixels(
        np.unique(curve[:, 1].astype(np.int64) * width + curve[:, 0].astype(np.int64)), width
    )


def box(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """All pixels of the box around the mask (not drawn in the official training)."""
    return _pixels(np.arange(mask.size), mask.shape[1])


KINDS = {"point": point, "circle": circle, "scribble": scribble, "polygon": polygon, "box": box}


def draw(kind: str, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The pixels of a random drawing on a boolean mask [H, W], as int32 [K, 2] of (column, row).

    In reading order, each once. Empty for a mask of fewer than 10 pixels, and now and then for
    another, when every stroke misses it.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown drawing {kind!r}; choose from {sorted(KINDS)}.")
    rows = np.flatnonzero(mask.any(axis=1))
    columns = np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return np.zeros((0, 2), np.int32)
    inside = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    if np.count_nonzero(inside) < MIN_AREA:
        return np.zeros((0, 2), np.int32)
    return KINDS[kind](inside, rng) + np.array([columns[0], rows[0]], np.int32)


def sample(
    drawings: Sequence[np.ndarray], max_points: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """At most max_points pixels of several drawings: int32 [K, 2] and, int32 [K], whose they are.

    Without replacement; every drawing has the same weight, shared evenly by its pixels, so a large
    one does not crowd out a click (official: rand_sample). Grouped by drawing, in reading order.
    """
    sizes = np.array([len(d) for d in drawings], np.int64)
    if not sizes.sum():
        return np.zeros((0, 2), np.int32), np.zeros(0, np.int32)
    owner = np.repeat(np.arange(len(drawings), dtype=np.int32), sizes)
    points = np.concatenate(drawings)
    if len(points) > max_points:
        # The smallest of exponential variables of rate 1 / size are a weighted draw.
        keys = rng.standard_exponential(len(points)) * sizes[owner]
        kept = np.sort(np.argpartition(keys, max_points)[:max_points])
        points, owner = points[kept], owner[kept]
    return points, owner


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


def _pixels(flat: np.ndarray, width: int) -> np.ndarray:
    """(column, row) int32 [K, 2] of indices into a flattened mask."""
    return np.stack([flat % width, flat // width], axis=1).astype(np.int32)


def _pixels_of(mask: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    flat = np.flatnonzero(mask)
    return _pixels(rng.choice(flat, min(count, len(flat)), replace=False), mask.shape[1])


def _strokes(mask: np.ndarray, presets: tuple[Walk, ...], rng: np.random.Generator) -> np.ndarray:
    walk = presets[int(rng.integers(len(presets)))]
    canvas = np.zeros(mask.shape, np.uint8)
    for start in _pixels_of(mask, int(rng.integers(1, MAX_STROKES + 1)), rng):
        brush = int(rng.integers(*walk.brush))
        _paint(canvas, _shake(_walk(start, walk, rng), walk, rng), brush)
    return _pixels(np.flatnonzero(canvas.view(bool) & mask), mask.shape[1])


def _walk(start: np.ndarray, walk: Walk, rng: np.random.Generator) -> np.ndarray:
    """The vertices of one stroke, float64 [n + 1, 2]."""
    count = int(rng.integers(*walk.vertices))
    angle = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.uniform(-walk.turn, walk.turn, count))
    speeds = np.empty(count)
    speed = rng.uniform(0, walk.max_speed)
    for i, change in enumerate(rng.uniform(-walk.acceleration, walk.acceleration, count).tolist()):
        speed = min(max(speed + change, 0.0), walk.max_speed)
        speeds[i] = speed
    steps = speeds[:, None] * np.stack([np.sin(angle), np.cos(angle)], axis=1)  # [n, 2]
    return np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)]) + start[None]


def _shake(line: np.ndarray, walk: Walk, rng: np.random.Generator) -> np.ndarray:
    """The line displaced as a whole, and then half of its vertices displaced a little each."""
    distance, angle = abs(rng.normal(0, walk.shift / 2)), rng.uniform(0, 2 * np.pi)
    line = line + np.trunc(distance * np.array([[np.cos(angle), np.sin(angle)]]))
    moved = rng.permutation(len(line))[: len(line) // 2]
    line[moved] += rng.integers(*walk.shake, (len(moved), 2))
    return line


def _paint(canvas: np.ndarray, line: np.ndarray, brush: int) -> None:
    """Marks the pixels of a line of this width with square ends, and discs at its vertices."""
    line = np.trunc(line)
    along = np.diff(line, axis=0)
    length = np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1)
    aside = along[:, ::-1] / length * np.array([[-0.5, 0.5]]) * (brush - 1)
    start, end = line[:-1], line[1:]
    sides = np.stack([start - aside, start + aside, end + aside, end - aside], axis=1)  # [n, 4, 2]
    for corners in np.round(sides * (1 << SHIFT)).astype(np.int32):
        cv2.fillConvexPoly(canvas, corners, 1, shift=SHIFT)
    radius = max(brush // 2 - 1, 0)
    for centre in line.astype(np.int32).tolist():
        cv2.circle(canvas, centre, radius, 1, cv2.FILLED)
