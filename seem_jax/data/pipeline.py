"""Records -> batches for training: endless, random, resumable.

    split -> shuffle, repeat, mix -> place, choose, draw -> batch -> share of this host -> prefetch

Example i of the stream depends on (seed, i) alone, also where the record of an example cannot be read
and the configuration allows to take the one after it. Host p of n reads rows p/n to (p+1)/n of every
global batch, so one host, many hosts, threads and worker processes all give the same batches, and a
run can go on from any step with another number of hosts or workers.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import grain
import numpy as np
from absl import flags, logging

from seem_jax.config import DataConfig
from seem_jax.data import collate, sources
from seem_jax.data.collate import Tokenizer
from seem_jax.data.draft import DROPPED, Dropped, num_texts
from seem_jax.data.in_flight import InFlight, warn_of_stalls
from seem_jax.data.sources import Sample
from seem_jax.types import Batch

PARENT_CHECK_SECONDS = 1.0


class TrainBatches(grain.DatasetIterator):
    """Iterates over this host's training batches. Its state is the number of the next step.

    `dropped` counts what did not fit the static shapes (draft.DROPPED), and how often another
    record was read in place of a bad one, in the batches delivered by this object so far.
    `bad_records` says what is wrong with each of those. The first time that one is met it is
    logged; when they are more than config.max_bad_records, ValueError. A record that takes longer than
    config.stall_seconds to read is logged; a worker process that ends is a RuntimeError that names the
    worker and what it was reading.
    """

    def __init__(
        self, batches: grain.MapDataset, config: DataConfig, step: int, in_flight: InFlight
    ):
        super().__init__()
        self.in_flight = in_flight
        self.dropped = Dropped(dict.fromkeys((*DROPPED, "bad_records"), 0))
        self.bad_records: dict[str, str] = {}
        self._batches = batches
        self._config = config
        self._step = step
        self._running: grain.DatasetIterator | None = None
        self._stop: Callable[[], None] = lambda: None

    def __next__(self) -> Batch:
        self._assert_not_closed()
        self.start_prefetch()
        try:
            batch, dropped, bad = next(self._running)
        except RuntimeError as error:
            text = _dead_worker(self.in_flight)
            if not text:
                raise
            raise RuntimeError(text) from error
        self.dropped.update(dropped)
        for place, error in bad.items():
            if place not in self.bad_records:
                logging.warning("%s is bad, the next one is taken: %s", place, error)
        self.bad_records |= bad
        if len(self.bad_records) > self._config.max_bad_records:
            raise ValueError(_bad_records(self.bad_records, self._config.max_bad_records))
        self._step += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        return {"step": self._step}

    def set_state(self, state: dict[str, Any]) -> None:
        if set(state) != {"step"}:
            raise ValueError(
                f"the state of the data is {state!r}, expected {{'step': number}}; it was saved by "
                "another version. Start from its step with train_batches(..., step=number)."
            )
        self._stop()
        self._running = None
        self._step = int(state["step"])

    def start_prefetch(self) -> None:
        """Begins to read ahead; the first batch would do so too."""
        if self._running is None:
            reader = _reader(self._batches[self._step :], self._config, self.in_flight)
            self._running = iter(reader)
            self._running.start_prefetch()
            watch = _watch(self.in_flight, self._config.stall_seconds)
            # Also at the end of the program: workers that end after it began print tracebacks.
            self._stop = weakref.finalize(self, _close, self._running, watch, self.in_flight)

    def close(self) -> None:
        self._stop()
        super().close()


def train_batches(
    config: DataConfig,
    tokenizer: Tokenizer,
    *,
    templates: Sequence[str],
    process_index: int = 0,
    process_count: int = 1,
    seed: int | None = None,
    step: int = 0,
    splits: Sequence[sources.Records] | None = None,
) -> TrainBatches:
    """Batches of batch_size / process_count examples from `step` on, without end.

    Class names are said in a random one of the `templates`. The splits of config.train are opened
    unless they are given. Raises ValueError for a missing or
    damaged data set, and for sizes of the configuration that do not fit together.
    """
    if config.batch_size % process_count:
        raise ValueError(
            f"config.data.batch_size = {config.batch_size}: expected a multiple of the number of "
            f"processes, {process_count}."
        )
    _check_planes(config)
    seed = config.seed if seed is None else seed
    splits = sources.open_training(config) if splits is None else splits
    in_flight = InFlight()
    names = tuple(splits[0].class_names)
    make = _MakeTrainingExample(config, tokenizer, names, tuple(templates), in_flight)
    examples = sources.endless(splits, config.weights, seed).random_map(make, seed=seed % 2**32)
    batches = examples.batch(
        config.batch_size // process_count, batch_fn=_stack, drop_remainder=True
    )
    return TrainBatches(batches[process_index::process_count], config, step, in_flight)


@dataclasses.dataclass(frozen=True)
class _MakeTrainingExample(grain.transforms.RandomMap):
    """The example of a record, or of the first good one after it, with what was wrong before."""

    config: DataConfig
    tokenizer: Tokenizer
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    in_flight: InFlight

    def random_map(
        self, element: Sample, rng: np.random.Generator
    ) -> tuple[Batch, Dropped, Mapping[str, str]]:
        start, bad = rng.bit_generator.state, {}
        for number in range(self.config.max_bad_records + 1):
            sample = element.after(number)
            rng.bit_generator.state = start
            try:
                with self.in_flight.reading(str(sample)):
                    return *self._example(sample, rng), bad
            except ValueError as error:
                bad[str(sample)] = str(error)
        raise ValueError(_bad_records(bad, self.config.max_bad_records))

    def _example(self, sample: Sample, rng: np.random.Generator) -> tuple[Batch, Dropped]:
        return collate.training_example(
            sample.records[sample.index],
            sample.index,
            self.class_names,
            self.templates,
            self.config,
            self.tokenizer,
            rng,
        )


def _bad_records(bad: Mapping[str, str], allowed: int) -> str:
    """The message for more bad records than the configuration allows."""
    lines = "\n  ".join(f"{place}: {error}" for place, error in bad.items())
    return (
        f"{len(bad)} bad records, config.data.max_bad_records = {allowed} allowed:\n  {lines}\n"
        "Repair or convert them again, or raise that number to train without them."
    )


def _stack(
    examples: Sequence[tuple[Batch, Dropped, Mapping[str, str]]],
) -> tuple[Batch, Dropped, Mapping[str, str]]:
    total: Dropped = collections.Counter()
    bad: dict[str, str] = {}
    for _, dropped, own in examples:
        total.update(dropped)
        total["bad_records"] += len(own)
        bad |= own
    return collate.stack([example for example, _, _ in examples]), total, bad


def _check_planes(config: DataConfig) -> None:
    needed = 1 + -(-num_texts(config) // 8)
    if config.num_planes < needed:
        raise ValueError(
            f"config.data.num_planes = {config.num_planes}: expected at least {needed}: one for "
            f"segments and one for every 8 of max_texts = {num_texts(config)}."
        )


def _dead_worker(in_flight: InFlight) -> str:
    """What to say of worker processes that have ended; "" while all run."""
    parts = [
        f"{name} ended while it was reading {' and '.join(records) or 'nothing'}"
        for name, records in in_flight.of_dead().items()
    ]
    if not parts:
        return ""
    return (
        f"{'; '.join(parts)}. It was killed, perhaps for want of memory: lower config.data.prefetch or "
        "num_workers, and look at that record with data_prep.doctor."
    )


def _watch(in_flight: InFlight, seconds: float) -> threading.Event:
    """Starts a thread that warns of stalls until the event is set."""
    stop = threading.Event()
    if seconds > 0:
        threading.Thread(
            target=warn_of_stalls, args=(in_flight, seconds, stop), daemon=True, name="stalls"
        ).start()
    return stop


def _close(running: grain.DatasetIterator, watch: threading.Event, in_flight: InFlight) -> None:
    watch.set()
    running.close()
    in_flight.forget()


def _reader(
    batches: grain.MapDataset, config: DataConfig, in_flight: InFlight
) -> grain.IterDataset:
    """Reads ahead in threads, or in worker processes where the configuration asks for them."""
    cv2.setNumThreads(0)  # threads inside threads only wait for each other
    options = grain.ReadOptions(
        num_threads=config.num_threads, prefetch_buffer_size=config.prefetch
    )
    reader = batches.to_iter_dataset(options)
    if not config.num_workers:
        return reader
    if not flags.FLAGS.is_parsed():  # grain reads its flags in workers; a notebook has parsed none
        flags.FLAGS.mark_as_parsed()
    ahead = max(1, config.prefetch // config.num_workers)
    return reader.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=config.num_workers, per_worker_buffer_size=ahead),
        worker_init_fn=functools.partial(_start_worker, os.getpid(), in_flight),
    )


def _start_worker(parent: int, in_flight: InFlight, worker: int, count: int) -> None:
    """Runs in each worker process: one thread in OpenCV, and no life after the process `parent`."""
    cv2.setNumThreads(0)
    in_flight.enlist(worker, count)

    def follow() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_CHECK_SECONDS)
        os._exit(1)

    threading.Thread(
        target=follow, daemon=True, name=f"parent of worker {worker} of {count}"
    ).start()
