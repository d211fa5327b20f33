"""Converts SBD (Hariharan et al. 2011, "Semantic Contours"), for interactive evaluation.

    python -m data_prep.sbd --input data/benchmark_RELEASE/dataset --output data/sbd/records

Reads below --input:
    <split>.txt          names of images
    img/<name>.jpg
    inst/<name>.mat      GTinst: Segmentation (0 background, else the object) and Categories
    cls/<name>.mat       not read; inst names the classes too
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.io

from data_prep.beam import Beam
from data_prep.items import Item, Map, Segment, listed_items, make_record
from data_prep.voc import CLASSES
from data_prep.writer import (
    Plan,
    chosen_splits,
    converter_parser,
    message_only,
    workers_of,
    write_dataset,
)

SPLITS = ("train", "val", "train_noval")


def read_mat(path: Path) -> tuple[np.ndarray, list[int]]:
    """Object of each pixel, int64 [H, W], and the class (1 to 20) of each object."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist, but the list of its split names it.")
    try:
        truth = scipy.io.loadmat(path, variable_names=["GTinst"])["GTinst"][0, 0]
        labels = np.asarray(truth["Segmentation"]).astype(np.int64)
        classes = np.asarray(truth["Categories"]).astype(np.int64).ravel().tolist()
    except Exception as error:  # the reader raises of every kind on a damaged file
        raise ValueError(f"{path} is no SBD file of instances ({error!r}).") from error
    return labels, classes


def read_sbd_map(item: Item, masks: Sequence[bytes]) -> Map:
    """The objects of an image; numbers that no pixel has are left out."""
    labels, classes = read_mat(item.map_path)
    if labels.shape != (item.height, item.width):
        raise ValueError(
            f"{item.map_path} is {labels.shape} pixels, its image {(item.height, item.width)}."
        )
    pixels = np.zeros(labels.shape, np.int64)
    segments = []
    for number in np.unique(labels[labels > 0]).tolist():
        if number > len(classes) or not 1 <= classes[number - 1] <= len(CLASSES.names):
            raise ValueError(
                f"{item.map_path}: object {number} has no class from 1 to {len(CLASSES.names)}; "
                f"'Categories' is {classes}."
            )
        segments.append(Segment(number, classes[number - 1] - 1))
        pixels[labels == number] = len(segments)
    return Map(pixels, tuple(segments))


def plan_split(source: Path, split: str) -> Plan:
    """The images of one split, in the order of its list."""
    items = listed_items(source / f"{split}.txt", source / "img", source / "inst", ".mat")
    return Plan(split, items, functools.partial(make_record, read_map=read_sbd_map))


def convert(
    source: Path, root: Path, name: str, splits: Sequence[str], processes: int | Beam
) -> None:
    """Converts some splits below `source` to `<root>/<name>`."""
    plans = [plan_split(source, split) for split in splits]
    write_dataset(root, name, CLASSES, plans, processes=processes)


def main() -> None:
    args = converter_parser(__doc__, "sbd").parse_args()
    with message_only(__doc__):
        source = args.input
        if (source / "dataset").is_dir():  # --input is the folder benchmark_RELEASE
            source = source / "dataset"
        found = [split for split in SPLITS if (source / f"{split}.txt").is_file()]
        splits = chosen_splits(args.splits, found, source, "train.txt or val.txt")
        convert(source, args.output, args.name, splits, workers_of(args))


if __name__ == "__main__":
    # Under its own name, so that other processes and machines find what is defined here.
    importlib.import_module(__spec__.name).main()
