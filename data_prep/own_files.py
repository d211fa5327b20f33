"""What the formats of data_prep/custom.py share: where files lie, how they pair, what is a class."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from data_prep.annotations import image_orientation
from data_prep.items import Item, instance_map, make_record
from data_prep.writer import Classes, MissingInputError
from seem_jax.data.schema import Record

SPLITS = ("train", "val", "valid", "test")
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
NO_CLASS = ("background", "_background_", "__background__", "__ignore__", "ignore", "void")


@dataclasses.dataclass(frozen=True)
class Found:
    """A folder in one of the formats: its classes, and the items of each split."""

    classes: Classes
    items: dict[str, list[Item]]
    make: Callable[[Item], Record]


def make_instances(item: Item) -> Record:
    """A record whose objects are its segments."""
    return make_record(upright(item), instance_map)


def upright(item: Item) -> Item:
    """The item itself. ValueError for a photograph that its EXIF tag turns."""
    turn = image_orientation(item.image_path)
    if turn != 1:
        raise ValueError(
            f"{item.image_path} has the EXIF orientation {turn}, so viewers turn it and its masks "
            "may not fit. Rotate its pixels (for example: mogrify -auto-orient) and remove the tag."
        )
    return item


def folder_pairs(source: Path, truth: str) -> list[tuple[str, Path, Path]]:
    """(split, folder of images, folder of truth) in the two usual arrangements."""
    found = []
    for split in SPLITS:
        for images, other in (
            (source / "images" / split, source / truth / split),
            (source / split / "images", source / split / truth),
        ):
            if images.is_dir() and other.is_dir():
                found.append((split, images, other))
    if not found and (source / "images").is_dir() and (source / truth).is_dir():
        found = [("", source / "images", source / truth)]
    return found


def matched(images: Path, truth: Path, suffix: str) -> list[tuple[Path, Path]]:
    """Images by name, with their files of truth. ValueError for what has no partner."""
    pictures = sorted(path for path in images.iterdir() if path.suffix.lower() in PICTURES)
    refuse_doubles([path.stem for path in pictures], f"{images}: file name")
    files = {path.stem: path for path in truth.glob(f"*{suffix}")}
    files.pop("classes", None)
    lonely = sorted(set(files) - {path.stem for path in pictures})
    if lonely:
        raise ValueError(f"{truth}: {lonely[:5]}{suffix} have no image in {images}.")
    without = sorted({path.stem for path in pictures} - set(files))
    if without and suffix == ".png":
        raise ValueError(f"{images}: {without[:5]} have no mask in {truth}.")
    return [(path, truth / f"{path.stem}{suffix}") for path in pictures]


def refuse_doubles(values: Sequence[object], what: str) -> None:
    """ValueError naming the first value that occurs more than once."""
    counts: dict[object, int] = defaultdict(int)
    for value in values:
        counts[value] += 1
    doubled = [value for value, count in counts.items() if count > 1]
    if doubled:
        raise ValueError(f"{what} {doubled[0]!r} occurs {counts[doubled[0]]} times.")


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty. MissingInputError where there is no file."""
    if not path.is_file():
        raise MissingInputError(f"{path} does not exist; it names the classes, one a line.")
    return [
        line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()
    ]


def things_only(names: Sequence[str]) -> Classes:
    """The classes of a set without stuff. ValueError for a name that occurs twice."""
    refuse_doubles(names, "class name")
    return Classes(tuple(names), len(names), tuple(range(len(names))))


def json_files(folder: Path) -> list[Path]:
    """The JSON files of a folder by name; none where it is no folder."""
    return sorted(folder.glob("*.json")) if folder.is_dir() else []


def holds(path: Path, names: Sequence[str]) -> bool:
    """Whether a JSON object has these fields; a damaged file is refused by name."""
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); it may be truncated.") from error
    return isinstance(value, dict) and all(name in value for name in names)
