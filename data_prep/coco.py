"""Converts COCO panoptic (Kirillov et al. 2019), and data in its layout, into records.

    python -m data_prep.coco --input data/coco --output data/coco/records --splits train val

Reads below --input:
    <split>2017/*.jpg
    panoptic_<split>2017/*.png
    annotations/panoptic_<split>2017.json
    annotations/instances_<split>2017.json   where present: objects that may overlap
    annotations/captions_<split>2017.json    where present
The year may be absent in all names. The official filtered files (panoptic_, captions_ and grounding_
train2017_filtrefgumdval[_filtvlp].json) are read where COCO's own panoptic file is not there, or with
--filtered=filtrefgumdval. --referring names folders in REFER layout or merged JSON files, whose
sentences are joined by `ann_id`; without it, the official grounding file, or else RefCOCOg in or beside
--input, is taken. As in the official training files, images with sentences of a --held_out split of
RefCOCOg (UMD: val) are left out, and those of --exclude. data_prep/lvis.py is the same with finer masks.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from data_prep.annotations import (
    Object,
    class_of,
    field,
    file_below,
    load_json,
    read_classes,
    read_objects,
)
from data_prep.beam import Beam
from data_prep.coco_files import files_of, find_splits
from data_prep.items import Item, Map, Ref, Segment, make_record
from data_prep.lvis_masks import LVISMask, read_lvis, with_lvis_masks
from data_prep.refcoco import MERGED_NAMES, OWNERS, find_refer, read_sentences, referred_objects
from data_prep.writer import (
    Classes,
    Plan,
    chosen_splits,
    converter_parser,
    message_only,
    workers_of,
    write_dataset,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PanopticItem(Item):
    """An item whose map is a panoptic PNG."""

    lvis: tuple[LVISMask, ...] = ()


@dataclasses.dataclass(frozen=True)
class Referring:
    """Sentences to join, and whose images must stay out."""

    directory: Path  # in REFER layout, or a merged JSON file
    owner: str = "umd"
    held_out: tuple[str, ...] = ("val",)


def read_panoptic_map(item: PanopticItem, masks: Sequence[bytes]) -> Map:
    """The map of the PNG, with the masks of LVIS where they fit."""
    found = Map(read_panoptic_png(item), item.segments)
    return with_lvis_masks(found, item.lvis) if item.lvis else found


def read_panoptic_png(item: PanopticItem) -> np.ndarray:
    """int64 [H, W]: 0 void, i + 1 the segment i of the item.

    A PNG stores R + 256 G + 65536 B = id of the segment, 0 for void. Raises ValueError when PNG and
    `segments_info` do not name the same segments.
    """
    bgr = cv2.imread(str(item.map_path), cv2.IMREAD_COLOR)
    if bgr is None:
        raise ValueError(f"{item.map_path} is missing or no readable PNG.")
    if bgr.shape[:2] != (item.height, item.width):
        raise ValueError(
            f"{item.map_path} is {bgr.shape[0]} x {bgr.shape[1]} pixels, "
            f"annotated as {item.height} x {item.width}."
        )
    ids = bgr.astype(np.int64) @ np.array([65536, 256, 1])  # [H, W]
    found, place = np.unique(ids, return_inverse=True)
    number = {segment.id: index + 1 for index, segment in enumerate(item.segments)} | {0: 0}
    unknown = [int(identity) for identity in found if int(identity) not in number]
    unseen = sorted(set(number) - set(found.tolist()) - {0})
    if unknown or unseen:
        raise ValueError(
            f"{item.map_path}: ids {unknown} are not in segments_info of image {item.image_id}, "
            f"and ids {unseen} of segments_info are not in the PNG."
        )
    return np.array([number[int(identity)] for identity in found])[place].reshape(ids.shape)


def plan_split(
    source: Path,
    split: str,
    referring: Sequence[Referring] = (),
    exclude: frozenset[int] = frozenset(),
    lvis: Sequence[Path] = (),
    filtered: str | None = None,
) -> tuple[Plan, Classes]:
    """The records of one split, in the order of its annotation file."""
    files = files_of(source, split, filtered)
    path = files.annotations("panoptic")
    table = load_json(path, ("images", "annotations", "categories"))
    classes = read_classes(table["categories"], path)
    objects = _optional_objects(files.annotations("instances"), classes)
    captions = _captions(files.annotations("captions"))
    refs, left_out = _read_referring(referring, classes, split)
    better = read_lvis(lvis) if lvis else {}
    images = {
        field(row, "id", int, f"{path}, image {number}"): row
        for number, row in enumerate(table["images"])
    }
    items = []
    dropped = {"sentences of held-out splits": 0, "--exclude": 0}
    for number, annotation in enumerate(table["annotations"]):
        where = f"{path}, annotation {number}"
        image_id = field(annotation, "image_id", int, where)
        if image_id not in images:
            raise ValueError(f"{where}: image_id {image_id} is not among 'images'.")
        if image_id in left_out or image_id in exclude:
            reason = "sentences of held-out splits" if image_id in left_out else "--exclude"
            dropped[reason] += 1
            continue
        image, where = images[image_id], f"{path}, image id {image_id}"
        mine = {entry.id: entry for entry in objects.get(image_id, ())}
        for group, spare, origin in refs.get(image_id, ()):
            mine |= {
                entry.id: entry
                for entry in referred_objects(group, spare, origin)
                if entry.id not in mine
            }
        image_path = file_below(files.path(""), image, where)
        items.append(
            PanopticItem(
                image_id=image_id,
                file_name=image_path.name,
                image_path=image_path,
                map_path=file_below(files.path("panoptic_"), annotation, where),
                height=field(image, "height", int, where),
                width=field(image, "width", int, where),
                segments=_segments(annotation, classes, where),
                objects=tuple(mine.values()),
                refs=tuple(ref for group, _, _ in refs.get(image_id, ()) for ref in group),
                captions=tuple(captions.get(image_id, ())),
                lvis=tuple(better.get(image_id, ())),
            )
        )
    for reason, count in dropped.items():
        if count:
            print(f"{split}: {count} images left out, because of {reason}.")
    make = functools.partial(make_record, read_map=read_panoptic_map)
    return Plan(split, items, make), classes


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


def _optional_objects(path: Path, classes: Classes) -> dict[int, list[Object]]:
    if not path.is_file():
        return {}
    return read_objects(load_json(path, ("annotations",))["annotations"], classes, path)


def _captions(path: Path) -> dict[int, list[str]]:
    """The captions of each image, in file order; none without the file."""
    captions = defaultdict(list)
    if path.is_file():
        for number, row in enumerate(load_json(path, ("annotations",))["annotations"]):
            where = f"{path}, annotation {number}"
            text = field(row, "caption", str, where).strip()
            captions[field(row, "image_id", int, where)].append(text)
    return dict(captions)


Joined = tuple[list[Ref], dict[int, Object], Path]  # refs of an image, objects by id, their file


def _read_referring(
    referring: Sequence[Referring], classes: Classes, split: str
) -> tuple[dict[int, list[Joined]], set[int]]:
    """Refs of the split by image, and the images to leave out."""
    joined: dict[int, list[Joined]] = defaultdict(list)
    left_out = set()
    for one in referring:
        merged = one.directory.is_file()
        found = read_sentences(one.directory, one.owner, classes)
        mine: dict[int, list[Ref]] = defaultdict(list)
        for ref in found.refs:
            # Officially all rows of a merged file are trained on, whatever split they are of.
            if ref.split == split or (merged and ref.split not in one.held_out):
                mine[ref.image_id].append(ref)
            elif ref.split in one.held_out:
                left_out.add(ref.image_id)
        for image_id, group in mine.items():
            joined[image_id].append((group, found.objects, found.path))
    return joined, left_out


def convert(
    source: Path,
    root: Path,
    name: str,
    splits: Sequence[str],
    processes: int | Beam,
    referring: Sequence[Referring] = (),
    exclude: frozenset[int] = frozenset(),
    lvis: Sequence[Path] = (),
    filtered: str | None = None,
) -> None:
    """Converts some splits below `source` to `<root>/<name>`."""
    plans, classes = [], None
    for split in splits:
        plan, found = plan_split(source, split, referring, exclude, lvis, filtered)
        if classes not in (None, found):
            raise ValueError(f"{source}: the splits {list(splits)} list different 'categories'.")
        plans.append(plan)
        classes = found
    write_dataset(root, name, classes, plans, processes=processes)


def read_exclude(value: str) -> frozenset[int]:
    """Image ids: written out with commas, or in a file of numbers, a JSON list, or a JSON object in
    COCO's manner, whose 'images' are meant."""
    path = Path(value)
    text = path.read_text() if path.is_file() else value
    try:
        parsed = json.loads(text) if text.lstrip().startswith(("[", "{")) else None
        if isinstance(parsed, dict):
            parsed = [field(row, "id", int, f"{path}, images") for row in parsed["images"]]
        return frozenset(int(part) for part in parsed or text.replace(",", " ").split())
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"--exclude {value!r}: expected image ids or a file of them.") from error


def referring_of(args: argparse.Namespace, splits: Sequence[str]) -> list[Referring]:
    """The sentences that the command line names, or those that lie in or beside --input."""
    folders = args.referring
    if folders is None:
        found = find_refer(args.input, "refcocog")
        official = [files_of(args.input, split, args.filtered) for split in splits]
        held = args.input / "annotations" / MERGED_NAMES["refcocog"]
        folders = [path for path in [files.grounding() for files in official] if path]
        folders = folders or ([found] if found else [])
        if not found and held.is_file():
            folders.append(held)
        if folders:
            print(f"Sentences are joined from {', '.join(map(str, folders))}.")
        filtered = [files.filtered for files in official if files.split == "train"]
        if "" in filtered and not found and not held.is_file() and args.exclude is None:
            print(
                "warning: no refcocog/refs(umd).p in or beside --input and no --exclude: the images "
                "of the RefCOCOg validation split, which are COCO training images, stay in train."
            )
    kept = ("refcoco", "refcoco+", MERGED_NAMES["refcoco"], MERGED_NAMES["refcoco+"])
    return [
        Referring(
            folder,
            args.owner or OWNERS.get(folder.name, "umd"),
            # Only RefCOCOg's validation images are left out officially.
            () if folder.name in kept else tuple(args.held_out),
        )
        for folder in folders
    ]


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this converter and of data_prep/lvis.py."""
    parser.add_argument(
        "--referring", type=Path, nargs="*", help="folders with refs(*).p, or merged JSON"
    )
    parser.add_argument("--owner", help="umd, google or unc: the name in refs(*).p")
    parser.add_argument("--held_out", nargs="*", default=["val"], help="splits of RefCOCOg")
    parser.add_argument("--filtered", help="end of the names of the official filtered files")
    parser.add_argument("--exclude", help="image ids, or a file of them, to leave out of train")


def convert_arguments(args: argparse.Namespace, lvis: Sequence[Path] = ()) -> None:
    """Converts what the command line asks for."""
    splits = chosen_splits(
        args.splits, list(find_splits(args.input)), args.input, "annotations/panoptic_*.json"
    )
    referring = referring_of(args, splits)
    exclude = read_exclude(args.exclude) if args.exclude else frozenset()
    convert(
        args.input,
        args.output,
        args.name,
        splits,
        workers_of(args),
        referring,
        exclude,
        lvis,
        args.filtered,
    )


def main() -> None:
    parser = converter_parser(__doc__, "coco_panoptic")
    add_options(parser)
    args = parser.parse_args()
    with message_only(__doc__):
        convert_arguments(args)


if __name__ == "__main__":
    # Under its own name, so that other processes and machines find what is defined here.
    importlib.import_module(__spec__.name).main()
