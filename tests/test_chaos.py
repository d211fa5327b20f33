"""A run that is killed, stopped, starved and moved about ends with the bits of one left alone.

`make chaos` runs these at full numbers; tests/test_train.py, test_watchdog.py, test_checkpoint.py and
test_processes.py hold a tenth of them for every commit. "Equal" compares the hashes of all leaves of
parameters and optimizer, as they were in memory when the last checkpoint was saved (seem_jax/manifest.py).
Resuming at each step is shown on a small SEEM; runs that are killed train a model of two arrays
(toy_model.py), which starts in seconds, where those of test_train.py train the small SEEM too.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from seem_jax import manifest, sharding
from seem_jax.checkpoint import Checkpoints
from seem_jax.config import MeshConfig
from seem_jax.data import pipeline
from seem_jax.models.seem import build
from seem_jax.training import goodput
from seem_jax.training import state as states
from seem_jax.training.step import make_train_step, vocabulary
from seem_jax.training.watchdog import EXIT_STUCK
from tests import pipeline_support
from tests.fakes import class_token_ids, tiny_config
from tests.test_processes import free_port
from tests.test_watchdog import endings, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

ROOT = Path(__file__).resolve().parents[1]
STEPS, EVERY = 120, 3  # of the run that is killed
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def leaves(workdir, step):
    folder = workdir / "checkpoints" / "steps" / str(step)
    assert manifest.problem(folder) is None
    return manifest.leaves(folder)


def start(workdir):
    """A run of one process that goes on from its last checkpoint."""
    command = [sys.executable, "-m", "tests.toy_train", str(workdir), "0", str(STEPS), str(EVERY)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def run(workdir):
    """(exit code, output) of a run left alone."""
    child = start(workdir)
    output, _ = child.communicate(timeout=600)
    return child.returncode, output


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("unbroken")
    code, output = run(workdir)
    assert code == 0, output
    return workdir


def begun(workdir, steps=1):
    """A run that has taken so many steps of this start, or has ended; with what it said so far."""
    child, said = start(workdir), []
    for line in child.stdout:
        said.append(line)
        steps -= line.startswith("step ")
        if not steps:
            break
    return child, said


def saving(workdir):
    """Whether a checkpoint is half written just now."""
    steps = workdir / "checkpoints" / "steps"
    found = [path for path in steps.iterdir() if "tmp" in path.name]
    return bool(found)


def test_twenty_kills_five_of_them_inside_a_save_change_no_bit(tmp_path, unbroken):
    rng, inside, seen = random.Random(0), 0, []
    begin = time.time()
    for number in range(20):
        child, said = begun(tmp_path, rng.randint(1, 10))  # a slow machine saves for three steps
        assert child.poll() is None, said
        if number % 3 == 0:  # 7 of them
            while not saving(tmp_path):
                assert child.poll() is None
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.02))
        else:
            time.sleep(rng.uniform(0, 0.3))
        child.kill()
        child.communicate()
        inside += saving(tmp_path)
        seen += [line for line in said if line.startswith("continuing from")]
    code, output = run(tmp_path)
    assert code == 0, output
    assert inside >= 5
    assert leaves(tmp_path, STEPS) == leaves(unbroken, STEPS)
    steps = [int(line.rsplit(" ", 1)[1]) for line in seen]
    assert len(set(steps)) > 4
    assert steps == sorted(steps)  # what was saved stayed saved
    ledger = goodput.summary(tmp_path)
    assert sum(ledger[kind] for kind in goodput.KINDS) == pytest.approx(ledger["wall"], rel=0.01)
    assert ledger["wall"] == pytest.approx(time.time() - begin, rel=0.02)
    assert ledger["lost"] > 0


def test_ten_notices_to_stop_save_the_current_step_within_thirty_seconds(tmp_path, unbroken):
    rng = random.Random(1)
    for _ in range(10):
        child, said = begun(tmp_path, rng.randint(1, 4))
        assert child.poll() is None, said
        time.sleep(rng.uniform(0, 0.3))
        begin = time.monotonic()
        child.send_signal(signal.SIGTERM)
        rest, _ = child.communicate(timeout=60)
        assert time.monotonic() - begin <= 30
        assert child.returncode == 75, rest
        step = int(rest.split("saved at step ")[1].split(";")[0])
        assert leaves(tmp_path, step)
    code, output = run(tmp_path)
    assert code == 0, output
    assert f"continuing from the checkpoint of step {step}" in output
    assert leaves(tmp_path, STEPS) == leaves(unbroken, STEPS)


def test_resuming_at_each_of_twenty_steps_gives_the_same_bits_and_samples(tmp_path):
    """Over real records; one compiled step, one checkpoint after each step."""
    config = tiny_config()
    config.mesh, config.keep_checkpoints = MeshConfig(1, 1, 1), 30
    config.data.min_scale, config.data.max_scale, config.model.text.vocab_size = 0.7, 1.5, 128
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    model = build(config.model)

    def batches():
        return pipeline.train_batches(
            config.data, pipeline_support.FakeTokenizer(), templates=pipeline_support.TEMPLATES,
            splits=[pipeline_support.RECORDS],
        )  # fmt: skip

    state = states.create(model, config, mesh, jax.random.key(0))
    wanted = states.abstract(model, config, mesh)
    names = vocabulary(model, states.merge(state), config, *class_token_ids(config))
    data, ids = batches(), {}
    first = sharding.put_batch(next(data), mesh)
    data.set_state({"step": 0})
    with sharding.use(mesh), Checkpoints(tmp_path, config) as checkpoints:
        step = make_train_step(model, config, state).lower(state, first, names).compile(QUICK)
        for number in range(1, 24):
            batch = next(data)
            ids[number] = batch.sample_id.tolist()
            state, _ = step(state, sharding.put_batch(batch, mesh), names)
            checkpoints.save(number, state.trainable, state.opt_state, data)
            checkpoints.wait()
        for number in range(1, 21):
            again = batches()
            checkpoints.latest = number
            trainable, opt_state, _ = checkpoints.restore(
                wanted.trainable, wanted.opt_state, None, again
            )
            state = states.TrainState(
                step=jax.device_put(np.int32(number), wanted.step.sharding),
                trainable=trainable, frozen={}, opt_state=opt_state,
            )  # fmt: skip
            for later in range(number + 1, number + 4):
                batch = next(again)
                assert batch.sample_id.tolist() == ids[later]
                state, _ = step(state, sharding.put_batch(batch, mesh), names)
            trees = {"params": state.trainable, "opt_state": state.opt_state}
            assert manifest.differing(leaves(tmp_path, number + 3), trees) == []
            again.close()
    data.close()


def cluster(workdir, total, steps, stuck="", module="tests.toy_cluster", devices=4):
    """The processes of a distributed run that goes on from its last checkpoint."""
    port = free_port()
    environment = {**os.environ, "XLA_FLAGS": ""}
    return [
        subprocess.Popen(
            [sys.executable, "-m", module,
             *map(str, (workdir, process, total, port, devices // total, steps, stuck))],
            cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for process in range(total)
    ]  # fmt: skip


def finish(children):
    """What processes that run to their end say, one text each."""
    outputs = [child.communicate(timeout=900) for child in children]
    for child, (_, errors) in zip(children, outputs, strict=True):
        assert child.returncode == 0, errors
    return [output for output, _ in outputs]


def samples(outputs):
    """The samples of each step in the order of the global batch."""
    told = [
        [line.split()[1:] for line in text.splitlines() if line.startswith("samples")]
        for text in outputs
    ]
    return [[sample for part in parts for sample in part] for parts in zip(*told, strict=True)]


LONG = 60  # steps of the distributed run


@pytest.fixture(scope="module")
def two_alone(tmp_path_factory):
    """(leaves at the end, samples of each step) of two processes left alone."""
    workdir = tmp_path_factory.mktemp("two")
    told = samples(finish(cluster(workdir, 2, LONG)))
    return leaves(workdir, LONG), told


def wait_for_batches(child, count):
    for _ in range(count):
        wait_for(child, "samples")


def test_stuck_and_suspended_processes_are_named_and_the_run_goes_on(tmp_path, two_alone):
    """Five times: three stuck in reading data, two suspended by a signal."""
    for number in range(5):
        if number % 2 == 0:
            culprit = number // 2 % 2
            children = cluster(tmp_path, 2, LONG, f"{culprit}:5")
            wait_for_batches(children[culprit], 4)
            awake = children
        else:
            culprit = 1
            children = cluster(tmp_path, 2, LONG)
            wait_for_batches(children[1], 5)
            children[1].send_signal(signal.SIGSTOP)
            awake = children[:1]
        codes, said = endings(awake, time.monotonic())
        assert codes == [EXIT_STUCK] * len(awake), said
        for text in said:
            assert f"process {culprit} (pid {children[culprit].pid} on " in text
            assert number % 2 or "a_disk_that_never_answers" in text
        for child in children:
            child.kill()
            child.communicate()
    finish(cluster(tmp_path, 2, LONG))
    assert leaves(tmp_path, LONG) == two_alone[0]


def test_killed_processes_end_the_others_in_time_and_the_run_goes_on(tmp_path, two_alone):
    """Five times the second process, twice the one that holds the coordination service."""
    rng = random.Random(2)
    for victim in (1, 1, 0, 1, 1, 0, 1):
        children = cluster(tmp_path, 2, LONG)
        wait_for_batches(
            children[victim], rng.randint(4, 10)
        )  # a slow machine saves for three steps
        time.sleep(rng.uniform(0, 0.3))
        children[victim].kill()
        codes, said = endings([children[1 - victim]], time.monotonic())
        assert codes[0] in ((EXIT_STUCK,) if victim else (EXIT_STUCK, -signal.SIGABRT)), said
        if victim:
            assert f"process 1 (pid {children[1].pid} on " in said[0]
        children[victim].communicate()
    finish(cluster(tmp_path, 2, LONG))
    assert leaves(tmp_path, LONG) == two_alone[0]


def test_a_notice_to_one_process_stops_all_at_one_step(tmp_path, two_alone):
    children = cluster(tmp_path, 2, LONG)
    wait_for_batches(children[1], 5)
    begin = time.monotonic()
    children[1].send_signal(signal.SIGTERM)
    codes, said = endings(children, begin)
    assert codes == [75, 75], said
    assert time.monotonic() - begin <= 30
    finish(cluster(tmp_path, 2, LONG))
    assert leaves(tmp_path, LONG) == two_alone[0]


def test_other_numbers_of_hosts_carry_the_data_on(tmp_path, two_alone):
    """Two processes, then one, then two, four devices in all: each sample in its place."""
    told = []
    for total in (2, 1, 2):
        children, begun = cluster(tmp_path, total, LONG), []
        while sum(line.startswith("samples") for line in begun) < 4:
            begun.append(children[0].stdout.readline())
        children[-1].send_signal(signal.SIGTERM)
        outputs = [child.communicate(timeout=300) for child in children]
        assert [child.returncode for child in children] == [75] * total, outputs
        texts = [text for text, _ in outputs]
        told += samples(["".join(begun) + texts[0], *texts[1:]])
    assert 12 <= len(told) < LONG
    assert told == two_alone[1][: len(told)]


def test_a_second_job_in_a_work_folder_is_refused_within_five_seconds(tmp_path):
    """Five seconds from its own first line on; importing JAX comes before that."""
    first, _ = begun(tmp_path)
    begin = time.monotonic()
    code, output = run(tmp_path)
    took = time.monotonic() - begin
    imports = float(  # beside the first run, as the second one was
        subprocess.run(
            [sys.executable, "-c", "import time; b = time.time(); import tests.toy_train; print(time.time() - b)"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        ).stdout
    )  # fmt: skip
    first.kill()
    first.communicate()
    assert code == 1
    assert (
        f"in use by another training run (process {first.pid} on {os.uname().nodename})" in output
    )
    assert took - imports <= 5, (took, imports)


def test_the_ledger_of_a_run_is_in_its_evaluation(unbroken):
    numbers = json.loads((unbroken / "evaluation.json").read_text())
    kinds = {
        f"goodput/{kind}_seconds": numbers[f"goodput/{kind}_seconds"] for kind in goodput.KINDS
    }
    assert sum(kinds.values()) == pytest.approx(numbers["goodput/wall_seconds"], rel=0.01)
