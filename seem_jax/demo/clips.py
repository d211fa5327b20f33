"""Objects named on frames of a clip and followed through it, without the web.

A `Clip` holds one frame at a time; its file is read anew for another frame and for the result, so that
length costs time and no memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from seem_jax.demo.pictures import side_of
from seem_jax.demo.studio import Mark, Sample, Studio
from seem_jax.predictor import Reference
from seem_jax.video import Frames, VideoPredictor, VideoWriter, read_frames, save_davis

MAX_OBJECTS = 20
MAX_FRAMES = 1000  # of a clip; the rest is left out, in words


@dataclasses.dataclass(frozen=True, eq=False)
class Order:
    """What is said of an object at a frame: one of a mark, a phrase, a reference, or that it leaves."""

    frame: int
    object_id: int
    gesture: Mark | None = None
    text: str | None = None
    reference: Reference | None = None

    @property
    def said(self) -> str:
        """The order in words."""
        if self.gesture is not None:
            return self.gesture.said
        if self.text is not None:
            return self.text
        return "as on the reference picture" if self.reference is not None else "leaves"

    @property
    def leaves(self) -> bool:
        """Whether the object is forgotten from this frame on."""
        return self.gesture is None and self.text is None and self.reference is None


@dataclasses.dataclass(eq=False)
class Clip:
    """An uploaded video, the frame that is looked at, and all orders."""

    path: Path
    fps: float
    count: int  # frames that are used
    cut: bool  # whether there are more
    frame: int
    picture: np.ndarray  # uint8 [H, W, 3] of that frame
    orders: tuple[Order, ...] = ()  # as they came


@dataclasses.dataclass(frozen=True, eq=False)
class Followed:
    """One answered frame."""

    index: int
    picture: np.ndarray  # uint8 [H, W, 3] with masks and names
    object_ids: tuple[int, ...]


def open_clip(studio: Studio, path: str | Path) -> Clip:
    """The clip in an uploaded file; ValueError beyond the limits or for what is no video."""
    size = Path(path).stat().st_size
    if size > studio.limits.video_megabytes * 1e6:
        raise ValueError(
            f"the video has {size / 1e6:.1f} MB; this server takes {studio.limits.video_megabytes:g}."
        )
    with _opened(path) as frames:
        first = next(frames)
        height, width = first.shape[:2]
        if height * width > studio.limits.megapixels * 1e6:
            raise ValueError(
                f"the video has frames of {width} x {height} pixels; this server takes "
                f"{studio.limits.megapixels:g} megapixels."
            )
        count = 1 + sum(1 for _ in itertools.islice(frames, MAX_FRAMES))
        fps = frames.fps or 25.0
    return Clip(Path(path), fps, min(count, MAX_FRAMES), count > MAX_FRAMES, 0, first)


def look_at(clip: Clip, number: int) -> Clip:
    """The clip at another frame."""
    if not 0 <= number < clip.count:
        raise ValueError(f"frame = {number}; the clip has frames 0 to {clip.count - 1}.")
    with _opened(clip.path) as frames:
        picture = next(itertools.islice(frames, number, None), None)
    if picture is None:
        raise ValueError(f"the video ends before frame {number}; open it again.")
    return dataclasses.replace(clip, frame=number, picture=picture)


def ordered(clip: Clip, order: Order) -> Clip:
    """The clip with one more order; ValueError for one that means nothing."""
    if not 1 <= order.object_id <= MAX_OBJECTS:
        raise ValueError(f"object = {order.object_id}; expected a number from 1 to {MAX_OBJECTS}.")
    if order.gesture is not None:
        order.gesture.prompts(clip.picture.shape[:2])
    own = [one for one in clip.orders if one.object_id == order.object_id]
    if order.leaves and not any(one.frame < order.frame and not one.leaves for one in own):
        raise ValueError(f"object {order.object_id} is not there yet: mark it on an earlier frame.")
    if order.text is not None and not order.text.strip():
        raise ValueError("text is blank; write what the object is, as 'the red star'.")
    return dataclasses.replace(clip, orders=(*clip.orders, order))


def marks_at(clip: Clip) -> list[Mark]:
    """The marks on the frame that is looked at."""
    return [o.gesture for o in clip.orders if o.frame == clip.frame and o.gesture is not None]


def follow(studio: Studio, clip: Clip, folder: str | Path) -> Iterator[Followed]:
    """Answers frame after frame and writes folder/clip.mp4 and folder/masks.zip (as DAVIS).

    Other users' rounds run in between. Both files are there when the last frame has come.
    """
    if not clip.orders:
        raise ValueError("mark an object on a frame first, or write what it is.")
    folder, tracker = Path(folder), VideoPredictor(studio.predictor)
    maps = zipfile.ZipFile(folder / "masks.zip", "w", zipfile.ZIP_DEFLATED)
    with maps, VideoWriter(folder / "clip.mp4", clip.fps) as video, _opened(clip.path) as frames:
        for index, frame in enumerate(itertools.islice(frames, clip.count)):
            with studio.lock:
                _obey(tracker, clip, index, frame)
                found = tracker.push(frame)
            picture = found.draw(frame, side_of(frame))
            video.add(picture)
            file = save_davis(folder, found)
            maps.write(file, f"masks/{file.name}")
            file.unlink()
            yield Followed(index, picture, found.object_ids)


def _obey(tracker: VideoPredictor, clip: Clip, index: int, frame: np.ndarray) -> None:
    """Passes on the orders of a frame; all marks of one object as one."""
    now = [order for order in clip.orders if order.frame == index]
    for object_id in dict.fromkeys(order.object_id for order in now):
        own = [order for order in now if order.object_id == object_id]
        gestures = [order.gesture for order in own if order.gesture is not None]
        if gestures:
            asked = Sample(frame, gestures).prompts()
            given = {name: value for name, value in vars(asked).items() if value is not None}
            tracker.add(object_id, **given)
        for order in own:
            if order.text is not None or order.reference is not None:
                tracker.add(object_id, text=order.text, reference=order.reference)
            if order.leaves and object_id in tracker.object_ids:
                tracker.remove(object_id)


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[Frames]:
    """The frames of a file. Errors that name its place, which is ours alone, say "the video"."""
    try:
        with read_frames(path) as frames:
            yield frames
    except ValueError as error:
        said = str(error).replace(f"path {path}", "the video").replace(str(path), "the video")
        raise ValueError(said) from None
