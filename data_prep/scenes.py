"""Draws scenes: coloured, textured shapes over two or three kinds of ground.

A `Scene` is a plain description; `render` turns it into an image and an index map. Lengths are in
pixels of the finished image. Everything is drawn `SUPERSAMPLING` times larger and shrunk.
"""

from __future__ import annotations

import dataclasses
import functools

import cv2
import numpy as np

SUPERSAMPLING = 3
REFERENCE_SIZE = 96  # pixels; radii and texture periods below are for an image of this size

COLORS = {  # RGB; far from each other and from the ground colours
    "red": (225, 25, 35),
    "orange": (255, 135, 10),
    "yellow": (255, 235, 20),
    "green": (10, 200, 50),
    "blue": (25, 50, 235),
    "purple": (135, 30, 200),
    "pink": (255, 125, 205),
    "white": (252, 252, 252),
}
TEXTURES = ("plain", "striped", "dotted")
SIZES = {"small": (13.5, 15.5), "large": (20.0, 23.0)}  # range of the radius at REFERENCE_SIZE
STUFF = ("sky", "grass", "water", "sand", "brick")

# Never drawn together in train, val and the videos: naming them tests composition.
HELD_OUT = {
    "red": "heart",
    "orange": "square",
    "yellow": "moon",
    "green": "star",
    "blue": "triangle",
    "purple": "circle",
    "pink": "arrow",
    "white": "cross",
}
PATTERN, RIM = 0.65, 0.15  # brightness of stripes and dots, and of the rim, as shares of the colour
SHARED = 0.2  # chance that a thing takes the shape, and that it takes the colour, of another
TILT = 0.2  # largest turn of a thing in radians; some shapes would be others upside down
MIN_VISIBLE = 0.7  # share of a thing that stays visible when the scene is composed


@dataclasses.dataclass(frozen=True)
class Thing:
    """One shape. `angle` in radians; `stretch` is its width over its height before turning."""

    shape: str
    color: str
    texture: str
    size: str
    x: float
    y: float
    radius: float
    angle: float
    stretch: float = 1.0
    shade: tuple[int, int, int] = (0, 0, 0)  # added to the RGB of the colour


@dataclasses.dataclass(frozen=True)
class Ground:
    """Bands of stuff along one direction, bounded by straight or wavy lines."""

    classes: tuple[str, ...]
    direction: float  # radians; the bands follow each other along it
    bounds: tuple[float, ...]  # pixels from the centre along the direction, ascending
    amplitude: float  # of the waves, pixels; 0 is straight
    wavelength: float  # pixels
    phase: float
    offsets: tuple[tuple[float, float], ...]  # where each texture tile starts, shares of its side
    brightness: tuple[float, ...]  # factor for each band


@dataclasses.dataclass(frozen=True)
class Scene:
    """The ground and the things on it, back to front."""

    size: int
    ground: Ground
    things: tuple[Thing, ...]


def _arc(radius: float, start: float, stop: float, center: float = 0.0) -> np.ndarray:
    turn = np.linspace(start, stop, 24)
    return np.stack([center + radius * np.cos(turn), radius * np.sin(turn)], axis=-1)  # [24, 2]


def _star() -> np.ndarray:
    turn = -np.pi / 2 + np.arange(10) * np.pi / 5
    radius = np.where(np.arange(10) % 2 == 0, 1.2, 0.58)
    return np.stack([radius * np.cos(turn), radius * np.sin(turn)], axis=-1)


def _heart() -> np.ndarray:
    turn = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    x = 16 * np.sin(turn) ** 3
    y = -(13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn))
    return np.stack([x, y - 2], axis=-1) / 15.5


def _moon() -> np.ndarray:
    outer, inner, shift = 1.1, 0.9, 0.7  # two circles; the second is cut out of the first
    x = (outer**2 - inner**2 + shift**2) / (2 * shift)
    tip = np.sqrt(outer**2 - x**2)
    a, b = np.arctan2(tip, x), np.arctan2(tip, x - shift)
    body = np.concatenate([_arc(outer, a, 2 * np.pi - a), _arc(inner, 2 * np.pi - b, b, shift)])
    return body + np.array([0.25, 0.0])


def _cross() -> np.ndarray:
    a, b = 1.05, 0.42
    arm = [(b, b), (b, a), (-b, a), (-b, b), (-a, b), (-a, -b), (-b, -b), (-b, -a), (b, -a)]
    return np.array([*arm, (b, -b), (a, -b), (a, b)])


def _arrow() -> np.ndarray:
    points = [(-1.15, -0.4), (0.1, -0.4), (0.1, -0.98), (1.2, 0.0)]
    return np.array(points + [(x, -y) for x, y in reversed(points[:-1])])


SHAPES = {  # closed outlines around (0, 0); a second outline is a hole
    "circle": (_arc(1.0, 0, 2 * np.pi),),
    "square": (np.array([(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)]),),
    "triangle": (np.array([(0.0, -1.2), (1.04, 0.6), (-1.04, 0.6)]),),
    "star": (_star(),),
    "cross": (_cross(),),
    "ring": (_arc(1.05, 0, 2 * np.pi), _arc(0.5, 0, 2 * np.pi)),
    "heart": (_heart(),),
    "moon": (_moon(),),
    "arrow": (_arrow(),),
    "bowtie": (
        np.array([(-1.1, -0.85), (0, -0.26), (1.1, -0.85), (1.1, 0.85), (0, 0.26), (-1.1, 0.85)]),
    ),
}


def held_out(thing: Thing) -> bool:
    """Whether the thing is one of the pairs of colour and shape that training never shows."""
    return HELD_OUT[thing.color] == thing.shape


def sample_scene(rng: np.random.Generator, size: int, unseen: bool = False) -> Scene:
    """A random scene of 2 to 4 things; with `unseen` the first has a held-out pair, else none has.

    Every thing is visible to at least MIN_VISIBLE, every band of ground covers 4% of the image.
    """
    while True:
        ground = _sample_ground(rng, size)
        things = _sample_things(rng, size, int(rng.integers(2, 5)), unseen)
        scene = Scene(size, ground, things)
        areas = np.bincount(index_map(scene).ravel(), minlength=len(ground.classes) + 1)
        if len(things) >= 2 and areas[1 : len(ground.classes) + 1].min() >= 0.04 * size**2:
            return scene


def _sample_ground(rng: np.random.Generator, size: int) -> Ground:
    count = int(rng.integers(2, 4))
    middle = rng.uniform(-0.2, 0.2, 1) if count == 2 else rng.uniform(0.1, 0.3, 2) * [-1, 1]
    wavy = rng.random() < 0.5
    return Ground(
        classes=tuple(str(name) for name in rng.choice(STUFF, count, replace=False)),
        direction=float(rng.uniform(0, 2 * np.pi)),
        bounds=tuple(float(bound) for bound in middle * size),
        amplitude=float(rng.uniform(0.02, 0.06) * size) if wavy else 0.0,
        wavelength=float(rng.uniform(0.25, 0.6) * size),
        phase=float(rng.uniform(0, 2 * np.pi)),
        offsets=tuple((float(x), float(y)) for x, y in rng.uniform(0, 0.5, (count, 2))),
        brightness=tuple(float(factor) for factor in rng.uniform(0.92, 1.06, count)),
    )


def _sample_things(
    rng: np.random.Generator, size: int, count: int, unseen: bool
) -> tuple[Thing, ...]:
    things: list[Thing] = []
    shown = np.full((size, size), -1, np.int8)  # which thing covers each pixel
    areas: list[int] = []
    for _ in range(20 * count):  # a crowded scene may stay smaller than asked
        if len(things) == count:
            break
        thing = _sample_thing(rng, size, things, unseen and not things)
        mask = _mask(thing, size, 1)
        trial = np.where(mask, np.int8(len(things)), shown)
        visible = np.bincount(trial[trial >= 0], minlength=len(things) + 1)
        full = np.array([*areas, int(mask.sum())])
        if (visible >= MIN_VISIBLE * 1.1 * full).all():  # a margin: the final map is drawn finer
            things.append(thing)
            areas.append(int(mask.sum()))
            shown = trial
    return tuple(things)


def _sample_thing(
    rng: np.random.Generator, size: int, others: list[Thing], must_be_held_out: bool
) -> Thing:
    """A thing that often shares its shape or colour with another, so that sentences must tell."""
    while True:
        shape, color = str(rng.choice(list(SHAPES))), str(rng.choice(list(COLORS)))
        if others and rng.random() < SHARED:
            shape = others[int(rng.integers(len(others)))].shape
        if others and rng.random() < SHARED:
            color = others[int(rng.integers(len(others)))].color
        if must_be_held_out:
            shape = HELD_OUT[color]
        if (HELD_OUT[color] == shape) == must_be_held_out:
            break
    name = str(rng.choice(list(SIZES)))
    radius = float(rng.uniform(*SIZES[name]) * size / REFERENCE_SIZE)
    x, y = rng.uniform(radius, size - radius, 2)
    return Thing(
        shape=shape,
        color=color,
        texture=str(rng.choice(TEXTURES)),
        size=name,
        x=float(x),
        y=float(y),
        radius=radius,
        angle=float(rng.uniform(-TILT, TILT)),
        stretch=float(rng.uniform(0.9, 1.1)),
        shade=tuple(int(value) for value in rng.integers(-10, 11, 3)),
    )


def index_map(scene: Scene) -> np.ndarray:
    """uint8 [size, size]: 1.. are the bands of the ground in order, then the things in order."""
    return _draw_index(scene)[1::SUPERSAMPLING, 1::SUPERSAMPLING]


def render(scene: Scene, noise: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The image uint8 [size, size, 3] (RGB) and its index map, see `index_map`."""
    index = _draw_index(scene)  # [s, s] with s = size * SUPERSAMPLING
    side = len(index)
    canvas = np.empty((side, side, 3), np.uint8)
    ground = scene.ground
    for band, name in enumerate(ground.classes):
        tile = stuff_tile(name, scene.size)
        x, y = (int(share * side) for share in ground.offsets[band])
        crop = cv2.convertScaleAbs(tile[y : y + side, x : x + side], alpha=ground.brightness[band])
        np.copyto(canvas, crop, where=(index == band + 1)[:, :, None])
    for number, thing in enumerate(scene.things, start=len(ground.classes) + 1):
        _paint(canvas, index, number, thing, scene.size)
    image = cv2.resize(canvas, (scene.size, scene.size), interpolation=cv2.INTER_AREA)
    grain = noise.integers(-4, 5, image.shape, dtype=np.int16)
    image = np.clip(image.astype(np.int16) + grain, 0, 255).astype(np.uint8)
    return image, np.ascontiguousarray(index[1::SUPERSAMPLING, 1::SUPERSAMPLING])


def _outlines(thing: Thing, zoom: int) -> list[np.ndarray]:
    """The outlines in 1/16 pixels of a canvas `zoom` times the image, for cv2 with shift 4."""
    cos, sin = np.cos(thing.angle), np.sin(thing.angle)
    turn = np.array([[cos, sin], [-sin, cos]])
    stretch = np.array([np.sqrt(thing.stretch), 1 / np.sqrt(thing.stretch)])
    return [
        np.round(
            (((outline * stretch * thing.radius) @ turn + [thing.x, thing.y]) * zoom - 0.5) * 16
        ).astype(np.int32)
        for outline in SHAPES[thing.shape]
    ]


def _mask(thing: Thing, size: int, zoom: int) -> np.ndarray:
    canvas = np.zeros((size * zoom, size * zoom), np.uint8)
    cv2.fillPoly(canvas, _outlines(thing, zoom), 1, shift=4)
    return canvas.astype(bool)


def _draw_index(scene: Scene) -> np.ndarray:
    side, ground = scene.size * SUPERSAMPLING, scene.ground
    steps = (np.arange(side, dtype=np.float32) + 0.5) / SUPERSAMPLING - scene.size / 2
    cos, sin = np.float32(np.cos(ground.direction)), np.float32(np.sin(ground.direction))
    along = steps[None, :] * cos + steps[:, None] * sin
    if ground.amplitude:
        across = steps[:, None] * cos - steps[None, :] * sin
        wave = np.sin(across * np.float32(2 * np.pi / ground.wavelength) + np.float32(ground.phase))
        along = along + np.float32(ground.amplitude) * wave
    index = np.ones((side, side), np.uint8)
    for bound in ground.bounds:
        index += (along > bound).astype(np.uint8)
    for number, thing in enumerate(scene.things, start=len(ground.classes) + 1):
        cv2.fillPoly(index, _outlines(thing, SUPERSAMPLING), number, shift=4)
    return index


def _paint(canvas: np.ndarray, index: np.ndarray, number: int, thing: Thing, size: int) -> None:
    """Colours the pixels of one thing, in place."""
    rows, columns = np.where(index == number)
    if not len(rows):
        return
    color = np.clip(np.array(COLORS[thing.color]) + thing.shade, 0, 255)
    unit = SUPERSAMPLING * size / REFERENCE_SIZE
    dx = columns - thing.x * SUPERSAMPLING
    dy = rows - thing.y * SUPERSAMPLING
    along = (dx * np.cos(thing.angle) + dy * np.sin(thing.angle)) / unit
    across = (dy * np.cos(thing.angle) - dx * np.sin(thing.angle)) / unit
    dark = np.zeros(len(rows), bool)
    if thing.texture == "striped":
        dark = (along % 5.0) < 2.2
    elif thing.texture == "dotted":
        dark = (along % 5.0 - 2.5) ** 2 + (across % 5.0 - 2.5) ** 2 < 1.6**2
    values = np.where(dark[:, None], (color * PATTERN)[None, :], color[None, :])
    canvas[rows, columns] = values.astype(np.uint8)
    # A darker rim, so that overlapping things of one colour can be told apart.
    rim = np.zeros(index.shape, np.uint8)
    cv2.polylines(rim, _outlines(thing, SUPERSAMPLING), True, 1, thickness=4, shift=4)
    on_rim = rim[rows, columns] > 0
    canvas[rows[on_rim], columns[on_rim]] = (color * RIM).astype(np.uint8)


@functools.cache
def stuff_tile(name: str, size: int) -> np.ndarray:
    """A fixed texture, uint8 [2 s, 2 s, 3] with s = size * SUPERSAMPLING, to cut pieces from."""
    side = 2 * size * SUPERSAMPLING
    unit = SUPERSAMPLING * size / REFERENCE_SIZE
    rng = np.random.default_rng([7, STUFF.index(name)])
    return np.clip(_TILES[name](side, unit, rng), 0, 255).astype(np.uint8)


def _blobs(side: int, cells: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise in [0, 1], float [side, side, 1]."""
    coarse = rng.random((cells, cells)).astype(np.float32)
    return np.clip(cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC), 0, 1)[..., None]


def _sky(side: int, unit: float, rng: np.random.Generator) -> np.ndarray:
    clouds = np.clip(_blobs(side, 14, rng) * 1.8 - 0.9, 0, 1)
    return np.array([150, 190, 225]) * (1 - clouds) + np.array([205, 220, 232]) * clouds


def _grass(side: int, unit: float, rng: np.random.Generator) -> np.ndarray:
    tile = np.full((side, side, 3), (92, 122, 66), np.uint8)
    shades = [(70, 98, 50), (112, 142, 80), (82, 112, 60)]
    for k in range(int(side * side / (9 * unit * unit))):
        x, y = (int(value) for value in rng.integers(0, side, 2))
        end = (x + int(rng.normal(0, unit)), y - int(4 * unit))
        cv2.line(tile, (x, y), end, shades[k % 3], max(1, round(0.6 * unit)))
    return tile


def _water(side: int, unit: float, rng: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[:side, :side] / unit
    waves = np.sin((y + 1.6 * np.sin(x * 0.35)) * 2 * np.pi / 7.0)[..., None]
    light = np.clip(waves - 0.55, 0, 1) * 2
    return np.array([58, 108, 128]) + light * np.array([60, 55, 50]) + 12 * _blobs(side, 20, rng)


def _sand(side: int, unit: float, rng: np.random.Generator) -> np.ndarray:
    cells = max(1, round(side / unit))
    speckle = rng.normal(0, 13, (cells, cells)).astype(np.float32)
    speckle = cv2.resize(speckle, (side, side), interpolation=cv2.INTER_NEAREST)[..., None]
    return np.array([205, 184, 140]) + speckle + 14 * (_blobs(side, 12, rng) - 0.5)


def _brick(side: int, unit: float, rng: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[:side, :side] / unit
    row = np.floor(y / 6).astype(int)
    column = np.floor((x + 6 * (row % 2)) / 12).astype(int)
    mortar = ((y % 6) < 1.1) | (((x + 6 * (row % 2)) % 12) < 1.1)
    shades = rng.uniform(-14, 14, (row.max() + 1, column.max() + 1))[row, column]
    wall = np.array([146, 88, 74]) + shades[..., None]
    return np.where(mortar[..., None], np.array([186, 174, 164]), wall)


_TILES = {"sky": _sky, "grass": _grass, "water": _water, "sand": _sand, "brick": _brick}


@dataclasses.dataclass(frozen=True)
class Motion:
    """How one thing moves: pixels and radians a frame; its stretch swings by a factor."""

    velocity: tuple[float, float]
    spin: float
    swing: float  # largest change of log(stretch)
    period: float  # frames


@dataclasses.dataclass(frozen=True)
class Clip:
    """A scene and how its things move; they bounce off the borders and pass over each other."""

    scene: Scene
    motions: tuple[Motion, ...]


def sample_clip(rng: np.random.Generator, size: int) -> Clip:
    """A random clip; every thing is well visible in its first frame."""
    scene = sample_scene(rng, size)
    motions = tuple(
        Motion(
            velocity=tuple(float(step) for step in rng.uniform(-0.045, 0.045, 2) * size),
            spin=float(rng.uniform(-0.2, 0.2)),
            swing=float(rng.uniform(0.1, 0.5)),
            period=float(rng.uniform(5, 12)),
        )
        for _ in scene.things
    )
    return Clip(scene, motions)


def frame(clip: Clip, time: int) -> Scene:
    """The scene at a frame number, counted from 0."""
    things = tuple(
        dataclasses.replace(
            thing,
            x=_bounce(thing.x + motion.velocity[0] * time, thing.radius, clip.scene.size),
            y=_bounce(thing.y + motion.velocity[1] * time, thing.radius, clip.scene.size),
            angle=thing.angle + motion.spin * time,
            stretch=thing.stretch
            * float(np.exp(motion.swing * np.sin(2 * np.pi * time / motion.period))),
        )
        for thing, motion in zip(clip.scene.things, clip.motions, strict=True)
    )
    return dataclasses.replace(clip.scene, things=things)


def _bounce(position: float, radius: float, size: int) -> float:
    room = size - 2 * radius
    folded = (position - radius) % (2 * room)
    return radius + (folded if folded <= room else 2 * room - folded)
