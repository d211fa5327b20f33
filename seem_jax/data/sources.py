"""Which records a run reads, and in which order: shuffled anew each epoch, mixed by weight."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import grain

from seem_jax.config import DataConfig
from seem_jax.data import catalog
from seem_jax.data.schema import Record


class Records(Protocol):
    """What a source needs of catalog.Split: random access to decoded records."""

    name: str
    split: str
    class_names: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, item: int) -> Record: ...


@dataclasses.dataclass(frozen=True)
class Sample:
    """Where a record stands; it is read by whoever makes an example of it."""

    records: Records
    index: int  # in its split

    def __str__(self) -> str:
        """As "data set:split, record 7", with the shard and the place in it where there are shards."""
        name = f"{self.records.name}:{self.records.split}, record {self.index}"
        if isinstance(self.records, catalog.Split):
            shard, place = self.records.source.locate(self.index)
            name += f" (record {place} of {self.records.source.paths[shard]})"
        return name

    def after(self, number: int) -> Sample:
        """The sample that many records later; the first one follows the last one."""
        return dataclasses.replace(self, index=(self.index + number) % len(self.records))


class Samples:
    """A split as a grain source of `Sample`s."""

    def __init__(self, records: Records):
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, item: int) -> Sample:
        return Sample(self.records, int(item))

    def __repr__(self) -> str:
        return f"Samples({self.records.name}:{self.records.split}, {len(self)} records)"


def open_training(config: DataConfig) -> list[Records]:
    """The splits of config.train. ValueError unless all have records and the same classes."""
    splits = [catalog.open_split(config.root, spec) for spec in config.train]
    for spec, split in zip(config.train, splits, strict=True):
        if not len(split):
            raise ValueError(f"{spec} in {config.root} has no records; convert it again.")
        if split.class_names != splits[0].class_names:
            raise ValueError(
                f"{spec} has other classes than {config.train[0]}; data sets trained together need "
                "the same class list (see classes.json beside the records)."
            )
    return splits


def endless(splits: Sequence[Records], weights: Sequence[float], seed: int) -> grain.MapDataset:
    """All samples for ever: each epoch of each split in a new global order, mixed by weight.

    Sample i depends on (seed, i) alone, so hosts and workers that slice it agree.
    """
    streams = [
        grain.MapDataset.source(Samples(split)).seed((seed + number) % 2**32).shuffle().repeat()
        for number, split in enumerate(splits)
    ]
    if len(streams) == 1:
        return streams[0]
    return grain.MapDataset.mix(streams, weights=[float(weight) for weight in weights])
