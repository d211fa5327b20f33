"""Converts referring expressions in REFER layout (RefCOCO, RefCOCO+, RefCOCOg) into records.

    python -m data_prep.refcoco --input data/coco --referring data/refer/refcocog --owner umd \\
        --output data/coco/records --splits val test

Reads `refs(<owner>).p` and `instances.json` below --referring and the images below --input (in any
of its folders `*2017`, by image id). One record an image: its referred objects and sentences.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pickle
from collections.abc import Sequence
from pathlib import Path

from data_prep.annotations import (
    Object,
    field,
    load_json,
    read_classes,
    read_image,
    read_objects,
    rle_counts,
)
from data_prep.writer import Plan, message_only, write_dataset
from seem_jax.data.schema import Record


@dataclasses.dataclass(frozen=True)
class Ref:
    """The sentences about one object, in file order."""

    ref_id: int
    ann_id: int
    image_id: int
    split: str
    sentences: tuple[str, ...]  # the field `raw`, as officially used


class PlainUnpickler(pickle.Unpickler):
    """Reads numbers, strings, lists and dicts; a pickle that names any function is refused."""

    def find_class(self, module: str, name: str):
        raise ValueError(
            f"the pickle asks for {module}.{name}; REFER files hold plain lists and dicts only, so "
            "this file is not one of them and was not read."
        )

    def persistent_load(self, pid: object):
        raise ValueError(f"the pickle asks for the outside object {pid!r}, and was not read.")


def read_refs(directory: Path, owner: str) -> list[Ref]:
    """The records of `refs(<owner>).p`, in file order. Runs no code from the file."""
    path = directory / f"refs({owner}).p"
    if not path.is_file():
        there = sorted(file.name for file in directory.glob("refs(*).p"))
        raise ValueError(f"{path} does not exist; --owner fits one of {there} in that folder.")
    with open(path, "rb") as file:
        try:
            # The official files were written by Python 2: its strings are bytes here.
            rows = PlainUnpickler(file, encoding="utf-8", errors="replace").load()
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        except (pickle.UnpicklingError, EOFError, IndexError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no whole pickle ({error!r}).") from error
        except (AttributeError, MemoryError, OverflowError, RecursionError) as error:
            raise ValueError(f"{path} is no REFER file ({error!r}).") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path}: expected a list of records, found {type(rows).__name__}.")
    return [_ref(row, f"{path}, record {number}") for number, row in enumerate(rows)]


def _ref(row: object, where: str) -> Ref:
    sentences = field(row, "sentences", list, where)
    return Ref(
        ref_id=field(row, "ref_id", int, where),
        ann_id=field(row, "ann_id", int, where),
        image_id=field(row, "image_id", int, where),
        split=field(row, "split", str, where),
        sentences=tuple(
            field(sentence, "raw", str, f"{where}, sentence {number}")
            for number, sentence in enumerate(sentences)
        ),
    )


def join(refs: Sequence[Ref], objects: Sequence[Object]) -> tuple[list[str], list[int]]:
    """Sentences of an image in the order of the refs, and the number of the object each means."""
    place = {item.id: number for number, item in enumerate(objects)}
    texts = [(text, place[ref.ann_id]) for ref in refs for text in ref.sentences]
    return [text for text, _ in texts], [number for _, number in texts]


def referred_objects(refs: Sequence[Ref], known: dict[int, Object], path: Path) -> list[Object]:
    """The objects of some refs, each once, in the order of the refs."""
    for ref in refs:
        if ref.ann_id not in known:
            raise ValueError(f"{path} lacks the annotation {ref.ann_id} of ref_id {ref.ref_id}.")
    return [known[ann_id] for ann_id in dict.fromkeys(ref.ann_id for ref in refs)]


@dataclasses.dataclass(frozen=True)
class Item:
    """What one record is made of."""

    image_id: int
    image_path: Path = dataclasses.field(repr=False)  # see writer.Plan
    height: int
    width: int
    objects: tuple[Object, ...]
    refs: tuple[Ref, ...]


def make_record(item: Item) -> Record:
    """The record of one image with its referred objects and sentences."""
    texts, numbers = join(item.refs, item.objects)
    return Record(
        image_id=item.image_id,
        file_name=item.image_path.name,
        image=read_image(item.image_path, item.height, item.width),
        height=item.height,
        width=item.width,
        object_rle=[rle_counts(entry, item.height, item.width) for entry in item.objects],
        object_category=[entry.category for entry in item.objects],
        phrase_text=texts,
        phrase_object=numbers,
    )


def convert(
    images: Path,
    referring: Path,
    owner: str,
    root: Path,
    name: str,
    splits: Sequence[str],
    processes: int,
) -> None:
    """Converts some splits of a REFER folder; images are looked for in `<images>/*2017`."""
    refs = read_refs(referring, owner)
    path = referring / "instances.json"
    table = load_json(path, ("images", "annotations", "categories"))
    classes = read_classes(table["categories"], path)
    objects = read_objects(table["annotations"], classes, path)
    known = {item.id: item for items in objects.values() for item in items}
    sizes = {
        field(row, "id", int, f"{path}, image {number}"): (
            field(row, "height", int, f"{path}, image {number}"),
            field(row, "width", int, f"{path}, image {number}"),
        )
        for number, row in enumerate(table["images"])
    }
    folders = sorted(
        folder for folder in images.glob("*2017") if not folder.name.startswith("panoptic")
    )
    plans = []
    for split in splits:
        by_image: dict[int, list[Ref]] = {}
        for ref in refs:
            if ref.split == split:
                by_image.setdefault(ref.image_id, []).append(ref)
        if not by_image:
            there = sorted({ref.split for ref in refs})
            raise ValueError(
                f"refs({owner}).p in {referring} has the splits {there}, not {split!r}."
            )
        items = []
        for image_id, group in by_image.items():
            if image_id not in sizes:
                raise ValueError(f"{path} lacks the image {image_id} of ref_id {group[0].ref_id}.")
            items.append(
                Item(
                    image_id,
                    _find_image(folders, image_id, images),
                    *sizes[image_id],
                    tuple(referred_objects(group, known, path)),
                    tuple(group),
                )
            )
        plans.append(Plan(split, items, make_record))
    write_dataset(root, name, classes, plans, processes=processes)


def _find_image(folders: Sequence[Path], image_id: int, images: Path) -> Path:
    for folder in folders:
        path = folder / f"{image_id:012d}.jpg"
        if path.is_file():
            return path
    names = [folder.name for folder in folders]
    raise ValueError(f"no image {image_id:012d}.jpg in the folders {names} of {images}.")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", type=Path, required=True, help="COCO folder with the images")
    parser.add_argument("--referring", type=Path, required=True, help="folder with refs(*).p")
    parser.add_argument("--owner", default="umd", help="umd, google or unc: the name in refs(*).p")
    parser.add_argument(
        "--output", type=Path, required=True, help="folder of the converted data sets"
    )
    parser.add_argument("--name", default="refcocog", help="name of the converted data set")
    parser.add_argument("--splits", nargs="+", default=["val"])
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    args = parser.parse_args()
    with message_only():
        convert(
            args.input,
            args.referring,
            args.owner,
            args.output,
            args.name,
            args.splits,
            args.processes,
        )


if __name__ == "__main__":
    main()
