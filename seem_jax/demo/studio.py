"""What users of the web app do, without the web: pictures opened, prompts added and undone, answers.

A `Desk` belongs to one user and holds one picture; the `Studio` owns the model and all desks. Where a
user pointed comes as fractions [0, 1] of the picture, since a browser shows it at a size of its own.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from seem_jax.image import decode_image
from seem_jax.predictor import (
    PanopticPrediction,
    Prediction,
    Predictor,
    Prompts,
    Reference,
    Session,
)
from seem_jax.predictor.checks import numbers
from seem_jax.predictor.prompts import joined

TOOLS = ("click", "box", "scribble", "outline")
MAX_CORNERS = 4096  # of one gesture; the page sends at most 400


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one server takes; beyond, users read a sentence that says so."""

    megabytes: float = 32.0  # of one picture as a file
    megapixels: float = 24.0  # of one picture, read from its header before it is decoded
    video_megabytes: float = 200.0  # of one video as a file
    desks: int = 40  # users with a picture at a time; the one at rest the longest goes first
    seconds: float = 1800.0  # at rest until a desk is cleared


@dataclasses.dataclass(frozen=True, eq=False)
class Mark:
    """One thing that was drawn."""

    tool: str  # one of TOOLS
    where: np.ndarray  # float64 [n, 2], (x, y) in [0, 1] of the picture
    positive: bool

    @property
    def said(self) -> str:
        """The mark in words."""
        return self.tool if self.positive else f"not this: {self.tool}"

    def prompts(self, size: tuple[int, int]) -> Prompts:
        """The same in pixels of a picture of this size (height, width)."""
        height, width = size
        pixels = self.where * [[width, height]]
        # A click at the far edge means the last pixel; corners may touch the edge itself.
        inside = np.minimum(pixels, [[width - 1, height - 1]])
        if self.tool == "click":
            return Prompts(points=inside[-1:], point_labels=[self.positive])
        if self.tool == "scribble":
            return Prompts(scribble=[inside], scribble_labels=[self.positive])
        if not self.positive:
            raise ValueError(
                f"a {self.tool} shows what is meant: click or scribble on what is not meant."
            )
        if self.tool == "outline":
            if len(np.unique(pixels, axis=0)) < 3:
                raise ValueError("an outline goes around the object: hold the button and draw.")
            return Prompts(polygon=pixels)
        (x0, y0), (x1, y1) = np.floor(inside.min(0)), np.floor(inside.max(0)) + 1
        if len(self.where) < 2 or min(x1 - x0, y1 - y0) < 2:
            raise ValueError(
                "a box has two corners: hold the button and draw from one to the other."
            )
        return Prompts(box=[x0, y0, x1, y1])


def mark(tool: Any, where: Any, positive: bool = True) -> Mark:
    """The mark that a gesture leaves; ValueError for what no page of ours sends."""
    if tool not in TOOLS:
        raise ValueError(f"tool = {tool!r}; expected one of {', '.join(TOOLS)}.")
    expected = "corners [n, 2] as fractions of the picture"
    corners = numbers(where, "gesture", expected)
    if corners.ndim != 2 or corners.shape[1] != 2 or not 0 < len(corners) <= MAX_CORNERS:
        raise ValueError(f"gesture has shape {corners.shape}; expected {expected}.")
    corners = corners[[0, -1]] if tool == "box" and len(corners) > 1 else corners
    return Mark(tool, np.clip(corners, 0.0, 1.0), bool(positive))


class Desk:
    """One user's picture with all that was drawn and said about it, and the answer."""

    def __init__(self, picture: np.ndarray, session: Session):
        self.picture = picture  # uint8 [H, W, 3]
        self.session = session
        self.marks: dict[int, Mark] = {}  # by the session's number of the prompt
        self.phrase: tuple[int, str] | None = None
        self.shown: int | None = None  # number of the reference
        self.prediction: Prediction | None = None
        self.everything: PanopticPrediction | None = None
        self.folder = TemporaryDirectory(prefix="seem_jax_")  # for what is taken home

    @property
    def said(self) -> tuple[str, ...]:
        """What kind each prompt that stands is, the oldest first."""
        kinds = {number: mark.said for number, mark in self.marks.items()}
        if self.phrase is not None:
            kinds[self.phrase[0]] = "text"
        if self.shown is not None:
            kinds[self.shown] = "reference picture"
        return tuple(kinds[number] for number in self.session.actions)

    def clear(self) -> None:
        """Lets go of everything large, since a page may hold on to its desk for long."""
        self.picture = self.picture[:0].copy()
        self.prediction = self.everything = None
        self.marks.clear()
        self.folder.cleanup()


@dataclasses.dataclass(eq=False)
class Sample:
    """A picture that shows an object, and the marks that say which."""

    picture: np.ndarray  # uint8 [H, W, 3]
    marks: list[Mark] = dataclasses.field(default_factory=list)

    def prompts(self) -> Prompts:
        """All marks as one question."""
        return joined([gesture.prompts(self.picture.shape[:2]) for gesture in self.marks])


class Studio:
    """A predictor shared by many users. Every method may be called from any thread."""

    def __init__(self, predictor: Predictor, limits: Limits | None = None):
        self.predictor, self.limits = predictor, limits or Limits()
        self.pool = predictor.pool(time_to_live=2 * self.limits.seconds)
        self._desks: dict[Desk, None] = {}  # the one used last at the end
        self.lock = threading.RLock()  # of the predictor, its pool and the desks

    @property
    def desks(self) -> tuple[Desk, ...]:
        """All desks with a picture, the one used last at the end."""
        return tuple(self._desks)

    # Pictures

    def read(self, data: bytes) -> np.ndarray:
        """The picture in an uploaded file, upright, uint8 [H, W, 3]; ValueError beyond the limits."""
        if not data:
            raise ValueError("the file is empty (0 bytes).")
        if len(data) > self.limits.megabytes * 1e6:
            raise ValueError(
                f"the file has {len(data) / 1e6:.1f} MB; this server takes {self.limits.megabytes:g}."
            )
        most = int(self.limits.megapixels * 1e6)
        return decode_image(data, max_pixels=most, upright=True, name="the picture")

    def open(self, data: bytes) -> Desk:
        """A desk with this picture on it."""
        picture = self.read(data)
        with self.lock:
            while len(self._desks) >= self.limits.desks:
                self.close(next(iter(self._desks)))
            desk = Desk(picture, self.pool.open(picture))
            self._desks[desk] = None
            return desk

    def close(self, desk: Desk | None) -> None:
        """Clears a desk and frees its memory; one that is cleared already stays so."""
        if desk is None:
            return
        with self.lock:
            if desk in self._desks:
                del self._desks[desk]
                self.pool.close(desk.session)
                desk.clear()

    # Prompts

    def draw(self, desk: Desk | None, gesture: Mark) -> None:
        """Adds a mark."""
        with self.lock:
            desk = self._used(desk)
            asked, session = gesture.prompts(desk.picture.shape[:2]), desk.session
            if asked.points is not None:
                number = session.add_point(*asked.points[0], positive=gesture.positive)
            elif asked.scribble is not None:
                number = session.add_scribble(asked.scribble[0], positive=gesture.positive)
            elif asked.box is not None:
                number = session.add_box(asked.box)
            else:
                number = session.add_polygon(asked.polygon)
            desk.marks[number] = gesture

    def say(self, desk: Desk | None, text: str) -> None:
        """Sets the phrase; a blank one takes it back."""
        with self.lock:
            desk, text = self._used(desk), text.strip()
            before = desk.phrase
            if before is not None:
                self._take_back(desk, before[0])
            if not text:
                return
            try:
                desk.phrase = (desk.session.add_text(text), text)
            except ValueError:
                if before is not None:
                    desk.phrase = (desk.session.add_text(before[1]), before[1])
                raise

    def show(self, desk: Desk | None, sample: Sample | None) -> None:
        """Sets the reference: the object marked on another picture."""
        with self.lock:
            desk = self._used(desk)
            reference = self.reference(sample)
            if desk.shown is not None:
                self._take_back(desk, desk.shown)
            desk.shown = desk.session.add_reference(reference)

    def reference(self, sample: Sample | None) -> Reference:
        """What a sample shows, for use on other pictures and on video."""
        if sample is None or not sample.marks:
            raise ValueError("open a picture that shows the object, and mark it there first.")
        with self.lock:
            return self.predictor.reference([sample.picture], [sample.prompts()])

    def undo(self, desk: Desk | None) -> None:
        """Takes back the last prompt, of whatever kind."""
        with self.lock:
            desk = self._used(desk)
            if not desk.session.actions:
                raise ValueError("there is nothing to undo.")
            self._take_back(desk, desk.session.actions[-1])

    def restart(self, desk: Desk | None) -> None:
        """Takes back everything but the picture."""
        with self.lock:
            desk = self._used(desk)
            desk.session.reset()
            desk.marks.clear()
            desk.phrase = desk.shown = desk.prediction = None

    # Answers

    def answer(
        self,
        desk: Desk | None,
        classes: Sequence[str] = (),
        *,
        top_k: int = 1,
        threshold: float = 0.0,
    ) -> None:
        """Answers the prompts that stand; without any there is no answer."""
        with self.lock:
            desk = self._used(desk)
            desk.prediction = None
            if desk.session.actions:
                desk.prediction = desk.session.predict(
                    classes=classes or None, top_k=top_k, threshold=threshold
                )

    def cut(self, desk: Desk | None, things: Sequence[str] = (), stuff: Sequence[str] = ()) -> None:
        """Cuts the whole picture into named segments; without names, those of the training data."""
        with self.lock:
            desk = self._used(desk)
            self.predictor.set_image(desk.picture)
            try:
                desk.everything = self.predictor.panoptic(things or None, stuff or None)
            finally:
                self.predictor.reset_image()

    # Inside

    def _used(self, desk: Desk | None) -> Desk:
        if desk is None:
            raise ValueError("open a picture first.")
        if desk not in self._desks:
            raise ValueError("this picture was put away to make room for others; open it again.")
        self._desks[desk] = self._desks.pop(desk)
        return desk

    def _take_back(self, desk: Desk, number: int) -> None:
        desk.session.undo(number)
        desk.marks.pop(number, None)
        if desk.phrase is not None and desk.phrase[0] == number:
            desk.phrase = None
        if desk.shown == number:
            desk.shown = None


def names(text: str) -> list[str]:
    """The names in a list with commas; the same name counts once."""
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
