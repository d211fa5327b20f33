"""The loop around a step: what it does about steps that are not finite, and where its time goes.

The step itself is a stand-in that adds the number of the batch to a weight; checkpoints, metrics, goodput
and watchdog are the real ones.
"""

import dataclasses
import json
import time
from collections.abc import Collection
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from seem_jax import sharding
from seem_jax.checkpoint import Checkpoints
from seem_jax.config import MeshConfig, ProfileConfig
from seem_jax.training import goodput, utilisation
from seem_jax.training import state as states
from seem_jax.training.goodput import KINDS, Clock
from seem_jax.training.ledger import Ledger
from seem_jax.training.loop import Loop
from seem_jax.training.progress import NotFiniteError, Progress
from seem_jax.training.watchdog import Watchdog
from seem_jax.training.writer import Writer
from tests.fakes import tiny_config


@struct.dataclass
class Numbered:
    sample_id: np.ndarray  # int32 [1], the number of the batch


class Batches:
    """Batch number i holds i; the state is the number of the next one."""

    def __init__(self, seconds):
        self.number, self.seconds, self.dropped = 1, seconds, {}

    def __next__(self):
        time.sleep(self.seconds)
        self.number += 1
        return Numbered(np.array([self.number - 1], np.int32))

    def get_state(self):
        return {"number": self.number}


@dataclasses.dataclass
class Steps:
    """In place of `Compilation`, a step that is there at once; batches in `bad` give NaN."""

    bad: Collection[int] = ()
    seconds: float = 0.0

    def ready(self, step):
        return True

    def program(self, step):
        return self

    def __call__(self, state, batch, names):
        number = int(batch.sample_id[0])
        time.sleep(self.seconds)
        finite = number not in self.bad
        weight = state.trainable["w"] + (number if finite else 0)
        after = state.replace(step=state.step + 1, trainable={"w": weight})
        loss = jnp.float32(number if finite else np.nan)
        return after, {"loss": loss, "object/dice": loss, "finite": jnp.float32(finite)}


def run(workdir, *, bad=(), stop_after=None, batch_seconds=0.0, step_seconds=0.0, **fields):
    """(final weight, step) of a run of 8 steps that saves every second one; goes on if it can."""
    began, config = time.time(), tiny_config()
    config.num_steps, config.checkpoint_every, config.log_every = 8, 2, 1
    config.mesh = MeshConfig(1, 1, 1)
    for name, value in fields.items():
        setattr(config.faults if hasattr(config.faults, name) else config, name, value)
    config.workdir = str(workdir)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    put = lambda x: jax.device_put(x, sharding.replicated(mesh))  # noqa: E731
    state = states.TrainState(
        step=put(np.int32(0)),
        trainable={"w": put(np.zeros((), np.float32))},
        frozen={},
        opt_state={"m": put(np.zeros(2, np.float32))},
    )
    batches = Batches(batch_seconds)
    with Checkpoints(workdir, config) as checkpoints, Watchdog(config.faults, workdir) as watchdog:
        clock = Clock(workdir, began)
        first = checkpoints.latest or 0
        clock.goes_on("start", first)
        if first:
            like = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
            )
            trainable, opt_state, _ = checkpoints.restore(
                like.trainable, like.opt_state, None, None
            )
            state = state.replace(
                step=put(np.int32(first)), trainable=trainable, opt_state=opt_state
            )
            batches.number = first + 1
        with Writer(workdir, first) as writer:
            loop = Loop(
                config=config, mesh=mesh, batches=batches, names=None,
                compilation=Steps(bad, step_seconds),
                evaluate=lambda state, folder: {}, checkpoints=checkpoints, ledger=Ledger(workdir),
                clock=clock, writer=writer, watchdog=watchdog, say=lambda *a, **k: None,
            )  # fmt: skip
            stop = lambda: batches.number - 1 == stop_after  # noqa: E731
            state = loop.run(state, stop)
            checkpoints.wait()
        clock.row(int(state.step))
    return float(state.trainable["w"]), int(state.step)


def metric(workdir, name):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line.get(name) for line in lines}


def test_a_step_that_is_not_finite_ends_the_run_with_its_terms_and_records(tmp_path):
    with pytest.raises(
        NotFiniteError, match=r"step 5: loss, object/dice not finite; records \[5\]"
    ):
        run(tmp_path, bad={5})
    assert (tmp_path / "checkpoints" / "steps" / "4" / "manifest.json").is_file()


def test_skipping_goes_on_without_the_bad_batch_and_counts_it(tmp_path, capsys):
    assert run(tmp_path, bad={3, 5}, not_finite="skip") == (1 + 2 + 4 + 6 + 7 + 8, 8)
    said = capsys.readouterr().out
    assert "skipped: step 3: " in said
    assert "records [5]" in said
    counted = metric(tmp_path, "not_finite_steps")
    assert [counted[step] for step in (2, 3, 5, 8)] == [0, 1, 1, 0]
    assert metric(tmp_path, "loss")[3] is None


def test_skipping_ends_when_nothing_is_finite_any_more(tmp_path):
    with pytest.raises(NotFiniteError, match="3 steps in a row were skipped"):
        run(tmp_path, bad={4, 5, 6, 7, 8}, not_finite="skip", max_not_finite=2)


def test_rolling_back_takes_the_checkpoint_and_the_batches_after_the_bad_one(tmp_path, capsys):
    """Bad at batch 4: back to step 2; then batches 5 to 10 are steps 3 to 8."""
    assert run(tmp_path, bad={4}, not_finite="roll_back") == (1 + 2 + sum(range(5, 11)), 8)
    assert "rolled back to step 2: step 4: " in capsys.readouterr().out
    losses = metric(tmp_path, "loss")
    assert list(losses) == list(range(1, 9))
    assert losses[3] == 5  # the line of the step that was undone is gone


def test_rolling_back_needs_a_checkpoint_and_ends_after_its_limit(tmp_path):
    with pytest.raises(NotFiniteError, match="no checkpoint to roll back to"):
        run(tmp_path / "a", bad={1}, not_finite="roll_back")
    with pytest.raises(NotFiniteError, match="Rolled back 2 times already"):
        run(tmp_path / "b", bad={3, 5, 7}, not_finite="roll_back", max_not_finite=2)


def test_the_kinds_of_time_add_up_to_the_wall_time_over_a_restart(tmp_path):
    """Told to stop, started again, with a roll back. Steps are long enough for a loaded machine."""
    begin = time.time()
    run(tmp_path, stop_after=3, batch_seconds=0.05, step_seconds=0.1)
    time.sleep(0.4)
    seconds = {"batch_seconds": 0.05, "step_seconds": 0.1}
    ended = run(tmp_path, bad={6}, not_finite="roll_back", **seconds)
    assert ended == (1 + 2 + 3 + 4 + sum(range(7, 11)), 8)
    wall = time.time() - begin
    lines = [json.loads(line) for line in (tmp_path / "goodput.jsonl").read_text().splitlines()]
    events = [(line["event"], line["step"]) for line in lines if "event" in line]
    assert events == [("start", 0), ("start", 3), ("roll back", 4)]
    seconds = goodput.summary(tmp_path)
    assert sum(seconds[kind] for kind in KINDS) == pytest.approx(seconds["wall"], rel=0.01)
    assert seconds["wall"] == pytest.approx(wall, rel=0.01)
    assert seconds["idle"] == pytest.approx(0.4, abs=0.1)
    assert seconds["data"] == pytest.approx(10 * 0.05, rel=0.5)
    assert seconds["productive"] == pytest.approx(8 * 0.1, rel=0.5)
    assert seconds["lost"] >= 2 * 0.1  # steps 5 and 6, undone
    assert f"{seconds['wall']:.0f} s since the first start: " in goodput.sentence(seconds)


def lines_of(workdir, *lines):
    (workdir / goodput.FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))


def row(step, begin, end, **seconds):
    return {"step": step, "from": begin, "to": end, "seconds": seconds}


def test_steps_taken_again_are_lost_and_the_time_between_processes_is_idle(tmp_path):
    lines_of(
        tmp_path,
        {"event": "start", "step": 0, "time": 100.0},
        row(10, 100, 120, start=5, productive=15),
        row(20, 120, 140, productive=18, data=2),  # killed; the checkpoint was that of step 10
        {"event": "start", "step": 10, "time": 170.0},
        row(20, 170, 200, start=4, productive=26),
    )
    seconds = goodput.summary(tmp_path)
    assert seconds["wall"] == 100
    assert (seconds["lost"], seconds["idle"]) == (18, 30)
    assert (seconds["productive"], seconds["data"], seconds["start"]) == (41, 2, 9)
    assert sum(seconds[kind] for kind in KINDS) == 100


def test_a_line_cut_short_by_a_kill_costs_only_itself(tmp_path):
    lines_of(tmp_path, {"event": "start", "step": 0, "time": 1.0}, row(1, 1, 2, productive=1))
    with (tmp_path / goodput.FILE).open("a") as file:
        file.write('{"step": 2, "fr')
    clock = Clock(tmp_path)
    clock.goes_on("start", 1)
    clock.row(2)
    seconds = goodput.summary(tmp_path)
    assert seconds["productive"] == 1
    assert seconds["start"] > 0


def test_no_moment_counts_twice_where_a_process_seems_to_begin_before_the_last_line_ends(tmp_path):
    now = time.time()
    lines_of(
        tmp_path, {"event": "start", "step": 0, "time": now - 9}, row(1, now - 9, now, start=9)
    )
    clock = Clock(tmp_path, now - 1)  # the system knows the beginning of a process to a second
    clock.goes_on("start", 1)
    clock.row(2)
    seconds = goodput.summary(tmp_path)
    assert sum(seconds[kind] for kind in KINDS) == pytest.approx(seconds["wall"], abs=1e-3)
    assert seconds["wall"] < 10


def test_waiting_that_overlaps_with_the_device_costs_nothing(tmp_path):
    clock = Clock(tmp_path)
    clock.stays("overhead")
    clock.row(0)
    for busy, step in ((True, 1), (False, 2)):
        with clock.spend("data", lambda busy=busy: busy):
            time.sleep(0.02)
        clock.row(step)
    lines = [json.loads(line) for line in (tmp_path / goodput.FILE).read_text().splitlines()]
    assert lines[1]["seconds"]["productive"] >= 0.02
    assert lines[2]["seconds"]["data"] >= 0.02


@pytest.mark.parametrize("busy", [True, False])
def test_feeding_costs_only_what_the_device_waits_for(tmp_path, monkeypatch, busy):
    """By a clock that goes on while a batch is fed, and at no other time."""
    now = [time.time()]

    def put(batch, mesh):
        now[0] += 1
        return batch

    monkeypatch.setattr(sharding, "put_batch", put)
    monkeypatch.setattr(
        goodput, "time", SimpleNamespace(time=lambda: now[0], monotonic=lambda: now[0])
    )
    monkeypatch.setattr(Progress, "busy", lambda self: busy)
    run(tmp_path)
    seconds = goodput.summary(tmp_path)
    assert seconds["overhead"] == pytest.approx(0 if busy else 8)
    assert seconds["productive"] == pytest.approx(8 if busy else 0)


def test_a_trace_of_some_steps_is_written(tmp_path):
    run(tmp_path, profile=ProfileConfig(first_step=3, num_steps=2))
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_utilisation_counts_useful_work_only_and_only_where_the_peak_is_known(monkeypatch):
    config = tiny_config()
    assert utilisation.figures(config, 2.0) == {}
    config.useful_gflop_per_image, config.data.batch_size = 1520.0, 16
    assert utilisation.figures(config, 2.0) == {"useful_tflops": pytest.approx(48.64)}  # a CPU
    monkeypatch.setattr(utilisation, "peak_tflops", lambda kind: 197.0)
    shares = utilisation.figures(config, 2.0)
    assert shares["utilisation"] == pytest.approx(48.64 / 197 / jax.device_count())
    monkeypatch.undo()
    assert utilisation.peak_tflops("TPU v5 lite") == 197
    assert utilisation.peak_tflops("NVIDIA H100 80GB HBM3") == 989
    assert utilisation.peak_tflops("cpu") is None
