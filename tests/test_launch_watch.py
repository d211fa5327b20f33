"""launch/tpu_vm.sh watch, against a gcloud that answers from a script."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "launch" / "tpu_vm.sh"
# Each look takes the next line of `states`; each question to worker 0 the next of `answers`, where
# "unreachable" is a failed connection. Everything else is noted in `done`.
GCLOUD = """#!/bin/bash
cd "$(dirname "$0")" || exit 1
take() { head -n 1 "$1"; sed -i 1d "$1"; }
case "$*" in
  *describe*) take states ;;
  *pgrep*) answer=$(take answers); [ "$answer" != unreachable ] && echo "$answer" ;;
  *queued-resources*) echo "$4" >> done ;;
  *scp*) echo install >> done ;;
  *restart.sh*) echo run >> done ;;
esac
"""


def watch(folder, states, answers):
    """(exit code, what it did, what it said) of watch while gcloud answers so."""
    (folder / "gcloud").write_text(GCLOUD)
    (folder / "gcloud").chmod(0o755)
    (folder / "states").write_text("\n".join(states) + "\n")
    (folder / "answers").write_text("\n".join(answers) + "\n")
    (folder / "done").touch()
    variables = {
        "PATH": f"{folder}:{os.environ['PATH']}", "NAME": "seem", "ZONE": "us-west4-a", "PROJECT": "lab",
        "WORKDIR": "/mnt/run", "WATCH_SECONDS": "0",
    }  # fmt: skip
    finished = subprocess.run(
        [SCRIPT, "watch"],
        env=variables,
        cwd=SCRIPT.parents[1],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return (
        finished.returncode,
        (folder / "done").read_text().split(),
        finished.stdout + finished.stderr,
    )


def test_it_creates_installs_runs_and_waits_for_the_end(tmp_path):
    states = ["ABSENT", "WAITING", "ACTIVE", "ACTIVE", "ACTIVE"]
    code, did, said = watch(tmp_path, states, ["", "TRAINING", "restart.sh: ended with 0"])
    assert (code, did) == (0, ["create", "install", "run"])
    assert "training is done; its report is in /mnt/run" in said


def test_a_slice_that_was_taken_away_is_asked_for_again(tmp_path):
    states = ["ACTIVE", "SUSPENDED", "ABSENT", "ACTIVE", "ACTIVE"]
    code, did, _ = watch(tmp_path, states, ["", "", "restart.sh: ended with 0"])
    assert (code, did) == (0, ["install", "run", "delete", "create", "install", "run"])


def test_a_slice_that_trains_already_is_left_alone(tmp_path):
    answers = ["unreachable", "TRAINING", "restart.sh: ended with 0"]
    code, did, _ = watch(tmp_path, ["ACTIVE"] * 3, answers)
    assert (code, did) == (0, [])


@pytest.mark.parametrize("last", ["restart.sh: ended with 1", "Killed", ""])
def test_training_that_failed_ends_it(tmp_path, last):
    code, did, said = watch(tmp_path, ["ACTIVE"] * 2, ["", last])
    assert (code, did) == (1, ["install", "run"])
    assert f"ended on worker 0 with: {last or 'nothing in its log'}. See it with" in said
