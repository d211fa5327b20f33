"""Frames of a video file or of a folder of pictures, one at a time and never more."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from seem_jax.image import MAX_PIXELS, decode_image

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".ogv")
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
# FFmpeg's readers of files that hold their own data. Play lists, which name other files and
# addresses, are not among them.
READERS = "mov,matroska,avi,mpeg,mpegts,ogg,gif"


class Frames(Iterator[np.ndarray]):
    """The frames of `read_frames`: uint8 [H, W, 3] in RGB, in the order in which they are shown."""

    def __init__(self, frames: Iterator[np.ndarray], source: _Source):
        self._frames, self._source = frames, source

    @property
    def fps(self) -> float:
        """Frames a second, the mean of the file; 0 where it says none, and for a folder."""
        return self._source.fps

    @property
    def total(self) -> int | None:
        """How many frames the file claims to have, for progress bars; None where it is silent."""
        return self._source.total

    @property
    def skipped(self) -> int:
        """Damaged packets and frames that were left out so far; others follow."""
        return self._source.skipped

    def __next__(self) -> np.ndarray:
        return next(self._frames)

    def close(self) -> None:
        """Closes the file; reading to the end does so too."""
        self._frames.close()
        self._source.files.close()

    def __enter__(self) -> Frames:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Source:
    """What is known of a stream beside its frames, and what is to be closed after them."""

    def __init__(self, fps: float = 0.0, total: int | None = None):
        self.fps, self.total, self.skipped = fps, total, 0
        self.files = contextlib.ExitStack()


def read_frames(path: str | Path) -> Frames:
    """The frames of a video file (PyAV), or of the pictures in a folder by the numbers in their names.

    Frames of a file are turned upright as it asks; their times are not kept. Raises ValueError for
    what is no video, holds no pictures, or has frames of more than 64 million pixels; a damaged
    packet is left out and counted in `Frames.skipped`, a damaged picture is an error.
    """
    path = _checked(path)
    if path.is_dir():
        return _folder(path)
    av, source = load_av(), _Source()
    with contextlib.ExitStack() as files:
        stream = _open(av, path, files)
        source.files = files.pop_all()  # nothing went wrong: they stay open
    rate = stream.average_rate
    source.fps, source.total = float(rate) if rate else 0.0, stream.frames or None
    return Frames(_decoded(av, stream, path, source), source)


def load_av() -> ModuleType:
    """PyAV, an optional extra. Raises ValueError that says how to get it."""
    try:
        import av
    except ImportError as error:
        raise ValueError(
            "video files need PyAV: pip install -r requirements-video.txt (a folder of pictures "
            "works without)."
        ) from error
    av.logging.set_level(av.logging.PANIC)  # faults are raised and counted, not printed
    return av


def natural(path: Path) -> list[tuple[int, str]]:
    """A key under which frame_9 comes before frame_10."""
    parts = re.findall(r"[0-9]+|[^0-9]+", path.name)
    return [(int(part), part) if part.isdecimal() else (-1, part) for part in parts]


def _checked(path: Any) -> Path:
    if not isinstance(path, str | Path):
        raise ValueError(
            f"path is a {type(path).__name__}; expected the path of a video file or a folder."
        )
    if "\0" in str(path):
        raise ValueError(f"path {str(path)[:60]!r} holds a NUL; expected a video file or a folder.")
    path = Path(path)
    try:
        there = path.is_dir() or path.is_file()
    except OSError as error:
        raise ValueError(f"path {str(path)[:60]!r} cannot be looked up ({error}).") from error
    if not there:
        raise ValueError(f"path {str(path)[:200]!r}: there is no such video file or folder.")
    return path


def _folder(folder: Path) -> Frames:
    files = (file for file in folder.iterdir() if file.suffix.lower() in PICTURE_SUFFIXES)
    files = sorted((file for file in files if file.is_file()), key=natural)
    if not files:
        raise ValueError(f"path {folder} holds no pictures ({', '.join(PICTURE_SUFFIXES)}).")
    frames = (decode_image(file.read_bytes(), name=str(file)) for file in files)
    return Frames(frames, _Source(total=len(files)))


def _open(av: ModuleType, path: Path, files: contextlib.ExitStack):
    """The first video stream of a file. The file is opened here, not by name within FFmpeg, which
    would take a name such as "concat:..." or "http:..." for an instruction."""
    file = files.enter_context(path.open("rb"))
    limit = {"max_pixels": str(MAX_PIXELS)}  # frames may be larger than the file says first
    options = {"format_whitelist": READERS, "protocol_whitelist": "none"} | limit
    # Titles need not be UTF-8. Newer versions never fail at them, and do not take the argument.
    lenient = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}
    try:
        container = av.open(file, options=options, **lenient)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"path {path} is no video that can be read ({error}).") from error
    files.enter_context(container)
    if not container.streams.video:
        raise ValueError(f"path {path} has no pictures: it holds sound or data alone.")
    stream = container.streams.video[0]
    codec = stream.codec_context
    if codec is None:
        raise ValueError(f"path {path} is packed in a way that nothing here can unpack.")
    if codec.width * codec.height > MAX_PIXELS:
        raise ValueError(
            f"path {path} has frames of {codec.width} x {codec.height} pixels, more than the "
            f"{MAX_PIXELS} allowed; shrink it."
        )
    codec.options = limit
    return stream


def _decoded(av: ModuleType, stream, path: Path, source: _Source) -> Iterator[np.ndarray]:
    count = 0
    with source.files:
        packets = stream.container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
            except (av.error.FFmpegError, EOFError):  # what follows cannot be found any more
                source.skipped += 1
                break
            if packet is None:
                break
            try:
                frames = packet.decode()
            except av.error.FFmpegError:
                source.skipped += 1
                continue
            for frame in frames:
                if frame.is_corrupt:  # such as pictures before the first whole one
                    source.skipped += 1
                    continue
                count += 1
                yield _upright(frame)
        if not count:
            raise ValueError(
                f"path {path} has no frame that can be read ({source.skipped} damaged parts)."
            )


def _upright(frame) -> np.ndarray:
    """uint8 [H, W, 3], turned as the file says it is to be shown."""
    pixels = frame.to_ndarray(format="rgb24")
    turns = round(frame.rotation / 90) % 4  # counterclockwise
    return np.ascontiguousarray(np.rot90(pixels, turns))
