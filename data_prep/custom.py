"""Converts your own images, annotated in one of five formats, into records.

    python -m data_prep.custom --input data/mine --output data/mine/records

The format is recognised by the files below --input, or said with --format. <split> is train, val,
valid or test; files without a folder of that name are one set, of which the share --val_share
becomes the split val (by a hash of the file name, so the same on every machine).

  coco       annotations/instances_<split>.json, images in <split>/, images/<split>/ or images/;
             or <split>/_annotations.coco.json beside its images
  panoptic   annotations/panoptic_<split>.json, panoptic_<split>/*.png, images in <split>/
  masks      images/ and masks/ with the same file names (in or above a folder <split>);
             masks/*.png hold the class of each pixel, classes.txt a name a line (line 0 for pixel 0)
  yolo       data.yaml or classes.txt; images/ and labels/*.txt: "class x y x y ..." in 0 to 1
  labelme    *.json beside their images (in folders <split>, or together)

Class names become the vocabulary. In `masks`, background, void and ignore are no classes, 255 is
void, and a class is a thing if --things names it (each of its connected parts is an object).
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
from collections.abc import Sequence
from pathlib import Path

from data_prep.beam import Beam
from data_prep.items import Item
from data_prep.own_coco import find_coco
from data_prep.own_files import Found
from data_prep.own_labelme import find_labelme
from data_prep.own_masks import find_masks
from data_prep.own_panoptic import find_panoptic
from data_prep.own_yolo import find_yolo
from data_prep.writer import (
    MissingInputError,
    Plan,
    chosen_splits,
    converter_parser,
    message_only,
    workers_of,
    write_dataset,
)

FORMATS = {
    "panoptic": find_panoptic,
    "coco": find_coco,
    "masks": find_masks,
    "yolo": find_yolo,
    "labelme": find_labelme,
}


def read_folder(source: Path, kind: str | None, things: Sequence[str]) -> Found:
    """The folder in the format `kind`, or in the first that fits."""
    for name in [kind] if kind else FORMATS:
        found = FORMATS[name](source, things)
        if found:
            if not found.classes.names:
                raise ValueError(f"{source}: no class is named, so nothing can be learned.")
            print(f"{source} is read as format {name!r}, {len(found.classes.names)} classes.")
            return found
    raise MissingInputError(f"{source} holds no data set of the format {kind or list(FORMATS)}.")


def split_items(items: dict[str, list[Item]], val_share: float) -> dict[str, list[Item]]:
    """The items by split; those of no split become train and val."""
    if not 0 <= val_share < 1:
        raise ValueError(f"--val_share {val_share}: expected a share from 0 to less than 1.")
    out = {("val" if split == "valid" else split): rows for split, rows in items.items() if split}
    single = items.get("", [])
    if single:
        order = sorted(single, key=lambda item: hashlib.sha256(item.file_name.encode()).hexdigest())
        count = max(1, round(val_share * len(order))) if val_share and len(order) > 1 else 0
        held = {id(item) for item in order[:count]}
        out["train"] = [item for item in single if id(item) not in held]
        if count:
            out["val"] = [item for item in single if id(item) in held]
    return out


def convert(
    source: Path,
    root: Path,
    name: str,
    splits: Sequence[str] | None = None,
    processes: int | Beam = 1,
    kind: str | None = None,
    things: Sequence[str] = (),
    val_share: float = 0.1,
) -> None:
    """Converts a folder to `<root>/<name>`; see the top of this file."""
    if not source.is_dir():
        raise MissingInputError(f"{source} is no folder.")
    found = read_folder(source, kind, things)
    items = split_items(found.items, val_share)
    plans = []
    for split in chosen_splits(splits, list(items), source, "images"):
        if split not in items:
            raise ValueError(f"{source} has the splits {sorted(items)}, not {split!r}.")
        plans.append(Plan(split, items[split], found.make))
    write_dataset(root, name, found.classes, plans, processes=processes)


def main() -> None:
    parser = converter_parser(__doc__, "custom")
    parser.add_argument("--format", choices=sorted(FORMATS))
    parser.add_argument("--things", nargs="*", default=[], help="classes of things of `masks`")
    parser.add_argument("--val_share", type=float, default=0.1)
    args: argparse.Namespace = parser.parse_args()
    with message_only(__doc__):
        convert(
            args.input,
            args.output,
            args.name,
            args.splits,
            workers_of(args),
            args.format,
            args.things,
            args.val_share,
        )


if __name__ == "__main__":
    # Under its own name, so that other processes and machines find what is defined here.
    importlib.import_module(__spec__.name).main()
