"""The steps of a run, with everything around them that is not the model."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from seem_jax import processes, sharding
from seem_jax.checkpoint import Checkpoints
from seem_jax.config import Config, ProfileConfig
from seem_jax.training import state as states
from seem_jax.training.compiling import Compilation
from seem_jax.training.goodput import ROW_SECONDS, Clock
from seem_jax.training.ledger import COMPILED, EventCounter, Ledger
from seem_jax.training.progress import NotFiniteError, Progress, progress_line
from seem_jax.training.step import Vocabulary
from seem_jax.training.watchdog import Watchdog
from seem_jax.training.writer import Writer
from seem_jax.types import Batch

POLL_SECONDS = 0.05


@dataclasses.dataclass
class Loop:
    config: Config
    mesh: Mesh
    batches: Iterator[Batch]  # of this process; data.pipeline.TrainBatches
    names: Vocabulary
    compilation: Compilation
    evaluate: Callable[[states.TrainState, Path], dict[str, float]]  # into a folder
    checkpoints: Checkpoints
    ledger: Ledger
    clock: Clock
    writer: Writer
    watchdog: Watchdog
    say: Callable[..., None]

    def run(self, state: states.TrainState, stop: Callable[[], bool]) -> states.TrainState:
        """The state after the last step, or after the step at which `stop` became true."""
        config, clock = self.config, self.clock
        self.progress = Progress(config)
        self.started = time.perf_counter()
        self._undone = 0
        step = int(state.step)
        batch = self._next(step + 1)
        with self.watchdog.phase("preparing to save"), clock.spend("compile"):
            self.checkpoints.prepare(state.trainable, state.opt_state)
        self._wait_for_the_program(step + 1, stop)
        if not self.compilation.ready(step + 1):
            clock.row(step)
            return state
        self.progress.restart()
        clock.stays("overhead")
        with (
            EventCounter(COMPILED) as self.counter,
            _profile(config.profile, config.workdir) as trace,
        ):
            while step < config.num_steps:
                step += 1
                trace.begin(step)
                with clock.spend("overhead", self.progress.busy):
                    placed = sharding.put_batch(batch, self.mesh)
                with clock.spend("productive"):
                    self.watchdog.beat(f"step {step}")
                    train_step = self.compilation.program(step)
                    state, metrics = train_step(state, placed, self.names)
                # The step runs on its own from here; what follows overlaps with it.
                self.progress.add(step, batch.sample_id, metrics)
                if step < config.num_steps and not self.compilation.ready(step + 1):
                    self._wait_for_the_program(step + 1, stop)
                stopped = stop() or self.checkpoints.should_stop(step)
                try:
                    self._after(step, state, stopped, trace)
                except NotFiniteError as found:
                    if config.faults.not_finite != "roll_back":
                        raise
                    state = self._roll_back(found, state)
                    step, stopped = int(state.step), False
                if stopped or step == config.num_steps:
                    break
                batch = self._next(step + 1)
        clock.row(step)
        return state

    def _after(self, step: int, state: states.TrainState, stopped: bool, trace: _Trace) -> None:
        """What comes after a step: its check, and logging, saving and evaluating when they are due."""
        config, clock = self.config, self.clock
        save = stopped or step == config.num_steps or step % config.checkpoint_every == 0
        ends_trace = trace.ends(step)
        due = save or ends_trace or step % config.log_every == 0
        with clock.spend("productive"):
            self.watchdog.beat(f"waiting for the result of step {step if due else step - 1}")
            self.progress.check(all_steps=due)
        if ends_trace:
            trace.end()
        if save or step % config.log_every == 0:
            self._log(step)
        if save:
            self.watchdog.beat(f"saving step {step}")
            with clock.spend("checkpoint", self.progress.busy), self.counter.paused():
                # Orbax slices what several devices hold alike: programs that do not count
                self.checkpoints.save(step, state.trainable, state.opt_state, self.batches)
            clock.row(step)
        due = config.evaluation.every and step % config.evaluation.every == 0
        if due and not (stopped or step == config.num_steps):
            with self.counter.paused():
                self._evaluate(step, state)
        with clock.spend("checkpoint", self.progress.busy):
            self.checkpoints.poll()
        clock.row(step, every=ROW_SECONDS)

    def _next(self, step: int) -> Batch:
        self.watchdog.beat(f"waiting for the data of step {step}")
        begin = time.perf_counter()
        with self.clock.spend("data", self.progress.busy):
            batch = next(self.batches)
        self.progress.waited += time.perf_counter() - begin
        return batch

    def _wait_for_the_program(self, step: int, stop: Callable[[], bool]) -> None:
        """Until what runs this step is compiled, or `stop` is true."""
        begin = time.perf_counter()
        self.say("compiling the training step ...", end=" ")
        with (
            self.watchdog.phase("compiling the training step"),
            self.clock.spend("compile", self.progress.busy),
        ):
            while not (self.compilation.ready(step) or stop()):
                time.sleep(POLL_SECONDS)
        took = time.perf_counter() - begin
        self.say(f"took {took:.0f} s")
        self.progress.leave_out(took)

    def _log(self, step: int) -> None:
        self.ledger.train_seconds = time.perf_counter() - self.started
        self.ledger.compilations = self.counter.count
        values = self.progress.take()
        dropped = {f"dropped/{name}": n for name, n in self.batches.dropped.items()}
        self.writer.scalars(step, {**values, **dropped})
        self.ledger.write()
        self.say(progress_line(step, self.config.num_steps, values))

    def _evaluate(self, step: int, state: states.TrainState) -> None:
        begin = time.perf_counter()
        with self.watchdog.phase(f"evaluating step {step}"), self.clock.spend("evaluation"):
            numbers = self.evaluate(state, Path(self.config.workdir) / "evaluations" / str(step))
            self.writer.scalars(step, {f"evaluation/{name}": n for name, n in numbers.items()})
        took = time.perf_counter() - begin
        self.started += took
        self.progress.leave_out(took)

    def _roll_back(self, found: NotFiniteError, state: states.TrainState) -> states.TrainState:
        """The state of the last checkpoint; the data stays behind the bad batch. NotFiniteError when there
        is no checkpoint, or when this was done too often already."""
        limit = self.config.faults.max_not_finite
        self.checkpoints.wait()
        to = self.checkpoints.latest
        if to is None:
            raise NotFiniteError(
                found.step, f"{found} There is no checkpoint to roll back to."
            ) from found
        self._undone += 1
        if self._undone > limit:
            raise NotFiniteError(
                found.step,
                f"{found} Rolled back {limit} times already, config.faults.max_not_finite.",
            ) from found
        with self.clock.spend("checkpoint"), self.counter.paused():
            like = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
            )
            trainable, opt_state, _ = self.checkpoints.restore(
                like.trainable, like.opt_state, None, None
            )
            number = jax.device_put(np.int32(to), like.step.sharding)
        self.clock.row(found.step)
        self.clock.goes_on("roll back", to)
        self.writer.cut(to)
        self.progress.restart()
        print(f"rolled back to step {to}: {found}", flush=True)
        return state.replace(step=number, trainable=trainable, opt_state=opt_state)


class _Trace:
    """The profiler, on for some steps of a run."""

    def __init__(self, config: ProfileConfig, workdir: str | Path):
        self._first, self._last = config.first_step, config.first_step + config.num_steps - 1
        self._folder = Path(workdir) / "profile" / f"process_{processes.number()}"
        self._runs = False

    def begin(self, step: int) -> None:
        if self._first and self._first <= step <= self._last and not self._runs:
            jax.profiler.start_trace(str(self._folder))
            self._runs = True

    def ends(self, step: int) -> bool:
        """Whether `step` is the last one; `end` is to be called when it has run."""
        return self._runs and step == self._last

    def end(self) -> None:
        if self._runs:
            self._runs = False
            jax.profiler.stop_trace()


@contextlib.contextmanager
def _profile(config: ProfileConfig, workdir: str | Path) -> Iterator[_Trace]:
    trace = _Trace(config, workdir)
    try:
        yield trace
    finally:
        trace.end()
