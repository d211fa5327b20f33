"""Videos and index maps written frame by frame, so that their length costs no memory."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from seem_jax.predictor import checks
from seem_jax.video.reading import load_av
from seem_jax.video.tracking import VideoFrame

CODECS = {".mp4": "libx264", ".mov": "libx264", ".mkv": "libx264", ".webm": "libvpx-vp9"}
FPS = 25.0
VOID = 255  # of DAVIS: a pixel that is not judged


class VideoWriter:
    """A video file that grows frame by frame, written aside and renamed when it is done.

    Leaving the `with` block by an exception leaves no file. Sizes that are odd, which the codecs
    cannot hold, get one more row or column, a copy of the last.
    """

    def __init__(self, path: str | Path, fps: float = FPS):
        """path ends in .mp4, .mov, .mkv (H.264) or .webm (VP9); fps is above 0."""
        self.path = Path(path)
        if self.path.suffix.lower() not in CODECS:
            raise ValueError(f"path {path} ends in none of {', '.join(CODECS)}.")
        if not math.isfinite(fps) or fps <= 0:
            raise ValueError(f"fps = {fps}; expected frames a second, above 0.")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._aside = self.path.with_name(f".{os.getpid()}.part{self.path.suffix.lower()}")
        self._av = load_av()
        self._container = self._av.open(str(self._aside), "w")
        rate = Fraction(fps).limit_denominator(1001)
        self._stream = self._container.add_stream(CODECS[self.path.suffix.lower()], rate=rate)
        self._size: tuple[int, ...] | None = None

    def add(self, frame: np.ndarray) -> None:
        """Appends a frame uint8 [H, W, 3]; all have the size of the first."""
        frame = checks.image(frame, "frame")
        if self._size is None:
            self._size = frame.shape
            self._stream.height, self._stream.width = (n + n % 2 for n in frame.shape[:2])
            self._stream.pix_fmt = "yuv420p"
        if frame.shape != self._size:
            raise ValueError(
                f"frame has shape {frame.shape}, the first had {self._size}: a video has one size."
            )
        odd = [(0, n % 2) for n in frame.shape[:2]]
        padded = np.pad(frame, [*odd, (0, 0)], mode="edge")
        picture = self._av.VideoFrame.from_ndarray(padded, format="rgb24")
        self._container.mux(self._stream.encode(picture))

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None and self._size is not None:
            self._container.mux(self._stream.encode())
        self._container.close()
        if kind is None and self._size is not None:
            os.replace(self._aside, self.path)
        else:
            self._aside.unlink(missing_ok=True)
        if kind is None and self._size is None:
            raise ValueError(f"{self.path} was given no frame: nothing was written.")


def write_video(path: str | Path, frames: Iterable[np.ndarray], fps: float = FPS) -> None:
    """Writes frames uint8 [H, W, 3] as a video; see `VideoWriter`."""
    with VideoWriter(path, fps) as writer:
        for frame in frames:
            writer.add(frame)


def write_davis(folder: str | Path, results: Iterable[VideoFrame]) -> int:
    """Writes each answer as 00000.png and so on, as DAVIS wants them; returns how many."""
    count = 0
    for found in results:
        save_davis(folder, found)
        count += 1
    return count


def save_davis(folder: str | Path, found: VideoFrame) -> Path:
    """Writes one answer as a palette PNG, named by its index: 0 background, else the object id.

    Ids above 254 do not fit into the format and are a ValueError.
    """
    highest = max(found.object_ids, default=0)
    if highest >= VOID:
        raise ValueError(
            f"object id {highest} does not fit into a DAVIS map: ids go to {VOID - 1}; add objects "
            "under smaller ones."
        )
    path = Path(folder) / f"{found.index:05d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(found.label_map().astype(np.uint8))
    picture.putpalette(palette())
    data = io.BytesIO()
    picture.save(data, format="PNG")
    aside = path.with_name(f".{os.getpid()}.tmp")
    aside.write_bytes(data.getvalue())
    os.replace(aside, path)
    return path


def palette() -> list[int]:
    """The 768 numbers of the palette of PASCAL VOC and DAVIS.

    The bits of an index become, three by three from the lowest, the highest bits of red, green and
    blue.
    """
    index = np.arange(256)
    colours = np.zeros((256, 3), int)
    for turn in range(8):
        for channel in range(3):
            colours[:, channel] |= (index >> (3 * turn + channel) & 1) << (7 - turn)
    return colours.ravel().tolist()
