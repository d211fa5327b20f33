"""Conversations about an image: prompts added and undone in any order, memory carried along.

A `Session` belongs to one user and one image. A `SessionPool` serves many: it keeps encoded images
within a number of bytes and answers the rounds of several users together.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from seem_jax.predictor import checks
from seem_jax.predictor.prompts import MaskMemory, Prompts, joined
from seem_jax.predictor.reference import Reference
from seem_jax.predictor.results import Prediction

if TYPE_CHECKING:
    from seem_jax.predictor.decoding import EncodedImage
    from seem_jax.predictor.predictor import Predictor


@dataclasses.dataclass(frozen=True, eq=False)
class Action:
    """One thing a user did."""

    number: int
    prompts: Prompts  # of one kind


class Session:
    """One user's prompts for one object of one image.

    The answer depends on the prompts that stand and on nothing else: the order of the last
    additions, undone prompts and other users change nothing. Memory is that of the newest round
    whose prompts all still stand among others.
    """

    def __init__(
        self,
        predictor: Predictor,
        image: Callable[[], EncodedImage],
        answer: Callable[..., list[Prediction]],
    ):
        """See `Predictor.session` and `SessionPool.open`; answer takes a list of sessions."""
        self.predictor = predictor
        self._image, self._answer = image, answer
        self._placement = image().placement
        self._actions: dict[int, Action] = {}
        self._rounds: list[tuple[frozenset[int], MaskMemory]] = []
        self._count = 0

    @property
    def actions(self) -> tuple[int, ...]:
        """Numbers of the prompts that stand, oldest first."""
        return tuple(self._actions)

    def add_point(self, x: float, y: float, positive: bool = True) -> int:
        """Adds a click and returns its number, for `undo`. Pixels of the original image."""
        return self._add(Prompts(points=[[x, y]], point_labels=[positive]))

    def add_box(self, box: Any) -> int:
        """Adds a box (x0, y0, x1, y1)."""
        return self._add(Prompts(box=box))

    def add_scribble(self, scribble: Any, positive: bool = True) -> int:
        """Adds one line [n, 2] of (x, y), or painted pixels bool [H, W]."""
        return self._add(Prompts(scribble=scribble, scribble_labels=[positive]))

    def add_polygon(self, polygon: Any) -> int:
        """Adds corners [n, 2] of (x, y)."""
        return self._add(Prompts(polygon=polygon))

    def add_mask(self, mask: Any) -> int:
        """Adds a mask, bool [H, W]."""
        return self._add(Prompts(mask=mask))

    def add_text(self, text: str) -> int:
        """Adds the phrase that says what is meant; a session has one at a time."""
        if not isinstance(text, str):
            raise ValueError(f"text is a {type(text).__name__}; expected a string.")
        return self._add_single(Prompts(text=checks.text(text)[0]), "text")

    def add_reference(self, reference: Reference) -> int:
        """Adds what the object looks like on other images; a session has one at a time."""
        return self._add_single(Prompts(reference=reference), "reference")

    def undo(self, number: int | None = None) -> None:
        """Takes back the prompt of this number, or the last one. ValueError where there is none."""
        if not self._actions or (number is not None and number not in self._actions):
            raise ValueError(
                f"number = {number}: there is no such prompt to undo; those that stand are "
                f"{list(self._actions)}."
            )
        del self._actions[self.actions[-1] if number is None else number]

    def reset(self) -> None:
        """Takes back all prompts and forgets all rounds; the image stays encoded."""
        self._actions.clear()
        self._rounds.clear()

    def predict(
        self,
        *,
        classes: Sequence[str] | None = None,
        top_k: int = 1,
        threshold: float = 0.0,
    ) -> Prediction:
        """The answer to the prompts that stand; options as of `Predictor.predict`."""
        (prediction,) = self._answer([self], classes=classes, top_k=top_k, threshold=threshold)
        return prediction

    def asked(self) -> Prompts:
        """All that stands as one question, with the memory of the round before."""
        if not self._actions:
            raise ValueError("the session has no prompt: add a point, a text or another one first.")
        asked = joined([action.prompts for action in self._actions.values()])
        return dataclasses.replace(asked, memory=self._memory())

    def question(self) -> tuple[EncodedImage, Prompts]:
        """The image, and what is asked about it."""
        return self._image(), self.asked()

    def remember(self, prediction: Prediction) -> None:
        """Keeps what a round answered, for the rounds with further prompts."""
        if len(prediction):
            self._rounds.append((frozenset(self._actions), prediction.memory))

    def _add(self, prompts: Prompts) -> int:
        # Both raise where something is wrong, so that the fault is reported when it is made.
        self.predictor.decoding.draw(prompts, self._placement)
        self.predictor.decoding.check_usable(prompts)
        self._count += 1
        self._actions[self._count] = Action(self._count, prompts)
        return self._count

    def _add_single(self, prompts: Prompts, kind: str) -> int:
        if any(getattr(action.prompts, kind) is not None for action in self._actions.values()):
            raise ValueError(f"{kind}: the session has one already; undo it first.")
        return self._add(prompts)

    def _memory(self) -> MaskMemory | None:
        now = frozenset(self._actions)
        return next((memory for then, memory in reversed(self._rounds) if then < now), None)


def answer_sessions(
    predictor: Predictor, sessions: Sequence[Session], **options
) -> list[Prediction]:
    """One round of each session, in common decoder calls."""
    questions = [session.question() for session in sessions]
    predictions = predictor.answer(questions, **options)
    for session, prediction in zip(sessions, predictions, strict=True):
        session.remember(prediction)
    return predictions


class SessionPool:
    """Sessions of many users. Encoded images stay within max_bytes, the least recently used go first.

    A session whose features went is encoded again at its next round and notices nothing. One that
    was not used for time_to_live seconds ends: its next use is a ValueError. Rounds of several
    threads wait for each other. Pictures themselves (3 bytes a pixel) are kept besides max_bytes.
    """

    def __init__(
        self,
        predictor: Predictor,
        *,
        max_bytes: int = 2**30,
        time_to_live: float = 1800.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.predictor, self.clock = predictor, clock
        self.max_bytes, self.time_to_live = max_bytes, time_to_live
        self._pictures: dict[str, np.ndarray] = {}
        self._encoded: collections.OrderedDict[str, EncodedImage] = collections.OrderedDict()
        self._sessions: dict[Session, tuple[str, float]] = {}  # image, time of last use
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def nbytes(self) -> int:
        """Memory of all encoded images that are kept."""
        return sum(image.nbytes for image in self._encoded.values())

    def open(self, image: np.ndarray) -> Session:
        """A new session about an image; equal images share their features."""
        image = checks.image(image)
        digest = hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()
        with self._lock:
            self.sweep()
            self._pictures.setdefault(digest, image.copy())
            session = Session(self.predictor, functools.partial(self._image, digest), self.predict)
            self._sessions[session] = (digest, self.clock())
            return session

    def close(self, session: Session) -> None:
        """Ends a session and frees what only it needed."""
        with self._lock:
            self._sessions.pop(session, None)
            self._forget_unused()

    def predict(self, sessions: Sequence[Session], **options) -> list[Prediction]:
        """One round of each of some sessions together; options as of `Predictor.predict`."""
        with self._lock:
            self.sweep()
            if len(set(sessions)) < len(sessions):
                raise ValueError("sessions holds one twice; its rounds follow each other.")
            for session in sessions:
                if session not in self._sessions:
                    raise ValueError(
                        "sessions holds one that has ended (closed, or not used for "
                        f"{self.time_to_live:g} s); open a new one."
                    )
                self._sessions[session] = (self._sessions[session][0], self.clock())
            for session in sessions:
                session.asked()  # one without a prompt is told before anything happens
            answers: dict[Session, Prediction] = {}
            for group in self._groups(sessions):
                predictions = answer_sessions(self.predictor, group, **options)
                answers |= zip(group, predictions, strict=True)
                self._shrink()
            return [answers[session] for session in sessions]

    def sweep(self) -> None:
        """Ends the sessions that nobody used for time_to_live seconds."""
        with self._lock:
            oldest = self.clock() - self.time_to_live
            ended = [session for session, (_, used) in self._sessions.items() if used < oldest]
            for session in ended:
                del self._sessions[session]
            self._forget_unused()

    def _image(self, digest: str) -> EncodedImage:
        with self._lock:
            if digest not in self._pictures:
                raise ValueError("the session has ended; open a new one.")
            if digest not in self._encoded:
                self._encoded[digest] = self.predictor.encode(self._pictures[digest])
            self._encoded.move_to_end(digest)
            self._shrink()
            return self._encoded[digest]

    def _groups(self, sessions: Sequence[Session]) -> Iterator[list[Session]]:
        """Sessions whose images together stay within max_bytes (one image does in any case)."""
        about: dict[str, list[Session]] = {}
        for session in sessions:
            about.setdefault(self._sessions[session][0], []).append(session)
        digests = sorted(about, key=lambda digest: digest not in self._encoded)  # those here first
        while digests:
            self._image(digests[0])
            together = self.max_bytes // max(image.nbytes for image in self._encoded.values())
            together = max(1, together)
            yield [session for digest in digests[:together] for session in about[digest]]
            digests = digests[together:]

    def _shrink(self) -> None:
        """Drops features until the rest fits; the newest stay even where they alone do not."""
        while len(self._encoded) > 1 and self.nbytes > self.max_bytes:
            self._encoded.popitem(last=False)

    def _forget_unused(self) -> None:
        used = {digest for digest, _ in self._sessions.values()}
        for digest in set(self._pictures) - used:
            del self._pictures[digest]
            self._encoded.pop(digest, None)
