"""Writes a converted data set in TFDS layout: shards in parallel, restartable, metadata last."""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tqdm

from data_prep.beam import Beam
from seem_jax.data import schema
from seem_jax.data.catalog import VERSION
from seem_jax.data.tfrecord import read_index, replacing, shard_paths, write_shard

RECORDS_PER_SHARD = 2000
PARENT_CHECK_SECONDS = 1.0


class MissingInputError(ValueError):
    """A file that the layout of --input needs is not there."""


@dataclasses.dataclass(frozen=True)
class Classes:
    """The contiguous classes of a data set, things first."""

    names: tuple[str, ...]
    num_things: int
    category_ids: tuple[int, ...]  # ids in the source


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one split will hold: `make(items[i])` is its record i. Both must be picklable.

    An item's repr says what it is made of, but for folders: a restart compares it, and the data may
    have moved in between.
    """

    split: str
    items: Sequence[Any]
    make: Callable[[Any], schema.Record]


@dataclasses.dataclass(frozen=True)
class ShardJob:
    """One shard to write; the unit of work of a process."""

    path: Path
    items: Sequence[Any]
    make: Callable[[Any], schema.Record]


def write_dataset(
    root: Path, name: str, classes: Classes, plans: Sequence[Plan], *, processes: int | Beam
) -> None:
    """Writes `<root>/<name>/1.0.0/`. Finished shards of an earlier run on the same input are kept.

    The description files come last, so a data set that was not finished cannot be opened. Splits
    that earlier runs finished stay. The work is done by so many processes, or a Beam pipeline. Raises
    ValueError when what is there came from other input.
    """
    directory = root / name / VERSION
    directory.mkdir(parents=True, exist_ok=True)
    for plan in plans:
        if not plan.items:
            raise ValueError(
                f"{name}:{plan.split} would hold no records: nothing in the input fits."
            )
    state = _begin(directory, classes, plans)
    jobs = [job for plan in plans for job in _missing_shards(directory, name, plan)]
    done = sum(len(plan.items) for plan in plans) - sum(len(job.items) for job in jobs)
    if isinstance(processes, Beam):
        counts = processes.run(_write, jobs, directory)
    else:
        counts = run(_write, jobs, processes)
    with tqdm.tqdm(total=done + sum(len(job.items) for job in jobs), desc=name, unit="rec") as bar:
        bar.update(done)
        for count in counts:
            bar.update(count)
    _describe(
        directory, name, [split for split in sorted(state) if _finished(directory, name, split)]
    )
    text = {
        "names": list(classes.names),
        "num_things": classes.num_things,
        "category_ids": list(classes.category_ids),
    }
    write_json(directory / "classes.json", text)


def run(work: Callable[[Any], Any], jobs: Sequence[Any], processes: int) -> Iterator[Any]:
    """The results of `work(job)` as they come, from `processes` processes; in this one for 1.

    A process that dies raises, instead of waiting for ever.
    """
    if processes < 1:
        raise ValueError(f"processes = {processes}: expected 1 or more.")
    if processes == 1 or len(jobs) <= 1:
        yield from map(work, jobs)
        return
    # "spawn", since forking a process that runs threads (JAX in the tests) may hang it.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
        processes, mp_context=context, initializer=_end_with, initargs=(os.getpid(),)
    ) as pool:
        futures = [pool.submit(work, job) for job in jobs]
        try:
            for future in concurrent.futures.as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _end_with(parent: int) -> None:
    """Lets a process of the pool end when the program that started it, `parent`, is killed."""

    def follow() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_CHECK_SECONDS)
        os._exit(1)

    threading.Thread(target=follow, daemon=True, name="follows its parent").start()


def converter_parser(description: str, name: str) -> argparse.ArgumentParser:
    """The options that all converters share. `name` is the default name of the converted data set."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", type=Path, required=True, help="folder in the layout above")
    parser.add_argument(
        "--output", type=Path, required=True, help="folder of the converted data sets"
    )
    parser.add_argument("--name", default=name, help="name of the converted data set")
    parser.add_argument(
        "--splits", nargs="+", action="extend", type=str, help="default: all that are in --input"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--runner", help="of Apache Beam, as DirectRunner; see data_prep/beam.py")
    parser.add_argument("--beam_options", default="", help="of the runner, in one string")
    return parser


def workers_of(args: argparse.Namespace) -> int | Beam:
    """Who does the work, as the options say: so many processes, or a Beam pipeline."""
    return Beam(args.runner, args.beam_options) if args.runner else args.processes


def chosen_splits(
    asked: Sequence[str] | None, found: Sequence[str], where: object, expected: str
) -> list[str]:
    """The splits of --splits (separated by spaces or commas), or those that were found.

    MissingInputError where there are none, naming the file `expected` in `where`.
    """
    splits = [split for text in asked or found for split in text.split(",") if split]
    if not splits:
        raise MissingInputError(f"{where} holds no split to convert; expected {expected} there.")
    return list(dict.fromkeys(splits))


@contextlib.contextmanager
def message_only(layout: str = "") -> Iterator[None]:
    """Ends a program with the message of a ValueError or OSError, without its traceback.

    `layout` is shown besides where a file of the input is missing.
    """
    try:
        yield
    except MissingInputError as error:
        raise SystemExit(f"error: {error}\n\n{layout}".rstrip()) from error
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


def write_json(path: Path, value: Any) -> None:
    """Writes JSON so that the file is either whole or not there."""
    with replacing(path) as aside:
        aside.write_text(json.dumps(value))


def _begin(directory: Path, classes: Classes, plans: Sequence[Plan]) -> dict[str, str]:
    """Records from which input each split is made; refuses to mix two inputs."""
    path = directory / "conversion.json"
    state = json.loads(path.read_text()) if path.is_file() else {}
    for plan in plans:
        digest = hashlib.sha256(repr(classes).encode())
        for item in plan.items:
            digest.update(repr(item).encode())
        if state.setdefault(plan.split, digest.hexdigest()) != digest.hexdigest():
            raise ValueError(
                f"{directory} holds the split {plan.split!r} made from other annotations or options. "
                "Remove that folder, or choose another --output or --name."
            )
    for leftover in directory.glob("*.tmp"):
        leftover.unlink()
    write_json(path, state)
    return state


def _missing_shards(directory: Path, name: str, plan: Plan) -> list[ShardJob]:
    total = -(-len(plan.items) // RECORDS_PER_SHARD)
    jobs = []
    for number in range(total):
        items = _slice(plan.items, number, total)
        path = directory / f"{name}-{plan.split}.tfrecord-{number:05d}-of-{total:05d}"
        if not _whole(path, len(items)):
            jobs.append(ShardJob(path, items, plan.make))
    return jobs


def _whole(path: Path, count: int) -> bool:
    try:
        return len(read_index(path)) == count
    except ValueError:  # missing or cut off: it is written (again)
        return False


def _finished(directory: Path, name: str, split: str) -> bool:
    try:
        return bool(shard_paths(directory, name, split))
    except ValueError:  # another split, whose own run was interrupted; that run continues it
        return False


def _slice(items: Sequence[Any], number: int, total: int) -> Sequence[Any]:
    """Part `number` of `total` nearly equal parts, in order."""
    return items[len(items) * number // total : len(items) * (number + 1) // total]


def _write(job: ShardJob) -> int:
    return write_shard(job.path, (schema.encode(job.make(item)) for item in job.items))


def _describe(directory: Path, name: str, splits: Sequence[str]) -> None:
    """features.json and dataset_info.json, for TFDS and for `catalog.open_split`."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import dataset_info, naming
    from tensorflow_datasets.core import splits as tfds_splits

    identity = dataset_info.DatasetIdentity(
        name, tfds.core.Version(VERSION), data_dir=str(directory), module_name=""
    )
    info = dataset_info.DatasetInfo(builder=identity, features=schema.features())
    info.set_file_format("tfrecord")
    infos = []
    for split in splits:
        paths = shard_paths(directory, name, split)
        infos.append(
            tfds_splits.SplitInfo(
                name=split,
                shard_lengths=[len(read_index(path)) for path in paths],
                num_bytes=sum(path.stat().st_size for path in paths),
                filename_template=naming.ShardedFileTemplate(
                    data_dir=directory, dataset_name=name, split=split, filetype_suffix="tfrecord"
                ),
            )
        )
    info.set_splits(tfds_splits.SplitDict(infos))
    info.write_to_directory(str(directory))
