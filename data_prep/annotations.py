"""Reads annotation files in the manner of COCO; every error names file, record and field."""

from __future__ import annotations

import dataclasses
import io
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError
from pycocotools import mask as coco_mask

from data_prep.writer import Classes, MissingInputError
from seem_jax.data.schema import run_pixels

JPEG_END = b"\xff\xd9"
ORIENTATION = 0x0112  # the EXIF tag


@dataclasses.dataclass(frozen=True)
class Object:
    """An instance annotation. `where` names it in errors."""

    id: int
    category: int  # contiguous
    segmentation: Any  # polygons, or a run-length code, as in the file
    where: str = dataclasses.field(repr=False)  # see writer.Plan


def load_json(path: Path, lists: Sequence[str]) -> dict[str, Any]:
    """The JSON object in a file. Raises ValueError unless each name in `lists` holds a list."""
    if not path.is_file():
        raise MissingInputError(f"{path} does not exist.")
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); it may be truncated.") from error
    for name in lists:
        if not isinstance(value, dict) or not isinstance(value.get(name), list):
            raise ValueError(f"{path}: expected a list under {name!r}.")
    return value


def field(record: Any, name: str, kinds: type | tuple[type, ...], where: str) -> Any:
    """`record[name]`. Raises ValueError naming record and field when it is missing or of another kind."""
    value = record.get(name) if isinstance(record, dict) else None
    if not isinstance(value, kinds):
        given = repr(value)[:80] if isinstance(record, dict) and name in record else "nothing"
        raise ValueError(f"{where}: field {name!r} is {given}, expected {kinds}.")
    return value


def leads_out(name: str) -> bool:
    """Whether a file name of an annotation file is no name below its folder."""
    path = PurePath(name)
    return not name or "\0" in name or path.is_absolute() or ".." in path.parts


def file_below(folder: Path, record: Any, where: str) -> Path:
    """The file of a folder that the field `file_name` names. ValueError for one outside of it."""
    name = field(record, "file_name", str, where)
    if leads_out(name):
        raise ValueError(
            f"{where}: file_name {name!r} leads out of {folder}; expected one below it."
        )
    return folder / name


def read_classes(categories: list[dict], path: Path) -> Classes:
    """Contiguous classes: things by ascending id, then stuff by ascending id (the official order)."""
    rows = []
    for number, category in enumerate(categories):
        where = f"{path}, category {number}"
        identity = field(category, "id", int, where)
        stuff = "isthing" in category and not field(category, "isthing", int, where)
        rows.append((bool(stuff), identity, field(category, "name", str, where)))
    rows.sort()
    ids = tuple(identity for _, identity, _ in rows)
    if not rows or len(set(ids)) != len(ids):
        raise ValueError(f"{path}: 'categories' must list each id once; it has {ids}.")
    return Classes(
        names=tuple(name for _, _, name in rows),
        num_things=sum(not stuff for stuff, _, _ in rows),
        category_ids=ids,
    )


def class_of(category_id: int, classes: Classes, where: str) -> int:
    """The contiguous class. Raises ValueError for an id that the file does not list."""
    if category_id not in classes.category_ids:
        raise ValueError(f"{where}: category_id {category_id} is not among 'categories'.")
    return classes.category_ids.index(category_id)


def read_objects(annotations: list[dict], classes: Classes, path: Path) -> dict[int, list[Object]]:
    """The instance annotations of each image, in file order; crowds are left out."""
    objects = defaultdict(list)
    for number, annotation in enumerate(annotations):
        where = f"{path}, annotation {number}"
        identity = field(annotation, "id", int, where)
        where = f"{path}, annotation id {identity}"
        if annotation.get("iscrowd", 0):
            continue
        objects[field(annotation, "image_id", int, where)].append(
            Object(
                id=identity,
                category=class_of(field(annotation, "category_id", int, where), classes, where),
                segmentation=field(annotation, "segmentation", (list, dict), where),
                where=where,
            )
        )
    return dict(objects)


def rle_counts(item: Object, height: int, width: int) -> bytes:
    """The object's mask as compressed COCO counts at height x width."""
    segmentation = item.segmentation
    if isinstance(segmentation, list):
        # Three corners at least; pycocotools would read four numbers as a box.
        polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
        if not polygons:
            raise ValueError(
                f"{item.where}: 'segmentation' has no polygon of three corners or more."
            )
        for polygon in polygons:
            if len(polygon) % 2 or not np.isfinite(np.asarray(polygon, np.float64)).all():
                raise ValueError(
                    f"{item.where}: 'segmentation' has a polygon of {len(polygon)} numbers; "
                    "expected pairs of finite x, y."
                )
        return coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))["counts"]
    if list(segmentation.get("size", ())) != [height, width]:
        raise ValueError(
            f"{item.where}: 'segmentation' has the size {segmentation.get('size')}, "
            f"the image [{height}, {width}]."
        )
    counts = field(segmentation, "counts", (str, list), item.where)
    if isinstance(counts, list):
        if sum(counts) != height * width or min(counts, default=0) < 0:
            raise ValueError(
                f"{item.where}: 'counts' covers {sum(counts)} pixels, the image {height * width}."
            )
        return coco_mask.frPyObjects(segmentation, height, width)["counts"]
    if run_pixels(counts.encode()) != height * width:
        raise ValueError(
            f"{item.where}: 'counts' covers {run_pixels(counts.encode())} pixels, "
            f"the image {height * width}; the code is damaged."
        )
    return counts.encode()


def image_header(path: Path) -> tuple[int, int]:
    """(height, width) of an image file."""
    return _open_image(path)[1]


def image_orientation(path: Path) -> int:
    """The EXIF orientation of an image file, 1 for none."""
    _open_image(path)  # for its errors
    with Image.open(path) as image:
        return int(image.getexif().get(ORIENTATION, 1))


def read_image(path: Path, height: int, width: int) -> bytes:
    """The bytes of an image file, whose size must be as annotated."""
    data, size, kind = _open_image(path)
    if size != (height, width):
        raise ValueError(
            f"{path} is {size[0]} x {size[1]} pixels, annotated as {height} x {width}."
        )
    if kind == "JPEG" and JPEG_END not in data[-4096:]:
        raise ValueError(f"{path} ({len(data)} bytes) is truncated: a JPEG without its end.")
    return data


def _open_image(path: Path) -> tuple[bytes, tuple[int, int], str | None]:
    if not path.is_file():
        raise ValueError(f"image {path} does not exist, but an annotation file names it.")
    data = path.read_bytes()
    try:
        with Image.open(io.BytesIO(data)) as image:
            return data, (image.height, image.width), image.format
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} ({len(data)} bytes) is no readable image.") from error


def encode_index(index: np.ndarray) -> bytes:
    """An index map [H, W] as PNG: 8 bits, or 16 where an index is above 255."""
    kind = np.uint16 if index.max(initial=0) > 255 else np.uint8
    return cv2.imencode(".png", index.astype(kind))[1].tobytes()
