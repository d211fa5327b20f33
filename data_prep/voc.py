"""Converts PASCAL VOC 2012 segmentation (Everingham et al. 2010), for interactive evaluation.

    python -m data_prep.voc --input data/VOCdevkit/VOC2012 --output data/voc/records --splits val

Reads below --input:
    ImageSets/Segmentation/<split>.txt    names of images
    JPEGImages/<name>.jpg
    SegmentationObject/<name>.png         palette PNG: 0 background, 255 border, else the object
    SegmentationClass/<name>.png          the same with classes 1 to 20
Objects are told by palette index (read as grey values, as officially, some would merge). Borders
become `ignore_rle`: no score counts them.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from data_prep.beam import Beam
from data_prep.items import Item, Map, Segment, listed_items, make_record
from data_prep.writer import (
    Classes,
    Plan,
    chosen_splits,
    converter_parser,
    message_only,
    workers_of,
    write_dataset,
)

NAMES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
CLASSES = Classes(NAMES, num_things=20, category_ids=tuple(range(1, 21)))
BORDER = 255


def read_palette(path: Path, height: int, width: int) -> np.ndarray:
    """uint8 [height, width], the palette indices of a PNG."""
    try:
        with Image.open(path) as image:
            labels = np.array(image)
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} is missing or no readable PNG.") from error
    if labels.dtype != np.uint8 or labels.shape != (height, width):
        raise ValueError(
            f"{path}: expected a palette PNG of {(height, width)} pixels (height, width), found "
            f"{labels.dtype} {labels.shape}."
        )
    return labels


def segments_of(objects: np.ndarray, classes: np.ndarray, where: object) -> Map:
    """The map of object numbers [H, W], each of the class 1 to 20 that most of its pixels have.

    255 in `objects` is ignored.
    """
    numbers = [int(n) for n in np.unique(objects) if n not in (0, BORDER)]
    pixels = np.zeros(objects.shape, np.int64)
    segments = []
    for place, number in enumerate(numbers):
        mask = objects == number
        counts = np.bincount(classes[mask], minlength=256)[1 : len(NAMES) + 1]
        if not counts.any():
            raise ValueError(f"{where}: object {number} has no class from 1 to {len(NAMES)}.")
        pixels[mask] = place + 1
        segments.append(Segment(number, int(counts.argmax())))
    return Map(pixels, tuple(segments), ignore=objects == BORDER)


def read_voc_map(item: Item, masks: Sequence[bytes]) -> Map:
    """The objects of an image."""
    size = item.height, item.width
    class_path = item.map_path.parents[1] / "SegmentationClass" / item.map_path.name
    return segments_of(
        read_palette(item.map_path, *size), read_palette(class_path, *size), item.map_path
    )


def plan_split(source: Path, split: str) -> Plan:
    """The images of one split, in the order of its list."""
    names = source / "ImageSets" / "Segmentation" / f"{split}.txt"
    items = listed_items(names, source / "JPEGImages", source / "SegmentationObject", ".png")
    return Plan(split, items, functools.partial(make_record, read_map=read_voc_map))


def convert(
    source: Path, root: Path, name: str, splits: Sequence[str], processes: int | Beam
) -> None:
    """Converts some splits below `source` to `<root>/<name>`."""
    plans = [plan_split(source, split) for split in splits]
    write_dataset(root, name, CLASSES, plans, processes=processes)


def find_splits(source: Path) -> list[str]:
    """The splits that have a list."""
    return sorted(path.stem for path in (source / "ImageSets" / "Segmentation").glob("*.txt"))


def main() -> None:
    args = converter_parser(__doc__, "voc").parse_args()
    with message_only(__doc__):
        source = args.input
        if (source / "VOC2012").is_dir():  # --input is the folder VOCdevkit
            source = source / "VOC2012"
        splits = chosen_splits(
            args.splits, find_splits(source), source, "ImageSets/Segmentation/*.txt"
        )
        convert(source, args.output, args.name, splits, workers_of(args))


if __name__ == "__main__":
    # Under its own name, so that other processes and machines find what is defined here.
    importlib.import_module(__spec__.name).main()
