"""Objects in a stream of frames: named on any frame by any prompt, found on all that follow.

    tracker = VideoPredictor(predictor)
    tracker.add(1, points=[[120, 80]])
    for frame in tracker.run(read_frames("clip.mp4")):
        frame.masks, frame.object_ids, frame.scores

As in the official video demo, an object is what the features said where it was drawn: those tokens,
read once, are decoded against every later frame by itself. Nothing of a frame is kept but the mask
embedding of the answer on the frame of the drawing, so memory does not grow and an object that was
hidden comes back. A phrase alone, or a reference from elsewhere, is asked anew of every frame.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from seem_jax.demo import draw
from seem_jax.predictor import MaskMemory, Predictor, Prompts, Reference, checks, everything
from seem_jax.predictor.decoding import EncodedImage
from seem_jax.predictor.programs import Answers
from seem_jax.predictor.prompts import joined
from seem_jax.predictor.results import sized
from seem_jax.video.reading import read_frames

GIVEN = np.float32(1e6)  # logit of a mask that somebody gave: above all that a model says
MAX_ID = 2**31 - 1


@dataclasses.dataclass(frozen=True, eq=False)
class VideoFrame:
    """The N objects of one frame, in the order in which they were added."""

    index: int  # 0 for the first frame since the start or the last reset
    object_ids: tuple[int, ...]
    masks: np.ndarray  # bool [N, H, W] at the size of the frame; a pixel lies in one mask at most
    scores: np.ndarray  # float32 [N] in [0, 1], share of the model's answers that say this mask
    quality: np.ndarray  # float32 [N] in [0, 1], mean mask probability inside the mask
    names: tuple[str | None, ...]  # the phrase of each object, None for drawn ones

    def __len__(self) -> int:
        return len(self.object_ids)

    def label_map(self) -> np.ndarray:
        """int32 [H, W], the object id of each pixel, 0 for none."""
        labels = np.zeros(self.masks.shape[1:], np.int32)
        for number, mask in zip(self.object_ids, self.masks, strict=True):
            labels[mask] = number
        return labels

    def draw(self, frame: np.ndarray, side: int | None = None) -> np.ndarray:
        """A copy of the frame uint8 [H, W, 3] with each object in its own colour, and its name.

        Its longer edge is `side` pixels, or as it was: letters do not fit into small pictures.
        """
        if frame.shape != (*self.masks.shape[1:], 3) or frame.dtype != np.uint8:
            raise ValueError(
                f"frame is {frame.dtype} {frame.shape}; expected uint8 "
                f"{(*self.masks.shape[1:], 3)}, the frame of this answer."
            )
        frame, masks = sized(frame, self.masks, side)
        colours = [draw.colour(number) for number in self.object_ids]
        tags = [name or str(n) for name, n in zip(self.names, self.object_ids, strict=True)]
        return draw.names(draw.overlay(frame, masks, colours), masks, tags)


@dataclasses.dataclass(frozen=True, eq=False)
class _Object:
    """What is known of one object."""

    text: str | None = None
    reference: Reference | None = None  # all that was drawn so far, and what came from elsewhere
    memory: MaskMemory | None = None  # the answer on the frame of the newest drawing
    waiting: tuple[Prompts, ...] = ()  # drawings for the next frame

    def question(self) -> Prompts:
        """What to ask about the next frame."""
        known = Prompts(text=self.text, reference=self.reference, memory=self.memory)
        return joined([known, *self.waiting])

    @property
    def given_mask(self) -> np.ndarray | None:
        """The mask that an object begins with, where nothing else is said of it."""
        asked = self.question()
        return np.asarray(asked.mask) > 0 if asked.given == ("mask",) else None


class VideoPredictor:
    """Follows any number of objects through frames of any size; nothing compiles after warm_up.

    A pixel that several masks claim goes to the one with the highest mask probability there, as in
    the evaluation on DAVIS; one that an object does not reach a probability of one half at is free.
    """

    def __init__(self, predictor: Predictor, *, threshold: float = 0.0):
        """An object whose score is below threshold (0 to 1) on a frame has an empty mask there."""
        self.predictor = predictor
        self.threshold = checks.share(threshold)
        self._objects: dict[int, _Object] = {}
        self._index = 0

    @property
    def object_ids(self) -> tuple[int, ...]:
        """The objects that the next frame is searched for, in the order in which they were added."""
        return tuple(self._objects)

    @property
    def index(self) -> int:
        """The number of the next frame."""
        return self._index

    def add(
        self,
        object_id: int,
        *,
        points: Any = None,
        point_labels: Any = None,
        box: Any = None,
        scribble: Any = None,
        scribble_labels: Any = None,
        polygon: Any = None,
        mask: Any = None,
        text: str | None = None,
        reference: Reference | None = None,
    ) -> None:
        """Says what an object is, in pixels of the next frame; fields as of `Prompts`.

        An id that is there already is told more: further drawings refine it. A mask that begins an
        object, alone, is its answer on that frame. Raises ValueError for what no frame could take;
        a drawing outside of the next frame is reported by `push`.
        """
        object_id = _checked_id(object_id)
        asked = Prompts(
            points=points,
            point_labels=point_labels,
            box=box,
            scribble=scribble,
            scribble_labels=scribble_labels,
            polygon=polygon,
            mask=mask,
            text=None if text is None else _single(text),
            reference=reference,
        )
        asked.check_given()
        self.predictor.decoding.check_usable(asked)
        known = self._objects.get(object_id, _Object())
        if text is not None:
            if known.text is not None:
                raise ValueError(f"text: object {object_id} has one already; remove it first.")
            known = dataclasses.replace(known, text=asked.text)
        if reference is not None:
            parts = [part for part in (known.reference, reference) if part is not None]
            known = dataclasses.replace(known, reference=Reference.joined(parts))
        drawing = dataclasses.replace(asked, text=None, reference=None)
        if drawing.given:
            known = dataclasses.replace(known, waiting=(*known.waiting, drawing))
        self._objects[object_id] = known

    def remove(self, object_id: int) -> None:
        """Forgets an object, from the next frame on. ValueError where there is none."""
        if _checked_id(object_id) not in self._objects:
            raise ValueError(
                f"object_id = {object_id}: there is no such object; there are {self.object_ids}."
            )
        del self._objects[object_id]

    def reset(self) -> None:
        """Forgets all objects and counts frames from 0 again."""
        self._objects.clear()
        self._index = 0

    def run(self, frames: Iterable[np.ndarray] | str | Path) -> Iterator[VideoFrame]:
        """Answers frame after frame, as they are asked for; objects may be added in between.

        frames are arrays uint8 [H, W, 3] from anywhere, or the path of a video file or a folder.
        """
        frames = read_frames(frames) if isinstance(frames, str | Path) else frames
        for frame in frames:
            yield self.push(frame)

    def push(self, frame: np.ndarray) -> VideoFrame:
        """Answers the next frame, uint8 [H, W, 3] in RGB.

        Raises ValueError for a frame that is none, or for an object that cannot be drawn on it:
        that drawing is forgotten, all else stays, and the frame can be pushed again.
        """
        frame = checks.image(frame, "frame")
        if not self._objects:  # nothing to search for: the image need not be encoded
            found = VideoFrame(
                index=self._index,
                object_ids=(),
                masks=np.zeros((0, *frame.shape[:2]), bool),
                scores=np.zeros(0, np.float32),
                quality=np.zeros(0, np.float32),
                names=(),
            )
            self._index += 1
            return found
        self._check_drawings(frame.shape[:2])
        image = self.predictor.encode(frame)
        asked = [(image, known.question()) for known in self._objects.values()]
        answers = [reply.answers[0] for reply in self.predictor.decoding.ask(asked)]
        found = self._found(image, answers)
        for (number, known), answer in zip(list(self._objects.items()), answers, strict=True):
            self._objects[number] = self._learned(image, known, answer)
        self._index += 1
        return found

    def _check_drawings(self, size: tuple[int, int]) -> None:
        """Raises ValueError, naming the object, for drawings that this frame cannot take."""
        placement = self.predictor.placement(size)
        for number, known in list(self._objects.items()):
            try:
                for drawing in known.waiting:
                    self.predictor.decoding.draw(drawing, placement)
                self.predictor.decoding.check(known.question(), placement)
            except ValueError as error:
                self._objects[number] = dataclasses.replace(known, waiting=())
                if not self._objects[number].question().given:
                    del self._objects[number]
                raise ValueError(f"object {number}: {error}") from error

    def _found(self, image: EncodedImage, answers: list[Answers]) -> VideoFrame:
        known = list(self._objects.values())
        score = np.array([answer.score[0] for answer in answers], np.float32)
        best = np.zeros(image.size, np.float32)  # logits; 0 is a probability of one half
        owner = np.full(image.size, -1, np.int32)
        for index, answer in enumerate(answers):
            given = known[index].given_mask
            if given is not None:
                logits = np.where(given, GIVEN, -GIVEN)
            elif score[index] >= self.threshold:
                logits = everything.enlarge(answer.logits[0], image.placement)
            else:
                continue
            wins = logits > best
            owner[wins], best[wins] = index, logits[wins]
        return VideoFrame(
            index=self._index,
            object_ids=self.object_ids,
            masks=owner[None] == np.arange(len(answers), dtype=np.int32)[:, None, None],
            scores=score,
            quality=np.array([answer.quality[0] for answer in answers], np.float32),
            names=tuple(each.text for each in known),
        )

    def _learned(self, image: EncodedImage, known: _Object, answer: Answers) -> _Object:
        """What is known of an object after the frame that its drawings were made on."""
        if not known.waiting:
            return known
        shown = self.predictor.decoding.show(image, joined(known.waiting), located=True)
        parts = [part for part in (known.reference, shown) if part is not None]
        return dataclasses.replace(
            known,
            reference=Reference.joined(parts),
            memory=MaskMemory(np.array(answer.embedding[0])),
            waiting=(),
        )


def _checked_id(value: Any) -> int:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or not 1 <= value <= MAX_ID:
        raise ValueError(
            f"object_id = {str(value)[:60]!r}; expected a whole number from 1 to {MAX_ID}."
        )
    return int(value)


def _single(text: Any) -> str:
    if not isinstance(text, str):
        raise ValueError(f"text is a {type(text).__name__}; expected the phrase of one object.")
    return checks.text(text)[0]
