"""Converters killed at random moments: no half shard is accepted, and a second run goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from seem_jax.data.catalog import open_split
from seem_jax.data.tfrecord import TFRecordSource

ROOT = Path(__file__).resolve().parents[1]
NUM_RECORDS, NUM_SHARDS = 60, 20

PROGRAM = """
import sys, time
from pathlib import Path
from data_prep import writer
from seem_jax.data.schema import Record

def make(item):
    time.sleep(float(sys.argv[2]))
    return Record(image_id=item, file_name=str(item), image=bytes([item]) * 20000, height=1, width=1)

if __name__ == "__main__":
    writer.RECORDS_PER_SHARD = 3
    plan = writer.Plan("train", list(range(60)), make)
    classes = writer.Classes(("a",), 1, (1,))
    writer.write_dataset(Path(sys.argv[1]), "set", classes, [plan], processes=2)
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("program") / "convert.py"
    path.write_text(PROGRAM)
    return path


def start(program: Path, output: Path, delay: float) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(program), str(output), str(delay)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)


def wait_for_a_shard(output: Path) -> None:
    """Until the processes have started and work."""
    deadline = time.monotonic() + 60
    while not list(output.glob("set/*/*.idx.npy")) and time.monotonic() < deadline:
        time.sleep(0.005)


def check_kill(program: Path, output: Path, moment: float) -> int:
    """Kills a conversion `moment` seconds after its first shard; returns how many it had written."""
    folder = output / "set" / "1.0.0"
    process = start(program, output, 0.01)
    wait_for_a_shard(output)
    time.sleep(moment)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if not (folder / "dataset_info.json").is_file():
        with pytest.raises(ValueError, match="not \\(completely\\) in"):
            open_split(output, "set:train")
    # Its workers may finish a shard, but not outlive it for long.
    time.sleep(1.5)
    shards = sorted(folder.glob(f"*-of-{NUM_SHARDS:05d}"))
    for path in shards:
        source = TFRecordSource([path])
        assert len(source) == NUM_RECORDS // NUM_SHARDS
        assert all(source[number] for number in range(len(source)))
    times = {path: path.stat().st_mtime_ns for path in shards}
    assert start(program, output, 0).wait() == 0
    split = open_split(output, "set:train")
    assert [split[number].image_id for number in range(len(split))] == list(range(NUM_RECORDS))
    assert {path: path.stat().st_mtime_ns for path in shards} == times  # never redone
    assert not list(folder.glob("*.tmp"))
    return len(shards)


def test_a_conversion_killed_in_the_middle_goes_on(program, tmp_path):
    assert 1 <= check_kill(program, tmp_path, 0.1) < NUM_SHARDS


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(20))
def test_a_conversion_killed_at_any_moment_goes_on(program, tmp_path, trial):
    check_kill(program, tmp_path, float(np.random.default_rng(trial).uniform(0, 0.4)))


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks at processes in /proc")
def test_workers_do_not_outlive_a_killed_converter(program, tmp_path):
    process = start(program, tmp_path, 0.2)
    wait_for_a_shard(tmp_path)
    workers = children(process.pid)
    process.kill()
    process.wait()
    time.sleep(5)
    assert not [pid for pid in workers if runs(pid)]


def runs(pid: int) -> bool:
    """Whether a process still runs; one that ended may wait for its parent to take note."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except FileNotFoundError:
        return []
    return [int(child) for child in text.split()]
