"""The checks of converted data sets for data_prep/doctor.py."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from data_prep.faults import Fault, image_faults, repeated, text_problem
from seem_jax.data import schema
from seem_jax.data.tfrecord import REPAIR, TFRecordSource, fits, index_path, read_index
from seem_jax.image import decode_index_png

CONVERT = "Run the converter again; it writes only what is missing."
AGAIN = "Remove the file and run the converter again; it writes only what is missing."
CORRECT = "Correct the source and convert the data set again."
SHARD = re.compile(r"(.+)-([^-]+)\.tfrecord-(\d{5})-of-(\d{5})")
Job = Callable[[], list[Fault]]


def examine(directory: Path) -> tuple[list[Fault], list[Job]]:
    """The faults of the files of `<name>/<version>/`, and the work of looking into its shards."""
    faults, num_classes = _class_faults(directory / "classes.json")
    lengths, found = _info(directory / "dataset_info.json")
    faults += found
    if not (directory / "features.json").is_file():
        text = "the file does not exist, so TFDS cannot read the data set"
        faults.append(Fault(str(directory / "features.json"), "", "", text, AGAIN))
    for path in sorted(directory.glob("*.tmp")):
        text = "left by a converter that was killed"
        faults.append(Fault(str(path), "", "", text, "Run the converter again, or remove it."))
    splits: dict[str, dict[Path, tuple[int, int]]] = {name: {} for name in lengths}
    for path in sorted(directory.iterdir()):
        match = SHARD.fullmatch(path.name)
        if match:
            splits.setdefault(match[2], {})[path] = int(match[3]), int(match[4])
    jobs: list[Job] = []
    for split, shards in splits.items():
        faults += _shard_faults(directory, split, shards, lengths.get(split))
        jobs += [functools.partial(_record_faults, path, num_classes) for path in shards]
        jobs.append(functools.partial(_repeated_images, tuple(shards)))
    return faults, jobs


def _class_faults(path: Path) -> tuple[list[Fault], int | None]:
    """Faults of classes.json, and the number of classes."""
    try:
        classes = json.loads(path.read_bytes())
        names, ids = list(classes["names"]), list(classes["category_ids"])
        num_things = int(classes["num_things"])
    except FileNotFoundError:
        return [Fault(str(path), "", "", "the file does not exist", CONVERT)], None
    except (KeyError, TypeError, ValueError) as error:
        return [
            Fault(str(path), "", "", f"not as the converter writes it ({error!r})", AGAIN)
        ], None
    faults = []
    if len(names) != len(ids):
        text = f"{len(names)} names, {len(ids)} category_ids"
        faults.append(Fault(str(path), "", "category_ids", text, AGAIN))
    for field, values in (("names", names), ("category_ids", ids)):
        for value in repeated(values):
            faults.append(Fault(str(path), "", field, f"{value!r} occurs more than once", CORRECT))
    if not 0 <= num_things <= len(names):
        text = f"{num_things} things of {len(names)} classes"
        faults.append(Fault(str(path), "", "num_things", text, AGAIN))
    return faults, len(names)


def _info(path: Path) -> tuple[dict[str, list[int]], list[Fault]]:
    """Records of each shard of each split, as dataset_info.json says."""
    try:
        info = json.loads(path.read_bytes())
        return {
            entry["name"]: [int(n) for n in entry["shardLengths"]] for entry in info["splits"]
        }, []
    except FileNotFoundError:
        return {}, [Fault(str(path), "", "", "the file does not exist", CONVERT)]
    except (KeyError, TypeError, ValueError) as error:
        return {}, [Fault(str(path), "", "splits", f"not as TFDS writes it ({error!r})", AGAIN)]


def _shard_faults(
    directory: Path,
    split: str,
    shards: dict[Path, tuple[int, int]],
    lengths: list[int] | None,
) -> Iterable[Fault]:
    """Missing, doubled and miscounted shards, and indices that do not fit."""
    totals = sorted({total for _, total in shards.values()})
    if len(totals) > 1:
        text = f"split {split!r} has shards in several numberings, of {totals}"
        yield Fault(str(directory), "", split, text, "Remove those of the older conversion.")
    total = max([*totals, len(lengths or [])])
    present = {number for number, _ in shards.values()}
    for number in range(total):
        if number not in present:
            text = f"shard {number} of {total} of split {split!r} is missing"
            yield Fault(str(directory), f"shard {number}", split, text, CONVERT)
    contents: dict[bytes, Path] = {}
    for path, (number, _) in shards.items():
        try:
            stored = np.load(index_path(path), allow_pickle=False)
            good = fits(stored, path.stat().st_size)
        except Exception:  # NumPy's header parser raises of every kind
            good = False
        if not good:
            text = "the index is missing, damaged or of another file"
            repair = "Remove it: it is made again from the shard."
            yield Fault(str(index_path(path)), "", "", text, repair)
        try:
            index = read_index(path)
        except ValueError as error:
            text = str(error).removesuffix(f". {REPAIR}")
            yield Fault(str(path), _record_in(text), "", text, AGAIN)
            continue
        if lengths is not None and number < len(lengths) and len(index) != lengths[number]:
            text = f"{len(index)} records, {lengths[number]} in dataset_info.json"
            yield Fault(str(path), "", "shardLengths", text, AGAIN)
        with open(path, "rb") as file:
            key = file.read(1 << 16) + index.tobytes()
        if len(index) and key in contents:
            text = f"a copy of {contents[key].name}"
            yield Fault(str(path), "", "", text, AGAIN)
        contents.setdefault(key, path)


def _record_in(message: str) -> str:
    match = re.search(r"record \d+", message)
    return match[0] if match else ""


def _record_faults(path: Path, num_classes: int | None) -> list[Fault]:
    """Faults of all records of a shard."""
    try:
        source = TFRecordSource([path])
    except ValueError:  # reported with the shards
        return []
    faults = []
    for number in range(len(source)):
        where = str(path), f"record {number}"
        try:
            record = schema.parse(source[number])
        except ValueError as error:
            field = re.search(r"field '(\w+)'", str(error))
            text = str(error).removesuffix(f". {REPAIR}")
            faults.append(Fault(*where, field[1] if field else "", text, AGAIN))
            continue
        where = str(path), f"record {number} ({record.file_name})"
        found = [Fault(*where, name, text, CORRECT) for name, text in schema.problems(record)]
        faults += found
        if not found:
            faults += record_faults(record, num_classes, where)
    return faults


def record_faults(
    record: schema.Record, num_classes: int | None, where: tuple[str, str]
) -> list[Fault]:
    """Faults of a record whose lists fit together."""

    def fault(field: str, text: str) -> Fault:
        return Fault(*where, field, text, CORRECT)

    size = record.height, record.width
    faults = image_faults(record.image, "", size, where)
    if record.segment_map:
        faults += _map_faults(record, fault)
    elif record.segment_id:
        faults.append(fault("segment_map", f"empty, but {len(record.segment_id)} segments listed"))
    for name in ("segment_category", "object_category"):
        for place, category in enumerate(getattr(record, name)):
            if not 0 <= category < (num_classes if num_classes is not None else category + 1):
                text = f"entry {place} is {category}, but there are {num_classes} classes"
                faults.append(fault(name, text))
    for value in repeated(record.segment_id):
        faults.append(fault("segment_id", f"{value} occurs more than once"))
    for name in ("object_rle", "ignore_rle"):
        for place, counts in enumerate(getattr(record, name)):
            covered = schema.run_pixels(counts)
            if covered != record.height * record.width:
                text = f"entry {place} covers {covered} pixels of {record.height * record.width}"
                faults.append(fault(name, text))
            elif not coco_mask.area({"size": list(size), "counts": counts}):
                faults.append(fault(name, f"entry {place} is an empty mask"))
    for name in ("phrase_text", "caption"):
        for place, text in enumerate(getattr(record, name)):
            problem = text_problem(text)
            if problem:
                faults.append(fault(name, f"entry {place} {problem}"))
    return faults


def _map_faults(record: schema.Record, fault: Callable[[str, str], Fault]) -> list[Fault]:
    try:
        pixels = decode_index_png(record.segment_map, name="segment_map")
    except ValueError as error:
        return [fault("segment_map", str(error))]
    faults = []
    if pixels.shape != (record.height, record.width):
        text = f"{pixels.shape} pixels, the image {(record.height, record.width)}"
        faults.append(fault("segment_map", text))
    seen = set(np.unique(pixels).tolist()) - {0}
    listed = set(range(1, len(record.segment_id) + 1))
    covered = {i + 1 for i, number in enumerate(record.segment_object) if number >= 0}
    if seen - listed:
        text = f"the map holds {sorted(seen - listed)[:5]}, the table ends at {len(listed)}"
        faults.append(fault("segment_map", text))
    for number in sorted(listed - seen - covered):
        # In a video an object may have left the picture.
        if not record.sequence:
            faults.append(fault("segment_id", f"segment {number} has no pixel in the map"))
    return faults


def _repeated_images(paths: tuple[Path, ...]) -> list[Fault]:
    """Images that stand in a split more than once."""
    places: dict[tuple[int, str], str] = {}
    faults = []
    for path in paths:
        try:
            source = TFRecordSource([path])
        except ValueError:
            continue
        for number in range(len(source)):
            try:
                record = schema.parse(source[number])
            except ValueError:
                continue
            here, key = f"record {number} of {path.name}", (record.image_id, record.file_name)
            if key in places:
                text = f"image {key} is already {places[key]}"
                faults.append(Fault(str(path), f"record {number}", "image_id", text, CORRECT))
            places.setdefault(key, here)
    return faults
