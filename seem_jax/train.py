"""Trains a model: python -m seem_jax.train --config=configs/shapes.py [--config.FIELD=VALUE ...]

The same command continues a run that was stopped, from its newest good checkpoint, and says so when
the run is done. The first start takes the weights in --config.start_from=FOLDER, where given: another
run (fine-tuning) or a converted official checkpoint. Exit codes: 0 done; 75 told to stop (SIGTERM or
Ctrl-C), saved, start again; 1 error.

Several hosts: start the same command on each with --distributed, which finds the others through
SLURM, Open MPI, Kubernetes or the TPU metadata; elsewhere give --coordinator=HOST:PORT,
--num_processes and --process_id.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import signal
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import jax
import numpy as np
from absl import app, flags, logging
from jax.sharding import Mesh

from seem_jax import config as config_lib
from seem_jax import name_templates, sharding
from seem_jax.checkpoint import Checkpoints, differences, restore_params
from seem_jax.config import Config
from seem_jax.config_flag import CONFIG, join_processes
from seem_jax.data import catalog, pipeline
from seem_jax.evaluation import evaluator, report
from seem_jax.models.language import class_names
from seem_jax.models.language.tokenizer import Tokenizer
from seem_jax.models.seem import SEEM, build
from seem_jax.training import starting_weights
from seem_jax.training import state as states
from seem_jax.training.ledger import CompileCounter, Ledger, peak_bytes
from seem_jax.training.step import Vocabulary, make_train_step, vocabulary
from seem_jax.training.writer import Writer
from seem_jax.types import Batch

EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, start the same command again

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; overrides config.workdir.")


@dataclasses.dataclass
class Data:
    """What training needs of the data set."""

    batches: pipeline.TrainBatches  # of this process
    class_ids: np.ndarray  # int32 [C, templates, J]
    class_valid: np.ndarray  # bool [C, templates, J]


def train(config: Config) -> int:
    """Trains, evaluates and reports; the exit code. Reads top to bottom."""
    config_lib.validate(config)
    workdir = Path(config.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    if config.compile_cache:
        jax.config.update("jax_compilation_cache_dir", config.compile_cache)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_only_one(workdir))
        checkpoints = stack.enter_context(Checkpoints(workdir, config))
        if checkpoints.latest == config.num_steps and (workdir / "evaluation.json").is_file():
            _say(f"{config.name} is done: {config.num_steps} steps. Results: {workdir}/report.html")
            return 0
        ledger = Ledger(workdir)
        (workdir / "config.json").write_text(config_lib.to_json(config))

        # Mesh, model, data
        mesh = sharding.make_mesh(config.mesh)
        sharding.check_batch_size(mesh, config.data.batch_size)
        model = build(config.model)
        data = open_data(config)
        stack.callback(data.batches.close)
        devices = f"{mesh.size} {jax.devices()[0].device_kind} devices, mesh {dict(mesh.shape)}"
        _say(f"training {config.name} in {workdir} on {devices}")

        # State: fresh, or where the run was stopped
        state = _start(model, config, mesh, checkpoints, data)
        first_step = int(state.step)
        names = vocabulary(model, states.merge(state), config, data.class_ids, data.class_valid)

        scoring = evaluator.Evaluator(model, config)

        # Loop
        stop = stack.enter_context(_stop_requested())
        writer = stack.enter_context(Writer(workdir, first_step))
        if first_step < config.num_steps:
            loop = Loop(config, mesh, model, data, names, scoring, checkpoints, ledger, writer)
            state = loop.run(state, stop)
            checkpoints.wait()
            ledger.write()
            if int(state.step) < config.num_steps:
                _say(f"told to stop: saved at step {state.step}; the same command continues.")
                return EXIT_STOPPED

        # Evaluation
        numbers = scoring.run(evaluation_params(state, mesh), workdir=workdir)
        ledger.write()
        if jax.process_index() == 0:
            _finish(workdir, config, {**numbers, **ledger.figures()})
    return 0


def open_data(config: Config) -> Data:
    """The batches of this process and the class names. ValueError where something is missing."""
    tokenizer = Tokenizer(config.data.tokenizer)
    if tokenizer.vocab_size > config.model.text.vocab_size:
        raise ValueError(
            f"{config.data.tokenizer} has {tokenizer.vocab_size} pieces, but config.model.text."
            f"vocab_size = {config.model.text.vocab_size}: set it to at least that number."
        )
    split = catalog.open_split(config.data.root, config.data.train[0])
    templates = name_templates.templates_of(split.name)
    ids, valid = class_names.class_token_ids(
        tokenizer, split.class_names, config.data.max_phrase_tokens, templates
    )
    batches = pipeline.train_batches(
        config.data,
        tokenizer,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        templates=templates,
    )
    return Data(batches, ids, valid)


@dataclasses.dataclass
class Loop:
    """The steps of a run, with everything around them that is not the model."""

    config: Config
    mesh: Mesh
    model: SEEM
    data: Data
    names: Vocabulary
    scoring: evaluator.Evaluator
    checkpoints: Checkpoints
    ledger: Ledger
    writer: Writer

    def run(self, state: states.TrainState, stop: Callable[[], bool]) -> states.TrainState:
        """The state after the last step, or after the step at which `stop` became true."""
        config, checkpoints, progress = self.config, self.checkpoints, Progress(self.config)
        started = time.perf_counter()
        batch = self._next(progress)
        train_step = self._compile(state, batch)
        progress.restart()
        with CompileCounter() as counter:
            for step in range(int(state.step) + 1, config.num_steps + 1):
                state, metrics = train_step(state, sharding.put_batch(batch, self.mesh), self.names)
                # The step runs on its own from here; what follows overlaps with it.
                progress.add(step, batch.sample_id, metrics)
                last = step == config.num_steps
                stopped = stop() or checkpoints.should_stop(step)
                save = last or stopped or step % config.checkpoint_every == 0
                if save or step % config.log_every == 0:
                    progress.check(all_steps=True)
                    self.ledger.train_seconds = time.perf_counter() - started
                    self.ledger.compilations = counter.count
                    self._log(step, progress)
                if save:
                    with counter.paused():  # Orbax slices what several devices hold alike
                        checkpoints.save(step, state.trainable, state.opt_state, self.data.batches)
                if last or stopped:
                    return state
                if config.evaluation.every and step % config.evaluation.every == 0:
                    with counter.paused():
                        started += self._evaluate(step, state)
                    progress.restart()
                checkpoints.poll()
                batch = self._next(progress)
                progress.check(all_steps=False)
        return state

    def _next(self, progress: Progress) -> Batch:
        begin = time.perf_counter()
        batch = next(self.data.batches)
        progress.waited += time.perf_counter() - begin
        return batch

    def _compile(self, state: states.TrainState, batch: Batch) -> Callable:
        """The training step as a program of fixed shapes: it cannot compile a second time."""
        _say("compiling the training step ...", end=" ")
        begin = time.perf_counter()
        step = make_train_step(self.model, self.config, self.mesh)
        with sharding.use(self.mesh):
            compiled = step.lower(state, sharding.put_batch(batch, self.mesh), self.names).compile()
        _say(f"took {time.perf_counter() - begin:.0f} s")
        return compiled

    def _log(self, step: int, progress: Progress) -> None:
        values = progress.take()
        dropped = {f"dropped/{name}": n for name, n in self.data.batches.dropped.items()}
        self.writer.scalars(step, {**values, **dropped})
        self.ledger.write()
        _say(progress_line(step, self.config.num_steps, values))

    def _evaluate(self, step: int, state: states.TrainState) -> float:
        """Seconds that an evaluation in between took."""
        begin = time.perf_counter()
        folder = Path(self.config.workdir) / "evaluations" / str(step)
        numbers = self.scoring.run(evaluation_params(state, self.mesh), workdir=folder)
        self.writer.scalars(step, {f"evaluation/{name}": n for name, n in numbers.items()})
        return time.perf_counter() - begin


class Progress:
    """Means of the metrics since the last line, and the watch over their being finite.

    Metrics stay on the device until a later step runs, so that looking at them does not stop it.
    """

    def __init__(self, config: Config):
        self.config = config
        self.restart()

    def restart(self) -> None:
        self.waited = 0.0
        self._begin = time.perf_counter()
        self._pending: list[tuple[int, np.ndarray, dict]] = []
        self._seen: list[dict[str, float]] = []

    def add(self, step: int, sample_id: np.ndarray, metrics: dict) -> None:
        self._pending.append((step, sample_id, metrics))

    def check(self, *, all_steps: bool) -> None:
        """FloatingPointError when a step was not finite. Leaves the newest step for later unless
        all_steps."""
        keep = 0 if all_steps else 1
        while len(self._pending) > keep:
            step, sample_id, metrics = self._pending.pop(0)
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
            if not values.pop("finite"):
                raise FloatingPointError(not_finite(step, sample_id, values, self.config))
            self._seen.append(values)

    def take(self) -> dict[str, float]:
        """Means since the last call, with rates."""
        seconds = time.perf_counter() - self._begin
        means = {name: float(np.mean([v[name] for v in self._seen])) for name in self._seen[0]}
        means |= {
            "steps_per_second": len(self._seen) / seconds,
            "data_wait_share": self.waited / seconds,
            "peak_bytes": float(peak_bytes()),
        }
        self.restart()
        return means


def not_finite(step: int, sample_id: np.ndarray, values: dict, config: Config) -> str:
    """The message for a step whose loss or gradient is NaN or infinite."""
    terms = [name for name, value in values.items() if not np.isfinite(value)]
    return (
        f"step {step}: {', '.join(sorted(terms))} not finite; records {sample_id.tolist()} of "
        f"{', '.join(config.data.train)}. The step was not applied, and the last good checkpoint "
        f"in {config.workdir}/checkpoints is kept. Look at these records; if they are sound, a "
        "lower config.optimizer.learning_rate or clip_norm helps."
    )


def progress_line(step: int, num_steps: int, values: dict[str, float]) -> str:
    """One line for a person: how far, how fast, how long still, and how well."""
    rate = values["steps_per_second"]
    left = timedelta(seconds=round((num_steps - step) / max(rate, 1e-9)))
    terms: dict[str, list[str]] = {}
    for name in (name for name in values if "/" in name):
        group, kind = name.split("/")
        terms.setdefault(group, []).append(f"{kind} {values[name]:.2f}")
    parts = " | ".join(f"{group} {' '.join(kinds)}" for group, kinds in terms.items())
    return (
        f"step {step}/{num_steps}  {rate:.2f} steps/s  {left} left  loss {values['loss']:.2f}"
        f"  [{parts}]  data wait {100 * values['data_wait_share']:.0f}%"
        f"  {values['peak_bytes'] / 2**30:.1f} GiB"
    )


def evaluation_params(state: states.TrainState, mesh: Mesh) -> dict:
    """All parameters, whole on every device: evaluation does not split them."""
    return jax.device_put(states.merge(state), sharding.replicated(mesh))


def _start(
    model: SEEM, config: Config, mesh: Mesh, checkpoints: Checkpoints, data: Data
) -> states.TrainState:
    if checkpoints.latest is None:
        _say("initialising ...", end=" ")
        begin = time.perf_counter()
        state = states.create(model, config, mesh, jax.random.key(config.seed))
        learning, resting = map(states.num_parameters, (state.trainable, state.frozen))
        _say(
            f"took {time.perf_counter() - begin:.0f} s: {learning / 1e6:.2f} M parameters"
            f" learn, {resting / 1e6:.2f} M are frozen"
        )
        if config.start_from:
            state = _with_starting_weights(state, config)
        checkpoints.save_frozen(state.frozen)
        return state
    wanted = states.abstract(model, config, mesh)
    trainable, opt_state, frozen = checkpoints.restore(
        wanted.trainable, wanted.opt_state, wanted.frozen, data.batches
    )
    _say(f"continuing from the checkpoint of step {checkpoints.latest}")
    step = jax.device_put(np.int32(checkpoints.latest), wanted.step.sharding)
    return states.TrainState(step=step, trainable=trainable, frozen=frozen, opt_state=opt_state)


def _with_starting_weights(state: states.TrainState, config: Config) -> states.TrainState:
    """The state with the parameters of config.start_from, a work folder or one of its steps."""
    path = Path(config.start_from).absolute()
    step = None
    if path.parent.name == "steps" and path.name.isdigit():
        path, step = path.parents[2], int(path.name)
    try:
        params, saved = restore_params(path, step)
    except ValueError as error:
        raise ValueError(f"config.start_from = {config.start_from!r}: {error}") from error
    state, fresh = starting_weights.adopt(state, params, config.may_be_fresh)
    _say(f"starting from the parameters in {config.start_from}")
    if fresh:
        _say(f"  begin with random values: {', '.join(fresh)}")
    for line in differences(saved, config):
        if line.startswith("config.model."):
            _say(f"  note: it was made with another {line}")
    return state


def _finish(workdir: Path, config: Config, numbers: dict[str, float]) -> None:
    report.write(workdir, config, numbers)
    for name, value in sorted(numbers.items()):
        _say(f"  {name:40s} {value:12.2f}")
    _say(f"numbers:  {workdir / 'evaluation.json'}\nreport:   {workdir / 'report.html'}")


@contextlib.contextmanager
def _only_one(workdir: Path) -> Iterator[None]:
    """Holds WORKDIR/lock. ValueError when another process has it."""
    if jax.process_index() != 0:
        yield
        return
    with (workdir / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise ValueError(
                f"{workdir} is in use by another training run ({file.read().strip()}): wait for "
                "it, stop it, or give another --workdir."
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        file.flush()
        yield


@contextlib.contextmanager
def _stop_requested() -> Iterator[Callable[[], bool]]:
    """A function that says whether SIGTERM or SIGINT has come. A second one ends the process.

    With several processes JAX itself listens for SIGTERM, and all are told through
    `Checkpoints.should_stop`.
    """
    if jax.process_count() > 1:
        yield lambda: False
        return
    came: list[int] = []

    def note(number: int, frame: object) -> None:
        came.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(text: str, end: str = "\n") -> None:
    if jax.process_index() == 0:
        print(text, end=end, flush=True)


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(
            f"unknown arguments {argv[1:]}; values are given as --config.FIELD=VALUE"
        )
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # Orbax reports every file otherwise
    join_processes()
    config = CONFIG.value
    if WORKDIR.value:
        config.workdir = WORKDIR.value
    return train(config)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main)
