"""Workers that are killed or that wait are named, with the record they were reading; none is left over."""

import dataclasses
import os
import signal
import time

import numpy as np
import pytest

from seem_jax.data import pipeline
from seem_jax.data.in_flight import InFlight
from tests.test_pipeline import (
    CONFIG,
    RECORDS,
    TEMPLATES,
    FakeRecords,
    FakeTokenizer,
    assert_equal,
    batches_of,
)

SLOW = 7  # the record that takes long


class SlowRecords(FakeRecords):
    """One of them takes a minute to read, as from a disk that hangs."""

    seconds = 60

    def __getitem__(self, item):
        if item == SLOW:
            time.sleep(self.seconds)
        return super().__getitem__(item)


def start(splits, **changes):
    config = dataclasses.replace(CONFIG, batch_size=1, num_threads=1, **changes)
    return pipeline.train_batches(config, FakeTokenizer(), templates=TEMPLATES, splits=splits)


def wait_for(condition, seconds: float = 60):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def drain(batches) -> None:
    """Takes the batches that were ready, until there is an error."""
    for _ in range(1000):
        next(batches)


def slow_reading(batches):
    found = [one for one in batches.in_flight.now() if f"record {SLOW}" in one.record]
    return found[0] if found else None


def test_a_stalled_and_then_killed_worker_is_named_with_its_record(caplog):
    batches = start([SlowRecords(RECORDS)], num_workers=2, stall_seconds=0.4)
    batches.start_prefetch()
    reading = wait_for(lambda: slow_reading(batches))
    assert reading.reader.startswith("worker ") and f"of 2 (process {reading.process})" in (
        reading.reader
    )
    lines = wait_for(lambda: [m for m in caplog.messages if "has been reading" in m], 10)
    assert f"{reading.reader} has been reading fake:train, record {SLOW} for" in lines[0]
    os.kill(reading.process, signal.SIGKILL)
    begin = time.monotonic()
    words = rf"worker \d of 2 \(process {reading.process}\) ended while it was reading fake:train, record {SLOW}\."
    with pytest.raises(RuntimeError, match=words):
        drain(batches)
    assert time.monotonic() - begin < 10
    assert sum("has been reading" in message for message in caplog.messages) == 1
    batches.close()


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(10))
def test_a_worker_killed_at_any_moment_is_named(trial):
    batches = start([RECORDS], num_workers=2)
    next(batches)
    time.sleep(float(np.random.default_rng(trial).uniform(0, 0.5)))
    workers = sorted(
        int(path.name.partition("-")[0])
        for path in batches.in_flight.directory.glob("*-name.reading")
    )
    os.kill(workers[trial % 2], signal.SIGKILL)
    begin = time.monotonic()
    with pytest.raises(RuntimeError, match=rf"\(process {workers[trial % 2]}\) ended while it was"):
        drain(batches)
    assert time.monotonic() - begin < 10
    batches.close()


def test_a_stall_in_a_thread_is_named_too(caplog):
    records = SlowRecords(RECORDS)
    records.seconds = 2
    batches = start([records], stall_seconds=0.2)
    batches.start_prefetch()
    lines = wait_for(lambda: [m for m in caplog.messages if "has been reading" in m])
    assert f"process {os.getpid()} has been reading fake:train, record {SLOW}" in lines[0]
    batches.close()
    assert batches.in_flight.now() == []


def test_what_is_read_is_told_while_it_is_read_and_not_after():
    in_flight = InFlight()
    with in_flight.reading("set:train, record 3"):
        (one,) = in_flight.now()
        assert one.record == "set:train, record 3" and one.process == os.getpid()
        assert abs(time.time() - one.since) < 5
    assert in_flight.now() == []
    with in_flight.reading("x" * 3000):
        assert len(in_flight.now()[0].record) < 1024
    assert in_flight.of_dead() == {}
    directory = in_flight.directory
    del in_flight
    assert not directory.exists()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1, 2, 4])
@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_any_number_of_workers_and_hosts_makes_the_same_batches(workers, hosts):
    whole = batches_of(count=6)
    config = dataclasses.replace(CONFIG, num_workers=workers)
    parts = [
        batches_of(config, 6, process_index=host, process_count=hosts) for host in range(hosts)
    ]
    for step, batch in enumerate(whole):
        for host, part in enumerate(parts):
            rows = slice(host * 4 // hosts, (host + 1) * 4 // hosts)
            got, want = part[step], dataclasses.asdict(batch)
            np.testing.assert_array_equal(got.sample_id, want["sample_id"][rows])
            np.testing.assert_array_equal(got.image, want["image"][rows])
            np.testing.assert_array_equal(got.planes, want["planes"][rows])
            np.testing.assert_array_equal(got.strokes.points, batch.strokes.points[rows])
            np.testing.assert_array_equal(got.phrases.token_ids, batch.phrases.token_ids[rows])
    if hosts == 1:
        assert_equal(parts[0], whole)
