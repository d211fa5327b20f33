"""What data_prep/doctor.py finds, and the checks of single files that raw and converted sets share."""

from __future__ import annotations

import collections
import dataclasses
import io
import warnings
from collections.abc import Iterable
from pathlib import Path

import simplejpeg
from PIL import Image

from data_prep.annotations import ORIENTATION
from seem_jax.image import JPEG_START, decode_image

KINDS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP"}
PLAIN = ("RGB", "L", "1")  # modes that every reader turns into the same RGB
MAX_LETTERS = 1000  # of a sentence or caption; more is several that were joined, or no text
FETCH = "Fetch the file again from its source."


@dataclasses.dataclass(frozen=True)
class Fault:
    """One thing that is wrong, and what to do about it."""

    file: str
    record: str  # "" for the file as a whole
    field: str  # "" for the record as a whole
    problem: str
    repair: str

    def __str__(self) -> str:
        place = ", ".join(
            part
            for part in (self.file, self.record, self.field and f"field {self.field!r}")
            if part
        )
        return f"{place}: {self.problem}. {self.repair}"


def image_faults(data: bytes, suffix: str, size: object, where: tuple[str, str]) -> list[Fault]:
    """Faults of an image file: damaged, cut off, of another type or size, turned.

    `size` is (height, width) as annotated, or None. `where` is (file, record) for the faults.
    """
    if not data:
        return [Fault(*where, "image", "the image is empty (0 bytes)", FETCH)]
    try:
        with Image.open(io.BytesIO(data)) as picture:
            kind, found = picture.format, (picture.height, picture.width)
            mode, frames = picture.mode, getattr(picture, "n_frames", 1)
            turn = _orientation(picture)
    except Exception as error:  # Pillow raises of every kind on a damaged header
        text = f"{len(data)} bytes, beginning {data[:8]!r}, are no image ({type(error).__name__})"
        return [Fault(*where, "image", text, FETCH)]
    faults = []
    if KINDS.get(suffix.lower(), kind) != kind:
        text = f"the name ends with {suffix}, but the file is {kind}"
        faults.append(Fault(*where, "image", text, f"Rename it, or convert it to {suffix}."))
    elif kind not in KINDS.values():
        text = f"the file is {kind}; expected one of {sorted(set(KINDS.values()))}"
        faults.append(Fault(*where, "image", text, "Convert it to PNG or JPEG."))
    if mode not in PLAIN or frames > 1:
        text = f"its colours are {mode}" + f", it has {frames} frames" * (frames > 1)
        text += "; readers do not agree on what that is in RGB"
        faults.append(Fault(*where, "image", text, "Convert it to 8-bit RGB or grey."))
    try:
        if data.startswith(JPEG_START) and mode in PLAIN:
            simplejpeg.decode_jpeg(data, "RGB", strict=True)
        else:
            decode_image(data)
    except ValueError as error:
        faults.append(Fault(*where, "image", f"damaged or cut off ({error})", FETCH))
    if turn is None:
        text = "its EXIF data are damaged, so viewers may turn the picture or refuse it"
        faults.append(Fault(*where, "image", text, "Remove them (exiftool -all= FILE)."))
    elif turn != 1:
        text = f"the EXIF orientation is {turn}, so viewers turn the picture and not its masks"
        repair = "Rotate the pixels (mogrify -auto-orient) or drop the tag, as the masks need it."
        faults.append(Fault(*where, "image", text, repair))
    if size is not None and found != tuple(size):
        text = f"the image is {found} (height, width), annotated as {tuple(size)}"
        repair = "Put the right file there, or correct height and width."
        faults.append(Fault(*where, "image", text, repair))
    return faults


def file_faults(path: Path, size: object, record: str) -> list[Fault]:
    """Faults of an image file on disk; see `image_faults`."""
    if not path.is_file():
        return [Fault(str(path), record, "file_name", "the file does not exist", FETCH)]
    faults = image_faults(path.read_bytes(), path.suffix, size, (str(path), record))
    if path.is_symlink() and path.resolve().parent != path.parent.resolve():
        text = (
            f"a link to {path.resolve()}, outside of its folder, which is not copied with the set"
        )
        faults.append(Fault(str(path), record, "file_name", text, "Put the file itself there."))
    return faults


def _orientation(picture: Image.Image) -> int | None:
    """The EXIF orientation, 1 for none; None where the EXIF data are damaged."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow only warns of damaged EXIF data
        try:
            return int(picture.getexif().get(ORIENTATION, 1))
        except Exception:
            return None


def text_problem(text: str) -> str:
    """What is wrong with a sentence or caption; "" for nothing."""
    if not text.strip():
        return "is empty"
    if "\ufffd" in text or "\0" in text:
        return f"{text!r:.60} holds characters that are no text; it was read in a wrong encoding"
    if len(text) > MAX_LETTERS:
        return f"has {len(text)} letters, more than {MAX_LETTERS}; are several joined?"
    return ""


def repeated(values: Iterable[object]) -> list[object]:
    """The values that occur more than once, each once."""
    return [value for value, count in collections.Counter(values).items() if count > 1]
