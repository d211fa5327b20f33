"""Workers that are killed or that wait are named, with the record they were reading; none is left over."""

import concurrent.futures
import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from seem_jax.data import pipeline
from seem_jax.data.in_flight import InFlight
from tests.pipeline_support import (
    CONFIG,
    RECORDS,
    TEMPLATES,
    FakeRecords,
    FakeTokenizer,
    assert_equal,
    batches_of,
)

SINGLE = dataclasses.replace(CONFIG, batch_size=1, num_threads=1)


class SlowRecords(FakeRecords):
    """The one that is read first takes long, as from a disk that hangs."""

    def __init__(self, seconds: float):
        super().__init__(RECORDS)
        self.seconds = seconds
        self.slow = int(batches_of(SINGLE, 1)[0].sample_id[0])

    def __getitem__(self, item):
        if item == self.slow:
            time.sleep(self.seconds)
        return super().__getitem__(item)


def start(splits, **changes):
    config = dataclasses.replace(SINGLE, **changes)
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


def enlisted(batches) -> list[int]:
    """The process numbers of the workers that have begun."""
    paths = batches.in_flight.directory.glob("*-name.reading")
    return sorted(int(path.name.partition("-")[0]) for path in paths)


def warnings_of(caplog, record: str) -> list[str]:
    return [m for m in caplog.messages if f"has been reading {record} " in m]


def slow_reading(batches, record: str):
    return next((one for one in batches.in_flight.now() if one.record == record), None)


def test_a_stalled_and_then_killed_worker_is_named_with_its_record(caplog):
    records = SlowRecords(seconds=60)
    record = f"fake:train, record {records.slow}"
    batches = start([records], num_workers=2, stall_seconds=0.4)
    training = concurrent.futures.ThreadPoolExecutor(1).submit(drain, batches)
    reading = wait_for(lambda: slow_reading(batches, record))
    assert reading.reader.startswith("worker ") and f"of 2 (process {reading.process})" in (
        reading.reader
    )
    assert wait_for(lambda: warnings_of(caplog, record), 10)
    assert f"{reading.reader} has been reading {record} for" in warnings_of(caplog, record)[0]
    os.kill(reading.process, signal.SIGKILL)
    words = rf"worker \d of 2 \(process {reading.process}\) ended while it was reading {record}\."
    with pytest.raises(RuntimeError, match=words):
        training.result(timeout=10)
    assert len(warnings_of(caplog, record)) == 1
    batches.close()


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(10))
def test_a_worker_killed_at_any_moment_is_named(trial):
    batches = start([RECORDS], num_workers=2)
    next(batches)
    assert wait_for(lambda: len(enlisted(batches)) == 2)
    time.sleep(float(np.random.default_rng(trial).uniform(0, 0.5)))
    workers = enlisted(batches)
    os.kill(workers[trial % 2], signal.SIGKILL)
    begin = time.monotonic()
    with pytest.raises(RuntimeError, match=rf"\(process {workers[trial % 2]}\) ended while it was"):
        drain(batches)
    assert time.monotonic() - begin < 10
    batches.close()


def test_a_stall_in_a_thread_is_named_too(caplog):
    records = SlowRecords(seconds=2)
    batches = start([records], stall_seconds=0.2)
    batches.start_prefetch()
    record = f"fake:train, record {records.slow}"
    (line,) = wait_for(lambda: warnings_of(caplog, record))
    assert f"process {os.getpid()} has been reading {record}" in line
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
    """All arrays to the last bit, over more than two epochs, and from the middle of one on."""
    whole = batches_of(count=6)
    config = dataclasses.replace(CONFIG, num_workers=workers)
    for step in (0, 4):
        parts = [
            batches_of(config, 6 - step, step=step, process_index=host, process_count=hosts)
            for host in range(hosts)
        ]
        for batch, *rows in zip(whole[step:], *parts, strict=True):
            assert_equal(batch, jax.tree.map(lambda *leaves: np.concatenate(leaves), *rows))
    samples = np.concatenate([batch.sample_id for batch in whole])
    for epoch in samples[:10], samples[10:20]:
        assert sorted(epoch) == list(range(len(RECORDS)))


ORPHAN = """
import dataclasses, time
from tests import pipeline_support as t
if __name__ == "__main__":
    config = dataclasses.replace(t.CONFIG, num_workers=1)
    batches = t.pipeline.train_batches(config, t.FakeTokenizer(), templates=t.TEMPLATES, splits=[t.RECORDS])
    next(batches)
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks at processes in /proc")
@pytest.mark.parametrize(
    "trial", [0, *(pytest.param(trial, marks=pytest.mark.slow) for trial in range(1, 20))]
)
def test_workers_do_not_outlive_a_killed_parent(tmp_path, trial):
    script = tmp_path / "parent.py"
    script.write_text(ORPHAN)
    root = str(Path(__file__).parents[1])
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": root},
        cwd=root,
    )
    assert parent.stdout.readline() == b"ready\n"
    children = [
        int(child)
        for task in Path(f"/proc/{parent.pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]
    assert children
    time.sleep(float(np.random.default_rng(trial).uniform(0, 1)) * (trial > 0))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 5
    while any(_alive(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [child for child in children if _alive(child)]
    parent.stdout.close()


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
