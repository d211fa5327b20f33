"""Several processes share an evaluation: the same numbers to the last digit."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fake_evaluate import TASKS

ROOT = Path(__file__).resolve().parents[1]


def evaluate(folder: Path, num: int, devices: int = 1) -> list[dict[str, float]]:
    """What each of num processes got."""
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.fake_evaluate", str(folder), str(num)]
    running = [
        subprocess.Popen([*command, str(k), port], cwd=ROOT, env=environment) for k in range(num)
    ]
    assert [process.wait(timeout=1800) for process in running] == [0] * num
    return [json.loads((folder / f"numbers{k}.json").read_text()) for k in range(num)]


@pytest.mark.slow
def test_the_numbers_of_one_two_and_four_processes_are_equal(tmp_path):
    """Of a real, untrained model, to the last bit.

    Several devices of one process divide the rows of a batch, and XLA rounds a program of fewer rows
    in another way; their numbers are equal to rounding only.
    """
    (want,) = evaluate(tmp_path / "1", 1)
    files = sorted((tmp_path / "1" / "samples").glob("*.jsonl"))
    assert len(files) == len(TASKS) + 1  # video has two
    assert len(files[0].read_text().splitlines()) == 1 + 10
    for num in (2, 4):
        folder = tmp_path / f"{num} processes"
        got = evaluate(folder, num)
        assert list(map(repr, got)) == [repr(want)] * num  # NaN equals NaN
        for path in files:
            assert (folder / "samples" / path.name).read_text() == path.read_text()
    (got,) = evaluate(tmp_path / "two devices", 1, devices=2)
    assert got == pytest.approx(want, rel=1e-6, nan_ok=True)
