"""What data_prep/doctor.py finds, and the checks of single files that raw and converted sets share."""

from __future__ import annotations

import collections
import dataclasses
import io
from collections.abc import Iterable
from pathlib import Path

import simplejpeg
from PIL import Image

from data_prep.annotations import ORIENTATION
from seem_jax.image import JPEG_START, decode_image

KINDS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP"}
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
            turn = picture.getexif().get(ORIENTATION, 1)
    except Exception as error:  # Pillow raises of every kind on a damaged header
        text = f"{len(data)} bytes, beginning {data[:8]!r}, are no image ({type(error).__name__})"
        return [Fault(*where, "image", text, FETCH)]
    faults = []
    if KINDS.get(suffix.lower(), kind) != kind:
        text = f"the name ends with {suffix}, but the file is {kind}"
        faults.append(Fault(*where, "image", text, f"Rename it, or convert it to {suffix}."))
    try:
        if data.startswith(JPEG_START):
            simplejpeg.decode_jpeg(data, "RGB", strict=True)
        else:
            decode_image(data)
    except ValueError as error:
        faults.append(Fault(*where, "image", f"damaged or cut off ({error})", FETCH))
    if turn != 1:
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
    return image_faults(path.read_bytes(), path.suffix, size, (str(path), record))


def repeated(values: Iterable[object]) -> list[object]:
    """The values that occur more than once, each once."""
    return [value for value, count in collections.Counter(values).items() if count > 1]
