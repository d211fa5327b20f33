"""Several processes share an evaluation: the same numbers to the last digit."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def evaluate(folder: Path, num: int) -> list[dict[str, float]]:
    """What each of num processes with one device got."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.fake_evaluate", str(folder), str(num)]
    running = [
        subprocess.Popen([*command, str(k), port], cwd=ROOT, env=environment) for k in range(num)
    ]
    assert [process.wait(timeout=600) for process in running] == [0] * num
    return [json.loads((folder / f"numbers{k}.json").read_text()) for k in range(num)]


@pytest.mark.slow
def test_the_numbers_of_one_two_and_four_processes_are_equal(tmp_path):
    for num in (1, 2, 4):
        (tmp_path / str(num)).mkdir()
    (want,) = evaluate(tmp_path / "1", 1)
    lines = (tmp_path / "1" / "samples" / "panoptic.jsonl").read_text()
    assert len(lines.splitlines()) == 1 + 7
    for num in (2, 4):
        assert evaluate(tmp_path / str(num), num) == [want] * num
        assert (tmp_path / str(num) / "samples" / "panoptic.jsonl").read_text() == lines
