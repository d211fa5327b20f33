"""Converts DAVIS (Perazzi et al. 2016, Pont-Tuset et al. 2017), and data in its layout, into records.

    python -m data_prep.davis --input data/DAVIS --output data/davis/records --splits train val

Reads below --input, where the year is --year (2017):
    ImageSets/<year>/<split>.txt             names of sequences; 2016 also as ImageSets/480p/
    JPEGImages/480p/<sequence>/%05d.jpg
    Annotations/480p/<sequence>/%05d.png     palette PNG: 0 background, 255 void, else the object
In 2016 all objects of a sequence are one. Frames of a sequence follow each other; a frame without
annotation has an empty segment_map. Or reads the frames used for interactive evaluation, as the
split val:
    img/*.jpg    gt/*.png    any pixel that is not black is the one object
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from data_prep.beam import Beam
from data_prep.items import Item, Map, Segment, make_record
from data_prep.writer import (
    Classes,
    MissingInputError,
    Plan,
    chosen_splits,
    converter_parser,
    message_only,
    workers_of,
    write_dataset,
)
from seem_jax.data.schema import Record

CLASSES = Classes(names=("object",), num_things=1, category_ids=(1,))  # DAVIS names no classes
VOID = 255


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameItem(Item):
    """A frame; `num_objects` of its sequence."""

    num_objects: int
    single: bool = False  # all objects are one


def read_frame_map(item: FrameItem, masks: Sequence[bytes]) -> Map:
    """Segment i is the object i + 1 of the sequence, void is background."""
    labels = read_labels(item.map_path, item.single)
    if labels.shape != (item.height, item.width):
        raise ValueError(
            f"{item.map_path} has {labels.shape} pixels, its image {(item.height, item.width)}."
        )
    if labels.max(initial=0) > item.num_objects:
        raise ValueError(
            f"{item.map_path} holds object {labels.max()}, but the first frame of "
            f"{item.sequence!r} has {item.num_objects} objects."
        )
    return Map(labels, tuple(Segment(number + 1, 0) for number in range(item.num_objects)))


def make_frame(item: FrameItem) -> Record:
    """The record of a frame, annotated or not."""
    return make_record(item, read_frame_map if item.map_path else None)


def read_labels(path: Path, single: bool = False) -> np.ndarray:
    """uint8 [H, W], the object of each pixel; void (255) becomes background (0).

    With `single`, 1 for every object; there 255 is the object where no other number occurs.
    """
    try:
        with Image.open(path) as image:
            labels = np.array(image)
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} is missing or no readable PNG.") from error
    if single and labels.ndim == 3:
        labels = labels[..., :3].max(axis=2)
    if single and labels.dtype == bool:
        labels = labels.astype(np.uint8)
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise ValueError(f"{path}: expected a palette PNG, found {labels.shape} {labels.dtype}.")
    if single and not ((labels > 0) & (labels < VOID)).any():
        return (labels > 0).astype(np.uint8)
    labels = np.where(labels == VOID, np.uint8(0), labels)
    return (labels > 0).astype(np.uint8) if single else labels


def plan_split(source: Path, split: str, year: int = 2017) -> Plan:
    """The frames of one split, sequence by sequence in the order of its list."""
    path = _list_path(source, split, year)
    items: list[FrameItem] = []
    for sequence in read_sequences(path):
        frames = sorted((source / "JPEGImages" / "480p" / sequence).glob("*.jpg"))
        folder = source / "Annotations" / "480p" / sequence
        if not frames:
            raise MissingInputError(f"{path} names {sequence!r}, which has no frames in {source}.")
        first = folder / f"{frames[0].stem}.png"
        num_objects = int(read_labels(first, year == 2016).max(initial=0))
        for frame in frames:
            png = folder / f"{frame.stem}.png"
            if not frame.stem.isdigit():
                raise ValueError(f"{frame}: expected a frame number as name, as 00000.jpg.")
            items.append(
                FrameItem(
                    image_id=len(items),
                    file_name=f"{sequence}/{frame.name}",
                    image_path=frame,
                    map_path=png if png.is_file() else None,
                    sequence=sequence,
                    frame=int(frame.stem),
                    num_objects=num_objects,
                    single=year == 2016,
                )
            )
    return Plan(split, items, make_frame)


def plan_frames(source: Path) -> Plan:
    """Single frames with one object each, in the order of their names."""
    masks = {path.stem: path for path in sorted((source / "gt").glob("*.png"))}
    frames = {path.stem: path for path in sorted((source / "img").glob("*.jpg"))}
    if set(masks) != set(frames):
        raise ValueError(
            f"{source}: img/ and gt/ must hold the same names; only one of them has "
            f"{sorted(set(masks) ^ set(frames))[:5]}."
        )
    items = [
        FrameItem(
            image_id=number,
            file_name=frames[name].name,
            image_path=frames[name],
            map_path=masks[name],
            num_objects=1,
            single=True,
        )
        for number, name in enumerate(masks)
    ]
    return Plan("val", items, make_frame)


def _list_path(source: Path, split: str, year: int) -> Path:
    folders = (str(year), "480p") if year == 2016 else (str(year),)
    for folder in folders:
        path = source / "ImageSets" / folder / f"{split}.txt"
        if path.is_file():
            return path
    raise MissingInputError(f"{path} does not exist.")


def read_sequences(path: Path) -> list[str]:
    """Names of sequences; the lists of 2016 name a frame and its annotation in each line."""
    names = [
        line.split()[0].split("/")[-2] if "/" in line else line.strip()
        for line in path.read_text().splitlines()
        if line.strip()
    ]
    return list(dict.fromkeys(names))


def find_splits(source: Path, year: int) -> list[str]:
    """The splits that have a list."""
    folders = (str(year), "480p") if year == 2016 else (str(year),)
    found = {path.stem for name in folders for path in (source / "ImageSets" / name).glob("*.txt")}
    return sorted(found & {"train", "val", "test-dev", "test-challenge"})


def convert(
    source: Path,
    root: Path,
    name: str,
    splits: Sequence[str],
    processes: int | Beam,
    year: int = 2017,
) -> None:
    """Converts some splits below `source` to `<root>/<name>`."""
    plans = [plan_split(source, split, year) for split in splits]
    write_dataset(root, name, CLASSES, plans, processes=processes)


def main() -> None:
    parser = converter_parser(__doc__, name="")
    parser.add_argument("--year", type=int, choices=(2016, 2017), default=2017)
    args = parser.parse_args()
    with message_only(__doc__):
        if (args.input / "img").is_dir() and (args.input / "gt").is_dir():
            plans = [plan_frames(args.input)]
            name = args.name or "davis_frames"
        else:
            found = find_splits(args.input, args.year)
            splits = chosen_splits(args.splits, found, args.input, f"ImageSets/{args.year}/*.txt")
            plans = [plan_split(args.input, split, args.year) for split in splits]
            name = args.name or ("davis" if args.year == 2017 else "davis2016")
        write_dataset(args.output, name, CLASSES, plans, processes=workers_of(args))


if __name__ == "__main__":
    # Under its own name, so that other processes and machines find what is defined here.
    importlib.import_module(__spec__.name).main()
