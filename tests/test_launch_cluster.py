"""launch/machine.sh runs two real processes: told to stop they save one step, and the command goes on."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep import shapes
from seem_jax.training import goodput
from tests.test_processes import free_port

ROOT = Path(__file__).resolve().parents[1]
CONFIGURATION = """
from tests.conftest import CACHE
from tests.fakes import tiny_config

def get_config():
    config = tiny_config()
    config.data.root = "{root}/records"
    config.data.tokenizer = "{root}/records/tokenizer.model"
    config.data.min_scale, config.data.max_scale = 1.0, 1.0
    config.model.text.vocab_size = 400
    config.evaluation.tasks, config.evaluation.num_pictures = ("panoptic",), 0
    config.num_steps, config.checkpoint_every = 30, 100
    config.compile_cache = str(CACHE)
    return config
"""


@pytest.mark.slow
def test_two_processes_are_stopped_go_on_and_are_done(tmp_path):
    parameters = shapes.Parameters(num_train=16, num_val=2, num_unseen=2, size=64, num_videos=2)
    shapes.make(tmp_path / "shapes", parameters, processes=1)
    (tmp_path / "tiny.py").write_text(CONFIGURATION.format(root=tmp_path / "shapes"))
    child, seen = start(tmp_path), []
    for line in child.stdout:
        seen.append(line)
        if line.startswith("step 2/30"):
            child.send_signal(signal.SIGTERM)
            break
    rest, _ = child.communicate(timeout=300)
    assert child.returncode == 75, "".join(seen) + rest
    stopped = int(rest.split("told to stop: saved at step ")[1].split(";")[0])

    child = start(tmp_path)
    output, _ = child.communicate(timeout=600)
    assert child.returncode == 0, output
    assert f"continuing from the checkpoint of step {stopped}\n" in output
    assert "2 cpu devices, mesh {'data': 2, 'fsdp': 1, 'tensor': 1}" in output
    assert "panoptic/pq" in json.loads((tmp_path / "run" / "evaluation.json").read_text())
    seconds = goodput.summary(tmp_path / "run")
    assert sum(seconds[kind] for kind in goodput.KINDS) == pytest.approx(seconds["wall"], rel=0.01)


def start(folder):
    """launch/machine.sh with two processes of one device each."""
    variables = {
        "WORKDIR": str(folder / "run"), "CONFIG": str(folder / "tiny.py"), "PROCESSES": "2",
        "DEVICES": "1", "PORT": str(free_port()), "PYTHON": sys.executable, "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    return subprocess.Popen(
        [ROOT / "launch" / "machine.sh"], cwd=ROOT, env={**os.environ, **variables}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
