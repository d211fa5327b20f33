"""Converts DAVIS 2017 (Pont-Tuset et al. 2017), and data in its layout, into records of frames.

    python -m data_prep.davis --input data/DAVIS --output data/davis/records --splits train val

Reads below --input: `ImageSets/2017/<split>.txt`, `JPEGImages/480p/<sequence>/%05d.jpg` and
`Annotations/480p/<sequence>/%05d.png` (palette PNG: 0 background, 255 void, else the object).
Frames of a sequence follow each other. A frame without annotation has an empty segment_map.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from data_prep.annotations import encode_index, read_image
from data_prep.writer import Classes, Plan, message_only, write_dataset
from seem_jax.data.schema import Record

CLASSES = Classes(names=("object",), num_things=1, category_ids=(1,))  # DAVIS names no classes
VOID = 255


@dataclasses.dataclass(frozen=True)
class Item:
    """What the record of one frame is made of."""

    number: int  # of the record in its split; the image_id
    sequence: str
    frame: int
    image_path: Path = dataclasses.field(repr=False)  # see writer.Plan
    png_path: Path | None = dataclasses.field(repr=False)  # None: this frame is not annotated
    num_objects: int  # of the sequence


def make_record(item: Item) -> Record:
    """The record of one frame; segment i is the object i + 1 of the sequence, void is background."""
    with Image.open(item.image_path) as image:
        height, width = image.height, image.width
    ids = range(1, item.num_objects + 1)
    segment_map = b""
    if item.png_path:
        labels = read_labels(item.png_path)
        if labels.shape != (height, width):
            raise ValueError(
                f"{item.png_path} has {labels.shape} pixels, its image {height, width}."
            )
        if labels.max(initial=0) > item.num_objects:
            raise ValueError(
                f"{item.png_path} holds object {labels.max()}, but the first frame of "
                f"{item.sequence!r} has {item.num_objects} objects."
            )
        segment_map = encode_index(labels)
    return Record(
        image_id=item.number,
        file_name=f"{item.sequence}/{item.image_path.name}",
        image=read_image(item.image_path, height, width),
        height=height,
        width=width,
        segment_map=segment_map,
        segment_id=list(ids) if segment_map else [],
        segment_category=[0 for _ in ids] if segment_map else [],
        segment_crowd=[False for _ in ids] if segment_map else [],
        sequence=item.sequence,
        frame=item.frame,
    )


def read_labels(path: Path) -> np.ndarray:
    """uint8 [H, W], the object of each pixel; void (255) becomes background (0)."""
    try:
        with Image.open(path) as image:
            labels = np.array(image)
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} is missing or no readable PNG.") from error
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise ValueError(f"{path}: expected a palette PNG, found {labels.shape} {labels.dtype}.")
    return np.where(labels == VOID, np.uint8(0), labels)


def plan_split(source: Path, split: str) -> Plan:
    """The frames of one split, sequence by sequence in the order of its list."""
    path = source / "ImageSets" / "2017" / f"{split}.txt"
    if not path.is_file():
        raise ValueError(f"{path} does not exist; see --help for the layout that --input needs.")
    items: list[Item] = []
    for sequence in path.read_text().split():
        frames = sorted((source / "JPEGImages" / "480p" / sequence).glob("*.jpg"))
        folder = source / "Annotations" / "480p" / sequence
        if not frames:
            raise ValueError(f"{path} names {sequence!r}, which has no frames in {source}.")
        first = folder / f"{frames[0].stem}.png"
        num_objects = int(read_labels(first).max(initial=0))
        for frame in frames:
            png = folder / f"{frame.stem}.png"
            if not frame.stem.isdigit():
                raise ValueError(f"{frame}: expected a frame number as name, as 00000.jpg.")
            items.append(
                Item(
                    number=len(items),
                    sequence=sequence,
                    frame=int(frame.stem),
                    image_path=frame,
                    png_path=png if png.is_file() else None,
                    num_objects=num_objects,
                )
            )
    return Plan(split, items, make_record)


def convert(source: Path, root: Path, name: str, splits: Sequence[str], processes: int) -> None:
    """Converts some splits below `source` to `<root>/<name>`."""
    plans = [plan_split(source, split) for split in splits]
    write_dataset(root, name, CLASSES, plans, processes=processes)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", type=Path, required=True, help="folder in DAVIS' layout")
    parser.add_argument(
        "--output", type=Path, required=True, help="folder of the converted data sets"
    )
    parser.add_argument("--name", default="davis", help="name of the converted data set")
    parser.add_argument("--splits", nargs="+", default=["train", "val"])
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    args = parser.parse_args()
    with message_only():
        convert(args.input, args.output, args.name, args.splits, args.processes)


if __name__ == "__main__":
    main()
