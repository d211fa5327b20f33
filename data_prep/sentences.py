"""Referring expressions joined to the objects they mean, and the official merged form of them.

The release stores REFER records and COCO annotations merged into one JSON file, one row an object:
`refcocog_umd_val.json`, `grounding_train2017_*.json` (datasets/utils/refcoco2json.py).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from data_prep.annotations import Object, class_of, field, load_json, read_classes
from data_prep.items import Ref
from data_prep.writer import Classes, MissingInputError


@dataclasses.dataclass(frozen=True)
class Sentences:
    """Sentences, the objects they mean by annotation id, and (height, width) of the images by id."""

    refs: list[Ref]
    objects: dict[int, Object]
    sizes: dict[int, tuple[int, int]]
    path: Path  # of the file that holds the objects


def read_sizes(table: dict, path: Path) -> dict[int, tuple[int, int]]:
    """(height, width) of the images of an annotation file by id."""
    return {
        field(row, "id", int, f"{path}, image {number}"): (
            field(row, "height", int, f"{path}, image {number}"),
            field(row, "width", int, f"{path}, image {number}"),
        )
        for number, row in enumerate(table["images"])
    }


def read_ref(row: object, where: str) -> Ref:
    """A REFER record. Raises ValueError naming `where` and the field that does not fit."""
    rows = field(row, "sentences", list, where)
    return Ref(
        ref_id=field(row, "ref_id", int, where),
        ann_id=field(row, "ann_id", int, where),
        image_id=field(row, "image_id", int, where),
        split=field(row, "split", str, where),
        sentences=tuple(
            field(sentence, "raw", str, f"{where}, sentence {number}")
            for number, sentence in enumerate(rows)
        ),
    )


def read_merged(path: Path, classes: Classes) -> Sentences:
    """The rows of a merged file, each a COCO annotation and a REFER record in one."""
    table = load_json(path, ("images", "annotations"))
    refs, objects = [], {}
    for number, row in enumerate(table["annotations"]):
        where = f"{path}, annotation {number}"
        ref = read_ref(row, where)
        if ref.ann_id in objects:
            raise ValueError(f"{where}: ann_id {ref.ann_id} occurs repeatedly; expected each once.")
        refs.append(ref)
        objects[ref.ann_id] = Object(
            id=ref.ann_id,
            category=class_of(field(row, "category_id", int, where), classes, where),
            segmentation=field(row, "segmentation", (list, dict), where),
            where=where,
        )
    return Sentences(refs, objects, read_sizes(table, path), path)


def classes_beside(path: Path) -> Classes:
    """The classes of things that a merged file does not list, of the smallest COCO file beside it."""
    files = sorted(
        (file for kind in ("instances", "panoptic") for file in path.parent.glob(f"{kind}_*.json")),
        key=lambda file: (file.stat().st_size, file.name),
    )
    if not files:
        raise MissingInputError(
            f"{path} lists no categories, and no instances_*.json or panoptic_*.json is beside it."
        )
    rows = load_json(files[0], ("categories",))["categories"]
    return read_classes([row for row in rows if row.get("isthing", 1)], files[0])
