"""Training over two real processes is training in one: same samples, same losses, same parameters."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from seem_jax import checkpoint, config_flag, manifest
from tests.fakes import tiny_config

ROOT = Path(__file__).resolve().parents[1]


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait(commands):
    """The outputs of programs that run side by side, each on devices of its own."""
    one_device = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    children = [
        subprocess.Popen(
            [str(part) for part in command],
            cwd=ROOT,
            env=one_device,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for command in commands
    ]
    outputs = [child.communicate(timeout=600)[0] for child in children]
    for child, output in zip(children, outputs, strict=True):
        assert child.returncode == 0, output
    return outputs


def run(workdir, num_processes, devices):
    """The samples of each step, in the order of the global batch, from a run with so many processes."""
    port = free_port()
    outputs = wait(
        [sys.executable, "-m", "tests.fake_cluster", workdir, process, num_processes, port, devices]
        for process in range(num_processes)
    )
    told = [
        [line.split()[1:] for line in output.splitlines() if line.startswith("samples")]
        for output in outputs
    ]
    return [[sample for part in parts for sample in part] for parts in zip(*told, strict=True)]


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(work folder, samples) of one process with four devices, and of two with two each."""
    folders = [tmp_path_factory.mktemp(name) for name in ("one", "two")]
    return [
        (folder, run(folder, processes, 4 // processes))
        for folder, processes in zip(folders, (1, 2), strict=True)
    ]


@pytest.mark.slow
def test_two_processes_train_as_one_does(runs):
    (one, samples), (two, same_samples) = runs
    assert len(samples) == 3
    assert len(samples[0]) == 8
    assert samples == same_samples
    for want, got in zip(metrics(one), metrics(two), strict=True):
        for name in (
            "loss",
            "object/class",
            "object/dice",
            "text/bce",
            "visual/dice",
            "num_objects",
        ):
            tolerance = 1e-5 if want["step"] == 1 else 1e-3  # Adam doubles rounding each step
            assert got[name] == pytest.approx(want[name], rel=tolerance), (name, want["step"])
    (params, _), (other, _) = (checkpoint.restore_params(folder) for folder in (one, two))
    gaps = jax.tree.map(lambda a, b: float(np.abs(a - b).mean()), params, other)
    assert max(jax.tree.leaves(gaps)) < 1e-3


PARAMETERS = """
import hashlib, sys
import jax, numpy as np
from seem_jax import checkpoint
from tests.fakes import tiny_config
from seem_jax.training import starting_weights, state as states
jax.distributed.initialize(f"127.0.0.1:{sys.argv[2]}", 2, int(sys.argv[3]))
params, config = checkpoint.restore_params(sys.argv[1])
mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
split = jax.NamedSharding(mesh, jax.P("data"))
like = jax.make_array_from_callback((4, 3), split, lambda index: np.zeros((4, 3), np.float32)[index])
zero = np.zeros((), np.int32)
state = states.TrainState(step=zero, trainable={"a": like}, frozen={}, opt_state=zero)
taken, _ = starting_weights.adopt(state, {"a": np.arange(12.0).reshape(4, 3)}, ())
rows = np.asarray(taken.trainable["a"].addressable_data(0)).tolist()
total = hashlib.sha256()
for leaf in jax.tree.leaves(params):
    total.update(np.asarray(leaf).tobytes())
print("read", total.hexdigest(), rows)
"""


def test_every_process_reads_the_same_parameters_and_takes_its_part(tmp_path):
    params = {"text": {"kernel": np.arange(6, dtype=np.float32)}, "scale": np.float32(2)}
    checkpoint.save_params(tmp_path / "run", params, tiny_config())
    port = free_port()
    outputs = wait(
        [sys.executable, "-c", PARAMETERS, tmp_path / "run", port, process] for process in range(2)
    )
    lines = [line.split(" ", 2) for o in outputs for line in o.splitlines() if line[:4] == "read"]
    assert lines[0][1] == lines[1][1]
    assert [json.loads(line[2]) for line in lines] == [
        [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]],
        [[6.0, 7.0, 8.0], [9.0, 10.0, 11.0]],
    ]


def test_half_of_an_address_is_refused():
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    with (
        flagsaver.flagsaver((config_flag.COORDINATOR, "host:1")),
        pytest.raises(ValueError, match=r"--coordinator=host:1 .*expected all three"),
    ):
        config_flag.join_processes()


@pytest.mark.slow
def test_a_checkpoint_of_two_processes_is_whole_for_one(runs):
    """Sealed once, every file in its manifest, and a second start says that the run is done."""
    folder = runs[1][0]
    assert manifest.problem(folder / "checkpoints" / "steps" / "3") is None
    assert run(folder, 1, 4) == []
