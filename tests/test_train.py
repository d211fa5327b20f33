import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seem_jax import checkpoint, train
from seem_jax.training.ledger import CompileCounter, Ledger, peak_bytes
from seem_jax.training.writer import Writer
from tests.fakes import tiny_config

ROOT = Path(__file__).resolve().parents[1]


def start(workdir, *arguments):
    command = [sys.executable, "-m", "tests.fake_train", str(workdir), *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def run(workdir, *arguments):
    """(exit code, output) of a run left alone."""
    child = start(workdir, *arguments)
    output, _ = child.communicate(timeout=600)
    return child.returncode, output


def run_and_signal(workdir, number, after):
    """(exit code, output) of a run that gets a signal when its line of step `after` appears."""
    child = start(workdir)
    seen = []
    for line in child.stdout:
        seen.append(line)
        if line.startswith(f"step {after}/"):
            child.send_signal(number)
            break
    rest, _ = child.communicate(timeout=600)
    return child.returncode, "".join(seen) + rest


def losses(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [(line["step"], line["loss"], line["grad_norm"]) for line in map(json.loads, lines)]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("unbroken")
    return workdir, run(workdir)


@pytest.fixture(scope="module")
def broken(tmp_path_factory, unbroken):
    """The same run, killed in step 5, told to stop in step 6, poisoned in step 8, then finished."""
    workdir = tmp_path_factory.mktemp("broken")
    return workdir, {
        "killed": run_and_signal(workdir, signal.SIGKILL, after=5),
        "stopped": run_and_signal(workdir, signal.SIGTERM, after=6),
        "poisoned": run(workdir, 8),
        "finished": run(workdir),
        "again": run(workdir),
    }


def test_nothing_compiles_after_the_first_step(unbroken):
    workdir, (code, output) = unbroken
    assert code == 0, output
    assert "compiling the training step ... took" in output
    numbers = json.loads((workdir / "evaluation.json").read_text())
    assert numbers["run/compilations_after_first_step"] == 0
    assert {"run/train_seconds", "run/total_seconds", "run/peak_bytes"} <= set(numbers)
    assert (workdir / "report.html").is_file()
    assert list((workdir / "tensorboard").iterdir())


def test_a_killed_run_ends_with_the_same_bits_as_the_unbroken_one(unbroken, broken):
    outcomes = broken[1]
    assert outcomes["killed"][0] == -signal.SIGKILL
    assert re.search("continuing from the checkpoint of step [24]\n", outcomes["stopped"][1])
    assert outcomes["finished"][0] == 0, outcomes["finished"][1]
    (want, _), (got, _) = (checkpoint.restore_params(folder) for folder in (unbroken[0], broken[0]))
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert losses(broken[0]) == losses(unbroken[0])


def test_a_run_told_to_stop_saves_and_says_how_to_go_on(broken):
    code, output = broken[1]["stopped"]
    assert code == train.EXIT_STOPPED == 75
    stopped_at = int(output.split("saved at step ")[1].split(";")[0])
    assert stopped_at in (6, 7)
    assert f"continuing from the checkpoint of step {stopped_at}" in broken[1]["poisoned"][1]


def test_nan_in_a_batch_stops_the_run_with_step_terms_and_records(broken):
    code, output = broken[1]["poisoned"]
    assert code == 1
    message = output[output.index("FloatingPointError") :]
    assert "step 8: " in message
    assert "object/class" in message
    assert "records [800, 801]" in message
    assert re.search("continuing from the checkpoint of step [67]\n", broken[1]["finished"][1])


def test_a_finished_run_says_so(broken):
    code, output = broken[1]["again"]
    assert code == 0
    assert "tiny is done: 8 steps" in output
    assert "step 1/" not in output


def test_two_runs_cannot_share_a_work_folder(tmp_path):
    with (
        train._only_one(tmp_path),
        pytest.raises(ValueError, match=f"in use by another training run .process {os.getpid()}"),
        train._only_one(tmp_path),
    ):
        pass


def test_the_progress_line_says_how_far_how_fast_and_how_well():
    values = {
        "loss": 3.456,
        "object/class": 1.0,
        "object/dice": 0.5,
        "steps_per_second": 2.0,
        "data_wait_share": 0.05,
        "peak_bytes": float(2**30),
    }
    assert train.progress_line(100, 500, values) == (
        "step 100/500  2.00 steps/s  0:03:20 left  loss 3.46  [object class 1.00 dice 0.50]"
        "  data wait 5%  1.0 GiB"
    )


def test_metrics_beyond_the_checkpoint_are_dropped(tmp_path):
    with Writer(tmp_path, 0) as writer:
        for step in range(1, 6):
            writer.scalars(step, {"loss": 1.0 / step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # killed while writing
    with Writer(tmp_path, 3) as writer:
        writer.scalars(4, {"loss": 9.0})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert lines[-1]["loss"] == 9.0


def test_the_counter_sees_each_compilation_once_and_only_while_entered():
    double = jax.jit(lambda x: x * 2 + 1)
    with CompileCounter() as counter:
        double(jnp.ones(17))
        before = counter.count
        double(jnp.ones(17))
        assert counter.count == before > 0
    double(jnp.ones(19))
    assert counter.count == before


def test_the_ledger_goes_on_counting_after_a_restart(tmp_path):
    first = Ledger(tmp_path)
    first.train_seconds, first.compilations = 10.0, 1
    first.write()
    second = Ledger(tmp_path)
    second.train_seconds = 5.0
    totals = second.totals()
    assert (totals.train_seconds, totals.compilations_after_first_step, totals.starts) == (
        15.0,
        1,
        2,
    )
    assert totals.total_seconds > first.totals().total_seconds
    assert totals.peak_bytes >= peak_bytes() > 10**7


def test_a_missing_data_set_names_the_command_that_makes_it(tmp_path):
    config = tiny_config()
    config.workdir = str(tmp_path / "run")
    config.data.root = str(tmp_path / "nowhere")
    config.data.tokenizer = str(tmp_path / "nowhere" / "tokenizer.model")
    with pytest.raises(ValueError, match=r"python -m data_prep.shapes"):
        train.open_data(config)
