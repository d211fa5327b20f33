"""Finds out what a downloaded or home-made data set is, and checks it as such."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep import own_files
from data_prep.checks_coco import (
    examine_captions,
    examine_instances,
    examine_lvis,
    examine_panoptic,
)
from data_prep.checks_files import (
    CORRECT,
    PAIR,
    Examined,
    Job,
    image_folders,
    pictures_in,
    read_lists,
)
from data_prep.checks_own import examine_labelme, examine_masks, examine_yolo
from data_prep.checks_refer import examine_merged, examine_refer
from data_prep.checks_sets import examine_davis, examine_frames, examine_sbd, examine_voc
from data_prep.coco_files import NAME, Files, find_splits
from data_prep.faults import Fault


def examine(source: Path) -> tuple[list[str], list[Fault], list[Job]]:
    """The formats found in a folder, their faults, and the work of looking into the files."""
    found: dict[str, Examined] = {}
    categories = defaultdict(list)
    whole = True  # no split of which only a filtered file is there
    for path in sorted(source.glob("annotations/*.json")):
        match = NAME.fullmatch(path.stem)
        kind, split, filtered = match.groups("") if match else ("", "", "")
        if kind == "panoptic":
            found[path.name] = examine_panoptic(Files(source, split, filtered), path)
            whole &= "" in find_splits(source)[split]
        elif kind == "instances":
            found[path.name] = examine_instances(source, path, split)
        elif kind == "captions":
            found[path.name] = examine_captions(path)
        elif kind in ("refcocog", "refcoco", "refcocop", "grounding"):
            found[path.name] = examine_merged(path)
        if kind in ("panoptic", "instances"):
            categories[kind].append(path)
    for path in sorted(source.glob("lvis/*lvis*.json")) if found else ():
        found[str(path.relative_to(source))] = examine_lvis(path)
    for path in sorted(source.glob("*/*.coco.json")):
        found[str(path.relative_to(source))] = examine_instances(source, path, path.parent.name)
    for pattern in ("refs(*).p", "*/refs(*).p", "refer/*/refs(*).p"):
        for path in sorted(source.glob(pattern)):
            found[str(path.relative_to(source))] = examine_refer(path)
    if (source / "SegmentationObject").is_dir():
        found["VOC"] = examine_voc(source)
    if (source / "inst").is_dir():
        found["SBD"] = examine_sbd(source)
    if (source / "ImageSets").is_dir() and (source / "JPEGImages" / "480p").is_dir():
        found["DAVIS"] = examine_davis(source)
    if (source / "img").is_dir() and (source / "gt").is_dir():
        found["frames of DAVIS"] = examine_frames(source)
    if own_files.folder_pairs(source, "labels"):
        found["YOLO"] = examine_yolo(source)
    if own_files.folder_pairs(source, "masks"):
        found["masks"] = examine_masks(source)
    if not found:
        folders = [source, *(source / split for split in own_files.SPLITS)]
        paths = [path for folder in folders for path in sorted(folder.glob("*.json"))]
        labelme = [path for path in paths if b'"categories"' not in path.read_bytes()]
        if labelme:
            found["LabelMe"] = examine_labelme(labelme)
        for path in set(paths) - set(labelme):
            split = "" if path.parent == source else path.parent.name
            name = str(path.relative_to(source))
            lvis = "lvis" in path.name
            found[name] = examine_lvis(path) if lvis else examine_instances(source, path, split)
    faults = [fault for one, _ in found.values() for fault in one]
    if categories and whole:
        faults += _unlisted_images(source, [path for some in categories.values() for path in some])
    faults += _category_differences(categories)
    return list(found), faults, [job for _, jobs in found.values() for job in jobs]


def _unlisted_images(source: Path, tables: Sequence[Path]) -> Iterator[Fault]:
    """Image files that no annotation file names."""
    named = set()
    for path in tables:
        table, _ = read_lists(path, ())
        rows = (table or {}).get("images") or []
        named |= {Path(str(row.get("file_name"))).name for row in rows if isinstance(row, dict)}
    for folder in image_folders(source):
        for file in pictures_in(folder):
            if file.name not in named:
                yield Fault(str(file), "", "", "no annotation file names this image", PAIR)


def _category_differences(files: dict[str, list[Path]]) -> list[Fault]:
    """Categories that one file lists and another of its kind does not, or those with instances that
    a panoptic file does not list."""
    listed = {
        kind: {path: _listed(path) for path in paths if _listed(path) is not None}
        for kind, paths in files.items()
    }
    faults = []
    for tables in listed.values():
        needed = set().union(*tables.values(), *listed.get("instances", {}).values())
        for path, own in tables.items():
            for identity, name in sorted(needed - own, key=str):
                text = f"lacks {name!r}, which another annotation file lists"
                faults.append(
                    Fault(str(path), f"category id {identity}", "categories", text, CORRECT)
                )
    return faults


def _listed(path: Path) -> set[tuple[object, object]] | None:
    table, _ = read_lists(path, ("categories",))
    if table is None:
        return None
    return {(row.get("id"), row.get("name")) for row in table["categories"] if row}
