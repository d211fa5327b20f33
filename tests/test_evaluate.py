"""The evaluation command: what it takes from the checkpoint, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from seem_jax import evaluate as command
from tests.fakes import tiny_config

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def stubs(monkeypatch):
    """The configurations that reach the evaluator; the checkpoint holds `tiny_config`."""
    seen = []

    def run(model, params, config, *, workdir):
        seen.append(config)
        return {"panoptic/pq": 50.0}

    monkeypatch.setattr(command.checkpoint, "restore_params", lambda run, step: ({}, tiny_config()))
    monkeypatch.setattr(command.evaluator, "run", run)
    return seen


def test_numbers_and_report_are_written(stubs, tmp_path):
    assert command.evaluate("run", str(tmp_path / "new"), None, None) == {"panoptic/pq": 50.0}
    assert stubs == [tiny_config()]
    command.evaluate("run", str(tmp_path / "new"), None, None, tasks=["video"], calibrate=True)
    assert stubs[1].evaluation.tasks == ("video",)
    assert stubs[1].evaluation.calibrate
    stored = json.loads((tmp_path / "new" / "evaluation.json").read_text())
    assert stored == {"panoptic/pq": 50.0}
    assert (tmp_path / "new" / "report.html").is_file()


def test_a_given_configuration_chooses_the_data_but_not_the_model(stubs, tmp_path):
    config = tiny_config()
    config.data.panoptic_eval = "other:val"
    command.evaluate("run", str(tmp_path), config, None)
    assert stubs[0].data.panoptic_eval == "other:val"
    config.model.decoder.num_memory += 1
    with pytest.raises(ValueError, match=r"another model than --config: config.model.decoder"):
        command.evaluate("run", str(tmp_path), config, None)


def test_the_tokenizer_is_the_one_beside_the_checkpoint(stubs, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"words")
    for config in (None, tiny_config()):
        command.evaluate(str(tmp_path), str(tmp_path / "new"), config, None)
        assert stubs.pop().data.tokenizer == str(tmp_path / "tokenizer.model")


def test_a_missing_checkpoint_is_one_line_on_the_terminal(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "seem_jax.evaluate", "--checkpoint", str(tmp_path), "--output=x"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: no checkpoint in {tmp_path}")
    assert "Traceback" not in done.stderr
