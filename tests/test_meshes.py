"""The step of the full Focal-T decoder says the same on one device, on eight, and on two hosts of four."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.test_processes import free_port

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]


def step(folder, sizes, total=1):
    """Metrics and updated parameters after one step; a process of its own for each host."""
    out, port = folder / f"{'_'.join(map(str, sizes))}_{total}.npz", free_port()
    devices = int(np.prod(sizes)) // total
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.decoder_step", str(out), ",".join(map(str, sizes)),
             *map(str, (process, total, port, devices))],
            cwd=ROOT, env={**os.environ, "XLA_FLAGS": ""}, stderr=subprocess.PIPE, text=True,
        )
        for process in range(total)
    ]  # fmt: skip
    for child in children:
        _, errors = child.communicate(timeout=3600)
        assert child.returncode == 0, errors[-3000:]
    return dict(np.load(out))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return step(tmp_path_factory.mktemp("alone"), (1, 1, 1))


@pytest.mark.parametrize(
    ("sizes", "total"),
    [((8, 1, 1), 1), ((4, 2, 1), 1), ((2, 2, 2), 1), ((1, 8, 1), 1), ((4, 2, 1), 2)],
    ids=str,
)
def test_the_full_decoder_step_agrees_with_one_device(alone, tmp_path, sizes, total):
    """Loss, and all updated parameters together, within 1e-5 relative."""
    got = step(tmp_path, sizes, total)
    assert set(got) == set(alone)
    assert got["metrics loss"] == pytest.approx(alone["metrics loss"], rel=1e-5)
    assert alone["metrics finite"] == got["metrics finite"] == 1
    names = [name for name in alone if not name.startswith("metrics ")]
    assert sum(alone[name].size for name in names) > 35e6
    gap = np.sqrt(sum(np.sum((got[name] - alone[name]).astype(np.float64) ** 2) for name in names))
    size = np.sqrt(sum(np.sum(alone[name].astype(np.float64) ** 2) for name in names))
    print(f"{sizes} x {total}: loss {got['metrics loss']}, parameters differ by {gap / size:.2e}")
    assert gap / size < 1e-5
