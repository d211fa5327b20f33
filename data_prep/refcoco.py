"""Converts referring expressions in REFER layout (RefCOCO, RefCOCO+, RefCOCOg) into records.

    python -m data_prep.refcoco --input data/coco --referring data/refer/refcocog --owner umd \\
        --output data/coco/records --splits val test

Reads `refs(<owner>).p` and `instances.json` below --referring, or the official merged file that
--referring names, as annotations/refcocog_umd_val.json, and the images below --input:
`*2017/<image id>.jpg`, or `*2014/COCO_*2014_<image id>.jpg`. Without --referring, the folder of
--dataset is looked for in or beside --input, and then its merged file in annotations/. One record an image: its referred objects and all
their sentences. Owners: refcoco and refcoco+ unc; refcocog umd (images of its splits are disjoint)
or google.
"""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Sequence
from pathlib import Path

from data_prep.annotations import Object, load_json, read_classes, read_objects
from data_prep.beam import Beam
from data_prep.items import Item, Ref, make_record
from data_prep.sentences import Sentences, classes_beside, read_merged, read_ref, read_sizes
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

MERGED_NAMES = {  # of the release, in annotations/
    "refcoco": "refcoco_unc.json",
    "refcoco+": "refcocop_unc.json",
    "refcocog": "refcocog_umd_val.json",
}
OWNERS = {"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd"}  # the usual one of each


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
    return [read_ref(row, f"{path}, record {number}") for number, row in enumerate(rows)]


def read_sentences(referring: Path, owner: str, classes: Classes) -> Sentences:
    """The sentences of a REFER folder, or of a merged JSON file, with their objects."""
    if referring.is_file():
        return read_merged(referring, classes)
    path = referring / "instances.json"
    table = load_json(path, ("images", "annotations", "categories"))
    objects = read_objects(table["annotations"], classes, path)
    known = {entry.id: entry for entries in objects.values() for entry in entries}
    return Sentences(read_refs(referring, owner), known, read_sizes(table, path), path)


def _classes(referring: Path) -> Classes:
    if referring.is_file():
        return classes_beside(referring)
    path = referring / "instances.json"
    return read_classes(load_json(path, ("categories",))["categories"], path)


def referred_objects(refs: Sequence[Ref], known: dict[int, Object], path: Path) -> list[Object]:
    """The objects of some refs, each once, in the order of the refs."""
    for ref in refs:
        if ref.ann_id not in known:
            raise ValueError(f"{path} lacks the annotation {ref.ann_id} of ref_id {ref.ref_id}.")
    return [known[ann_id] for ann_id in dict.fromkeys(ref.ann_id for ref in refs)]


def convert(
    images: Path,
    referring: Path,
    owner: str,
    root: Path,
    name: str,
    splits: Sequence[str],
    processes: int | Beam,
) -> None:
    """Converts some splits of a REFER folder or a merged JSON file, which has no owner.

    Images are looked for in `<images>/*2017`, then in `<images>/*2014`.
    """
    classes = _classes(referring)
    found = read_sentences(referring, owner, classes)
    refs, sizes, path = found.refs, found.sizes, found.path
    folders = sorted(
        folder for folder in images.glob("*20*") if not folder.name.startswith("panoptic")
    )
    there = list(dict.fromkeys(ref.split for ref in refs))
    plans = []
    for split in chosen_splits(splits, there, referring, "sentences"):
        by_image: dict[int, list[Ref]] = {}
        for ref in refs:
            if ref.split == split:
                by_image.setdefault(ref.image_id, []).append(ref)
        if not by_image:
            raise ValueError(
                f"the sentences of {referring} are of the splits {sorted(there)}, not {split!r}."
            )
        items = []
        for image_id, group in by_image.items():
            if image_id not in sizes:
                raise ValueError(f"{path} lacks the image {image_id} of ref_id {group[0].ref_id}.")
            image_path = _find_image(folders, image_id, images)
            height, width = sizes[image_id]
            items.append(
                Item(
                    image_id=image_id,
                    file_name=image_path.name,
                    image_path=image_path,
                    height=height,
                    width=width,
                    objects=tuple(referred_objects(group, found.objects, path)),
                    refs=tuple(group),
                )
            )
        plans.append(Plan(split, items, make_record))
    write_dataset(root, name, classes, plans, processes=processes)


def find_refer(images: Path, dataset: str) -> Path | None:
    """The folder of a REFER data set in or beside the folder of the images."""
    for parent in (images, images / "refer", images.parent, images.parent / "refer"):
        if any((parent / dataset).glob("refs(*).p")):
            return parent / dataset
    return None


def _find_image(folders: Sequence[Path], image_id: int, images: Path) -> Path:
    for folder in folders:
        for name in (f"{image_id:012d}.jpg", f"COCO_{folder.name}_{image_id:012d}.jpg"):
            if (folder / name).is_file():
                return folder / name
    names = [folder.name for folder in folders]
    raise MissingInputError(f"no image {image_id:012d}.jpg in the folders {names} of {images}.")


def main() -> None:
    parser = converter_parser(__doc__, name="")
    parser.add_argument("--dataset", choices=sorted(OWNERS), default="refcocog")
    parser.add_argument(
        "--referring", type=Path, help="folder with refs(*).p and instances.json, or merged JSON"
    )
    parser.add_argument("--owner", help="umd, google or unc: the name in refs(*).p")
    args = parser.parse_args()
    with message_only(__doc__):
        folder = args.referring or find_refer(args.input, args.dataset)
        merged = args.input / "annotations" / MERGED_NAMES[args.dataset]
        if folder is None and merged.is_file():
            folder = merged
        if folder is None:
            raise MissingInputError(
                f"no {args.dataset}/refs(*).p in or beside {args.input}, and no {merged}."
            )
        owner = args.owner or OWNERS[args.dataset]
        name = args.name or args.dataset.replace("+", "plus") + "_google" * (owner == "google")
        convert(args.input, folder, owner, args.output, name, args.splits, workers_of(args))


if __name__ == "__main__":
    # Under its own name, so that other processes and machines find what is defined here.
    importlib.import_module(__spec__.name).main()
