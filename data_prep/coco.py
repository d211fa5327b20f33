"""Converts COCO panoptic (Kirillov et al. 2019), and data in its layout, into records.

    python -m data_prep.coco --input data/coco --output data/coco/records --splits train val

Reads below --input: `<split>2017/*.jpg`, `panoptic_<split>2017/*.png`,
`annotations/panoptic_<split>2017.json` and, where present, `annotations/instances_<split>2017.json`
(objects that may overlap). With --referring, the sentences of the split are joined by `ann_id`, and
images with sentences of a --held_out split are left out, as in the official training files.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from data_prep.annotations import (
    Object,
    class_of,
    encode_index,
    field,
    load_json,
    read_classes,
    read_image,
    read_objects,
    rle_counts,
)
from data_prep.refcoco import Ref, join, read_refs, referred_objects
from data_prep.writer import Classes, Plan, message_only, write_dataset
from seem_jax.data.schema import Record

YEAR = "2017"  # the only year with panoptic annotations


@dataclasses.dataclass(frozen=True)
class Segment:
    """One entry of `segments_info`."""

    id: int
    category: int  # contiguous
    crowd: bool


@dataclasses.dataclass(frozen=True)
class Item:
    """What one record is made of."""

    image_id: int
    image_path: Path = dataclasses.field(repr=False)  # see writer.Plan
    png_path: Path = dataclasses.field(repr=False)
    height: int
    width: int
    segments: tuple[Segment, ...]
    objects: tuple[Object, ...]
    refs: tuple[Ref, ...]


@dataclasses.dataclass(frozen=True)
class Referring:
    """Sentences to join: the folder in REFER layout, and whose images must stay out."""

    directory: Path
    owner: str = "umd"
    held_out: tuple[str, ...] = ("val",)


def make_record(item: Item) -> Record:
    """The record of one image with its segments, objects and sentences."""
    texts, numbers = join(item.refs, item.objects)
    return Record(
        image_id=item.image_id,
        file_name=item.image_path.name,
        image=read_image(item.image_path, item.height, item.width),
        height=item.height,
        width=item.width,
        segment_map=encode_index(read_panoptic_png(item)),
        segment_id=[segment.id for segment in item.segments],
        segment_category=[segment.category for segment in item.segments],
        segment_crowd=[segment.crowd for segment in item.segments],
        object_rle=[rle_counts(entry, item.height, item.width) for entry in item.objects],
        object_category=[entry.category for entry in item.objects],
        phrase_text=texts,
        phrase_object=numbers,
    )


def read_panoptic_png(item: Item) -> np.ndarray:
    """int64 [H, W]: 0 void, i + 1 the segment i of the item.

    A PNG stores R + 256 G + 65536 B = id of the segment, 0 for void. Raises ValueError when PNG and
    `segments_info` do not name the same segments.
    """
    bgr = cv2.imread(str(item.png_path), cv2.IMREAD_COLOR)
    if bgr is None:
        raise ValueError(f"{item.png_path} is missing or no readable PNG.")
    if bgr.shape[:2] != (item.height, item.width):
        raise ValueError(
            f"{item.png_path} is {bgr.shape[0]} x {bgr.shape[1]} pixels, "
            f"annotated as {item.height} x {item.width}."
        )
    ids = bgr.astype(np.int64) @ np.array([65536, 256, 1])  # [H, W]
    found, place = np.unique(ids, return_inverse=True)
    number = {segment.id: index + 1 for index, segment in enumerate(item.segments)} | {0: 0}
    unknown = [int(identity) for identity in found if int(identity) not in number]
    unseen = sorted(set(number) - set(found.tolist()) - {0})
    if unknown or unseen:
        raise ValueError(
            f"{item.png_path}: ids {unknown} are not in segments_info of image {item.image_id}, "
            f"and ids {unseen} of segments_info are not in the PNG."
        )
    return np.array([number[int(identity)] for identity in found])[place].reshape(ids.shape)


def plan_split(source: Path, split: str, referring: Referring | None) -> tuple[Plan, Classes]:
    """The records of one split, in the order of its annotation file."""
    path = source / "annotations" / f"panoptic_{split}{YEAR}.json"
    table = load_json(path, ("images", "annotations", "categories"))
    classes = read_classes(table["categories"], path)
    instances = source / "annotations" / f"instances_{split}{YEAR}.json"
    objects: dict[int, list[Object]] = {}
    if instances.is_file():
        rows = load_json(instances, ("annotations",))["annotations"]
        objects = read_objects(rows, classes, instances)
    refs, spare, left_out = _read_referring(referring, classes, split)
    images = {
        field(row, "id", int, f"{path}, image {number}"): row
        for number, row in enumerate(table["images"])
    }
    items = []
    for number, annotation in enumerate(table["annotations"]):
        where = f"{path}, annotation {number}"
        image_id = field(annotation, "image_id", int, where)
        if image_id not in images:
            raise ValueError(f"{where}: image_id {image_id} is not among 'images'.")
        if image_id in left_out:
            continue
        image, group = images[image_id], refs.get(image_id, [])
        mine = list(objects.get(image_id, ()))
        own = {entry.id for entry in mine}
        if group:
            there = referred_objects(group, spare, referring.directory / "instances.json")
            mine += [entry for entry in there if entry.id not in own]
        where = f"{path}, image id {image_id}"
        items.append(
            Item(
                image_id=image_id,
                image_path=source / f"{split}{YEAR}" / field(image, "file_name", str, where),
                png_path=source
                / f"panoptic_{split}{YEAR}"
                / field(annotation, "file_name", str, where),
                height=field(image, "height", int, where),
                width=field(image, "width", int, where),
                segments=_segments(annotation, classes, where),
                objects=tuple(mine),
                refs=tuple(group),
            )
        )
    dropped = len(table["annotations"]) - len(items)
    if dropped:
        print(f"{split}: {dropped} images left out, they have sentences of {referring.held_out}.")
    return Plan(split, items, make_record), classes


def _segments(annotation: dict, classes: Classes, where: str) -> tuple[Segment, ...]:
    rows = field(annotation, "segments_info", list, where)
    return tuple(
        Segment(
            id=field(row, "id", int, f"{where}, segment {number}"),
            category=class_of(
                field(row, "category_id", int, f"{where}, segment {number}"),
                classes,
                f"{where}, segment {number}",
            ),
            crowd=bool(row.get("iscrowd", 0)),
        )
        for number, row in enumerate(rows)
    )


def _read_referring(
    referring: Referring | None, classes: Classes, split: str
) -> tuple[dict[int, list[Ref]], dict[int, Object], set[int]]:
    """Refs of the split by image, objects by annotation id, and the images to leave out."""
    if referring is None:
        return {}, {}, set()
    path = referring.directory / "instances.json"
    rows = load_json(path, ("annotations",))["annotations"]
    objects = read_objects(rows, classes, path)
    mine: dict[int, list[Ref]] = {}
    left_out = set()
    for ref in read_refs(referring.directory, referring.owner):
        if ref.split == split:
            mine.setdefault(ref.image_id, []).append(ref)
        elif ref.split in referring.held_out:
            left_out.add(ref.image_id)
    return mine, {entry.id: entry for entries in objects.values() for entry in entries}, left_out


def convert(
    source: Path,
    root: Path,
    name: str,
    splits: Sequence[str],
    processes: int,
    referring: Referring | None = None,
) -> None:
    """Converts some splits below `source` to `<root>/<name>`."""
    plans, classes = [], None
    for split in splits:
        plan, found = plan_split(source, split, referring)
        if classes not in (None, found):
            raise ValueError(f"{source}: the splits {list(splits)} list different 'categories'.")
        plans.append(plan)
        classes = found
    write_dataset(root, name, classes, plans, processes=processes)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", type=Path, required=True, help="folder in COCO's layout")
    parser.add_argument(
        "--output", type=Path, required=True, help="folder of the converted data sets"
    )
    parser.add_argument("--name", default="coco_panoptic", help="name of the converted data set")
    parser.add_argument("--splits", nargs="+", default=["train", "val"])
    parser.add_argument("--referring", type=Path, help="folder with refs(*).p and instances.json")
    parser.add_argument("--owner", default="umd", help="umd, google or unc: the name in refs(*).p")
    parser.add_argument("--held_out", nargs="*", default=["val"], help="splits of --referring")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    args = parser.parse_args()
    with message_only():
        referring = None
        if args.referring:
            referring = Referring(args.referring, args.owner, tuple(args.held_out))
        convert(args.input, args.output, args.name, args.splits, args.processes, referring)


if __name__ == "__main__":
    main()
