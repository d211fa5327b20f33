"""Opens converted data sets: `<root>/<name>/1.0.0/` in TFDS layout, with `classes.json` beside."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from seem_jax.data import schema
from seem_jax.data.tfrecord import TFRecordSource, shard_paths

VERSION = "1.0.0"

MADE_BY = {  # start of a data set's name -> the command that makes it
    "shapes": "python -m data_prep.shapes --output data/shapes",
    "coco_lvis": "python -m data_prep.lvis --input data/coco --output {root}",
    "coco": "python -m data_prep.coco --input data/coco --output {root}",
    "refcoco": "python -m data_prep.refcoco --input data/coco --referring data/refer/refcocog"
    " --output {root}",
    "voc": "python -m data_prep.voc --input data/VOCdevkit/VOC2012 --output {root}",
    "sbd": "python -m data_prep.sbd --input data/benchmark_RELEASE/dataset --output {root}",
    "davis": "python -m data_prep.davis --input data/DAVIS --output {root}",
    "custom": "python -m data_prep.custom --input data/mine --output {root}",
}


@dataclasses.dataclass(frozen=True)
class Split:
    """One split of a converted data set. `split[i]` is the decoded Record i."""

    name: str  # of the data set
    split: str
    source: TFRecordSource  # random access to the stored bytes
    class_names: list[str]  # contiguous classes, things first
    num_things: int  # classes below this number are things
    category_ids: list[int]  # ids of the classes in the source data set

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, item: int) -> schema.Record:
        try:
            return schema.decode(self.source[item])
        except ValueError as error:
            raise ValueError(f"{self.name}:{self.split}, record {item}: {error}") from error


def classes_path(root: str | Path, spec: str) -> Path:
    """Where the class names of the data set of a split lie: names, num_things, category_ids."""
    return Path(root) / spec.partition(":")[0] / VERSION / "classes.json"


def open_split(root: str | Path, spec: str) -> Split:
    """The split named `spec`, as "shapes_panoptic:train", of the data sets below `root`.

    Raises ValueError when the data set is missing (naming the command that makes it), when shards
    are missing, doubled or cut, and when their record counts differ from dataset_info.json.
    """
    name, colon, split = spec.partition(":")
    if not colon or not name or not split:
        raise ValueError(f"data set {spec!r}: expected 'name:split', as 'shapes_panoptic:train'.")
    directory = Path(root) / name / VERSION
    info_path, names_path = directory / "dataset_info.json", classes_path(root, spec)
    for path in (info_path, names_path):
        if not path.is_file():
            raise ValueError(
                f"data set {name!r} is not (completely) in {root}: there is no {path}. "
                f"{_command(name, root)}"
            )
    lengths = _shard_lengths(info_path)
    if split not in lengths:
        raise ValueError(
            f"data set {name!r} in {root} has the splits {sorted(lengths)}, not {split!r}."
        )
    source = TFRecordSource(shard_paths(directory, name, split))
    counts = [len(index) for index in source.index]
    for path, count, listed in zip(source.paths, counts, lengths[split]):
        if count != listed:
            raise ValueError(
                f"record {min(count, listed)} of {path}: {info_path} says that it holds {listed} "
                f"records; it holds {count}. {_command(name, root)}"
            )
    if len(counts) != len(lengths[split]):
        raise ValueError(
            f"{info_path} lists {len(lengths[split])} shards of {split!r}; there are {len(counts)}. "
            f"{_command(name, root)}"
        )
    classes = _read_json(names_path)
    if len(classes["names"]) != len(classes["category_ids"]):
        raise ValueError(
            f"{names_path} has {len(classes['names'])} names and {len(classes['category_ids'])} "
            f"category_ids; expected as many. {_command(name, root)}"
        )
    return Split(
        name=name,
        split=split,
        source=source,
        class_names=[str(name) for name in classes["names"]],
        num_things=int(classes["num_things"]),
        category_ids=[int(number) for number in classes["category_ids"]],
    )


def _command(name: str, root: str | Path) -> str:
    for start, command in MADE_BY.items():
        if name.startswith(start):
            return f"Make it with: {command.format(root=root)}"
    return "Convert it with one of the programs in data_prep/."


def _shard_lengths(path: Path) -> dict[str, list[int]]:
    info = _read_json(path)
    try:
        return {
            entry["name"]: [int(count) for count in entry["shardLengths"]]
            for entry in info["splits"]
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: its field 'splits' is not as TFDS writes it ({error!r})."
        ) from error


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}). Convert the data set again.") from error
