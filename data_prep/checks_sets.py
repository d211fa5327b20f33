"""The checks of VOC, SBD and DAVIS in their official layouts."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from data_prep import davis, sbd, voc
from data_prep.checks_files import CORRECT, PAIR, Examined, Job, repeated_lines, size_of
from data_prep.faults import FETCH, Fault, file_faults


def examine_voc(source: Path) -> Examined:
    """PASCAL VOC: the lists, and each image with its two PNGs."""
    faults: list[Fault] = []
    jobs: list[Job] = []
    for path in sorted((source / "ImageSets" / "Segmentation").glob("*.txt")):
        faults += repeated_lines(path)
        if not path.read_text().split():
            faults.append(Fault(str(path), "", "", "the list is empty", FETCH))
        if path.stem != "trainval":
            jobs += [
                functools.partial(_voc_image, source, name) for name in path.read_text().split()
            ]
    return faults, jobs


def _voc_image(source: Path, name: str) -> list[Fault]:
    image = source / "JPEGImages" / f"{name}.jpg"
    faults = file_faults(image, None, name)
    size = size_of(image)
    if size is None:
        return faults
    maps = []
    for folder in ("SegmentationObject", "SegmentationClass"):
        path = source / folder / f"{name}.png"
        try:
            maps.append(voc.read_palette(path, *size))
        except (ValueError, OSError) as error:
            faults.append(Fault(str(path), name, "", str(error), FETCH))
    if len(maps) == 2:
        objects, classes = maps
        path = source / "SegmentationObject" / f"{name}.png"
        for number in sorted(set(np.unique(objects).tolist()) - {0, voc.BORDER}):
            inside = set(np.unique(classes[objects == number]).tolist()) - {voc.BORDER}
            if not inside or inside - set(range(1, len(voc.NAMES) + 1)):
                text = f"object {number} has the classes {sorted(inside)}, expected one of 1 to 20"
                faults.append(Fault(str(path), name, f"object {number}", text, CORRECT))
        if not ((objects > 0) & (objects < voc.BORDER)).any():
            faults.append(Fault(str(path), name, "", "the image has no object", CORRECT))
    return faults


def examine_sbd(source: Path) -> Examined:
    """SBD: the lists, and each image with its MATLAB file."""
    faults: list[Fault] = []
    names: dict[str, None] = {}
    for split in sbd.SPLITS:
        path = source / f"{split}.txt"
        if path.is_file():
            faults += repeated_lines(path)
            names |= dict.fromkeys(path.read_text().split())
    return faults, [functools.partial(_sbd_image, source, name) for name in names]


def _sbd_image(source: Path, name: str) -> list[Fault]:
    image, path = source / "img" / f"{name}.jpg", source / "inst" / f"{name}.mat"
    faults = file_faults(image, None, name)
    try:
        labels, classes = sbd.read_mat(path)
    except ValueError as error:
        return [*faults, Fault(str(path), name, "GTinst", str(error), FETCH)]
    size = size_of(image)
    if size and labels.shape != size:
        text = f"{labels.shape} pixels, the image {size}"
        faults.append(Fault(str(path), name, "Segmentation", text, CORRECT))
    for number in np.unique(labels[labels > 0]).tolist():
        if number > len(classes) or not 1 <= classes[number - 1] <= len(voc.NAMES):
            text = f"object {number} has no class from 1 to 20 in {classes}"
            faults.append(Fault(str(path), name, "Categories", text, CORRECT))
    if not labels.any():
        faults.append(Fault(str(path), name, "Segmentation", "the image has no object", CORRECT))
    return faults


def examine_davis(source: Path) -> Examined:
    """DAVIS: the lists, gaps in the frames, each frame with its annotation."""
    faults: list[Fault] = []
    names: dict[str, None] = {}
    for path in sorted((source / "ImageSets").glob("*/*.txt")):
        if path.parent.name in ("2016", "2017", "480p"):
            if path.parent.name != "480p":
                faults += repeated_lines(path)
            for name in davis.read_sequences(path):
                names[name] = None
    jobs = [functools.partial(_davis_sequence, source, name) for name in names]
    return faults, jobs


def examine_frames(source: Path) -> Examined:
    """Single frames of DAVIS for interactive evaluation: each image with its mask."""
    images = {path.stem: path for path in sorted((source / "img").glob("*.jpg"))}
    masks = {path.stem: path for path in sorted((source / "gt").glob("*.png"))}
    faults = []
    for own, others, text in (
        (images, masks, "no mask in gt/ has its name"),
        (masks, images, "no image in img/ has its name"),
    ):
        faults += [
            Fault(str(own[name]), name, "", text, PAIR) for name in own if name not in others
        ]
    both = [name for name in images if name in masks]
    return faults, [functools.partial(_frame, name, images[name], masks[name]) for name in both]


def _frame(name: str, image: Path, png: Path) -> list[Fault]:
    faults = file_faults(image, None, name)
    try:
        labels = davis.read_labels(png, single=True)
    except ValueError as error:
        return [*faults, Fault(str(png), name, "", str(error), FETCH)]
    size = size_of(image)
    if size and labels.shape != size:
        text = f"{labels.shape} pixels, the image {size}"
        faults.append(Fault(str(png), name, "", text, CORRECT))
    if not labels.any():
        faults.append(Fault(str(png), name, "", "the image has no object", CORRECT))
    return faults


def _davis_sequence(source: Path, name: str) -> list[Fault]:
    folder, truth = (source / part / "480p" / name for part in ("JPEGImages", "Annotations"))
    frames = sorted(folder.glob("*.jpg"))
    if not frames:
        return [Fault(str(folder), name, "", "the sequence has no frames", FETCH)]
    faults: list[Fault] = []
    numbers = [int(path.stem) for path in frames if path.stem.isdigit()]
    for path in frames:
        if not path.stem.isdigit():
            faults.append(Fault(str(path), name, "", "the name is no frame number", CORRECT))
    for number in sorted(set(range(max(numbers, default=-1) + 1)) - set(numbers)):
        faults.append(Fault(str(folder), name, f"frame {number}", "the frame is missing", FETCH))
    stems = {path.stem for path in frames}
    for path in sorted(truth.glob("*.png")):
        if path.stem not in stems:
            faults.append(Fault(str(path), name, "", "the annotation has no frame", PAIR))
    most = None
    for path in frames:
        png, size = truth / f"{path.stem}.png", size_of(path)
        faults += file_faults(path, None, f"{name}, frame {path.stem}")
        if not png.is_file():
            # Test splits annotate the first frame only.
            if path is frames[0] or len(list(truth.glob("*.png"))) > 1:
                text = "the annotation of the frame is missing"
                faults.append(Fault(str(png), f"{name}, frame {path.stem}", "", text, FETCH))
            continue
        try:
            labels = davis.read_labels(png)
        except ValueError as error:
            faults.append(Fault(str(png), f"{name}, frame {path.stem}", "", str(error), FETCH))
            continue
        record = f"{name}, frame {path.stem}"
        if size and labels.shape != size:
            text = f"{labels.shape} pixels, the frame {size}"
            faults.append(Fault(str(png), record, "", text, CORRECT))
        most = int(labels.max(initial=0)) if most is None else most
        if labels.max(initial=0) > most:
            text = f"object {labels.max()}, but the first frame has {most} objects"
            faults.append(Fault(str(png), record, f"object {labels.max()}", text, CORRECT))
    return faults
