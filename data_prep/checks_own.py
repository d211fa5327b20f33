"""The checks of anyone's own images: YOLO, index masks, LabelMe."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_prep import own_files, own_labelme, own_masks, own_yolo
from data_prep.checks_coco import segmentation_problems
from data_prep.checks_files import (
    CORRECT,
    PAIR,
    Examined,
    Job,
    Rows,
    pictures_in,
    read_lists,
    size_of,
    unpaired,
)
from data_prep.faults import FETCH, Fault, file_faults, repeated


def examine_yolo(source: Path) -> Examined:
    """YOLO segmentation text, line by line."""
    try:
        names = own_yolo.yolo_names(source)
    except ValueError as error:
        return [Fault(str(source), "", "names", str(error), CORRECT)], []
    faults: list[Fault] = []
    for value in repeated(names):
        faults.append(Fault(str(source), "", "names", f"{value!r} occurs repeatedly", CORRECT))
    jobs: list[Job] = []
    for _, images, labels in own_files.folder_pairs(source, "labels"):
        faults += unpaired(images, labels, ".txt")
        for path in sorted(labels.glob("*.txt")):
            jobs.append(functools.partial(_yolo_file, path, len(names)))
        for path in pictures_in(images):
            jobs.append(functools.partial(file_faults, path, None, path.stem))
    return faults, jobs


def _yolo_file(path: Path, num_classes: int) -> list[Fault]:
    faults = []
    try:
        lines = path.read_text().splitlines()
    except UnicodeDecodeError:
        return [Fault(str(path), "", "", "no text file", FETCH)]
    for number, line in enumerate(lines, start=1):
        for field, problem in own_yolo.yolo_problems(line, num_classes):
            faults.append(Fault(str(path), f"line {number}", field, problem, CORRECT))
    return faults


def examine_masks(source: Path) -> Examined:
    """Images and index masks."""
    path = source / "classes.txt"
    faults: list[Fault] = []
    names: list[str] = []
    if path.is_file():
        names = own_files.read_lines(path)
        faults += [
            Fault(str(path), "", "", f"{value!r} occurs repeatedly", CORRECT)
            for value in repeated(names)
        ]
    else:
        faults.append(Fault(str(path), "", "", "the file does not exist; it names classes", PAIR))
    jobs: list[Job] = []
    for _, images, masks in own_files.folder_pairs(source, "masks"):
        faults += unpaired(images, masks, ".png")
        for image in pictures_in(images):
            mask = masks / f"{image.stem}.png"
            jobs.append(functools.partial(_mask_pair, image, mask, len(names)))
    return faults, jobs


def _mask_pair(image: Path, path: Path, num_values: int) -> list[Fault]:
    faults = file_faults(image, None, image.stem)
    if not path.is_file():  # reported with the pairs
        return faults
    try:
        labels = own_masks.read_mask(path)
    except ValueError as error:
        return [*faults, Fault(str(path), image.stem, "", str(error), CORRECT)]
    size = size_of(image)
    if size and labels.shape != size:
        faults.append(Fault(str(path), image.stem, "", f"{labels.shape} pixels, {size}", CORRECT))
    unknown = sorted(set(np.unique(labels).tolist()) - set(range(num_values)) - {own_masks.VOID})
    if num_values and unknown:
        text = f"the pixel values {unknown[:5]} have no line in classes.txt ({num_values} lines)"
        faults.append(Fault(str(path), image.stem, "class", text, CORRECT))
    return faults


def examine_labelme(paths: Sequence[Path]) -> Examined:
    """LabelMe JSON, shape by shape."""
    return [], [functools.partial(_labelme_file, path) for path in paths]


def _labelme_file(path: Path) -> list[Fault]:
    table, faults = read_lists(path, ("shapes",))
    if table is None:
        return faults
    rows = Rows(path, table, "shapes", faults)
    size = rows.get(table, "imageHeight", int), rows.get(table, "imageWidth", int)
    for number, row in enumerate(rows.rows):
        label = f"shape {number}"
        if not isinstance(row.get("label"), str) or not row["label"].strip():
            rows.note(label, "label", f"is {row.get('label')!r}")
        try:
            polygon = own_labelme.labelme_polygon(row, label)
        except ValueError as error:
            rows.note(label, "points", str(error))
            continue
        known = size if None not in size else None
        for problem in segmentation_problems([polygon], known):
            rows.note(label, "points", problem)
    name = rows.get(table, "imagePath", str)
    if name is not None:
        beside = path.parent / Path(name.replace("\\", "/")).name
        faults += file_faults(beside, size if None not in size else None, path.name)
    return faults
