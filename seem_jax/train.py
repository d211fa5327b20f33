"""Trains a model: python -m seem_jax.train --config=configs/shapes.py [--config.FIELD=VALUE ...]

The same command continues a run that was stopped, from its newest good checkpoint, and says so when
the run is done. The first start takes the weights in --config.start_from=FOLDER, where given: another
run (fine-tuning) or a converted official checkpoint. --dry_run says what would run, and stops.

Exit codes: 0 done; 75 told to stop (SIGTERM or Ctrl-C), saved, start again; 76 a process of the run
hung, was lost or failed (said which, and where), start again; 1 error.

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
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from absl import app, flags, logging
from jax.sharding import Mesh

from seem_jax import kept_files, name_templates, processes, sharding
from seem_jax.checkpoint import Checkpoints, restore_params
from seem_jax.checkpoint_folder import differences
from seem_jax.config import Config
from seem_jax.config_checks import validate
from seem_jax.config_files import to_json
from seem_jax.config_flag import CONFIG, join_processes, run_program
from seem_jax.data import catalog, collate, pipeline
from seem_jax.evaluation import evaluator, report
from seem_jax.models.language import class_names
from seem_jax.models.language.tokenizer import Tokenizer
from seem_jax.models.seem import SEEM, build
from seem_jax.training import agreement, compiling, goodput, starting_weights
from seem_jax.training import state as states
from seem_jax.training.compiling import Compilation
from seem_jax.training.goodput import Clock
from seem_jax.training.ledger import Ledger
from seem_jax.training.loop import Loop
from seem_jax.training.plan import plan
from seem_jax.training.step import vocabulary
from seem_jax.training.watchdog import Watchdog
from seem_jax.training.writer import Writer

EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, start the same command again

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; overrides config.workdir.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Say what would run (mesh, memory, steps), and stop.")
NUM_DEVICES = flags.DEFINE_integer("num_devices", 0, "Of a dry run; 0: those that are here.")
DEVICE_KIND = flags.DEFINE_string(
    "device_kind", "", 'Of a dry run, as "TPU v5e"; "": what is here.'
)
STEP_SECONDS = flags.DEFINE_float("step_seconds", 0.0, "Measured time of a step, for a dry run.")


@dataclasses.dataclass
class Data:
    """What training needs of the data set."""

    batches: pipeline.TrainBatches  # of this process
    class_ids: np.ndarray  # int32 [C, templates, J]
    class_valid: np.ndarray  # bool [C, templates, J]
    fingerprint: str = ""  # equal where the records, the class names and the tokenizer are


def train(config: Config) -> int:
    """Trains, evaluates and reports; the exit code."""
    validate(config)
    workdir = Path(config.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    if config.compile_cache:
        jax.config.update("jax_compilation_cache_dir", config.compile_cache)
    with Watchdog(config.faults, workdir / "stacks") as watchdog:
        try:
            code = _train(config, workdir, watchdog)
            with watchdog.phase("waiting for the others at the end"):
                # One that leaves goes silent, which the others would take for its loss.
                processes.meet("the end", config.faults.meet_seconds)
            return code
        except Exception as error:
            if processes.several():
                watchdog.failed(error)  # does not return
            raise


def train_and_leave(config: Config) -> int:
    """`train` as the last thing that a process does: where XLA still compiles for later steps, which cannot be
    interrupted and which Python would wait for, the process ends here."""
    code = 1
    try:
        code = train(config)
    except BaseException:
        if compiling.unfinished():
            traceback.print_exc()
        raise
    finally:
        if compiling.unfinished():
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return code


def _train(config: Config, workdir: Path, watchdog: Watchdog) -> int:
    """The run, top to bottom."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(_only_one(workdir))
        limit = config.faults.meet_seconds
        processes.agree("configuration and code", agreement.facts(config), limit)
        clock = Clock(workdir)
        checkpoints = stack.enter_context(Checkpoints(workdir, config))
        if checkpoints.latest == config.num_steps and (workdir / "evaluation.json").is_file():
            _say(f"{config.name} is done: {config.num_steps} steps. Results: {workdir}/report.html")
            return 0
        ledger = Ledger(workdir)

        # Mesh, model, data
        mesh = sharding.make_mesh(config.mesh)
        sharding.check_batch_size(mesh, config.data.batch_size, config.accumulate)
        model = build(config.model)
        data = open_data(config)
        stack.callback(data.batches.close)
        processes.agree("data", {"records and tokenizer": data.fingerprint}, limit)
        if jax.process_index() == 0:
            continues = checkpoints.latest is not None
            agreement.check_same_data(workdir, data.fingerprint, continues=continues)
            (workdir / "config.json").write_text(to_json(config))
            kept_files.keep(workdir, config)
        devices = f"{mesh.size} {jax.devices()[0].device_kind} devices, mesh {dict(mesh.shape)}"
        _say(f"training {config.name} in {workdir} on {devices}")

        # The step compiles while the state is made: fresh, or where the run was stopped
        like = states.abstract(model, config, mesh)
        batch = collate.batch_shapes(config.data, config.data.batch_size)
        compilation = stack.enter_context(
            Compilation(model, config, like, batch, data.class_ids, data.class_valid)
        )
        state = _start(model, config, like, checkpoints, data, compilation)
        checkpoints.check_room(state.trainable, state.opt_state)
        first_step = int(state.step)
        clock.goes_on("start", first_step)
        names = vocabulary(model, states.merge(state), config, data.class_ids, data.class_valid)
        scoring = evaluator.Evaluator(model, config, watchdog.alive)

        # Loop
        stop = stack.enter_context(_stop_requested())
        writer = stack.enter_context(Writer(workdir, first_step))
        if first_step < config.num_steps:

            def evaluate(state: states.TrainState, folder: Path) -> dict[str, float]:
                return scoring.run(evaluation_params(state, mesh), workdir=folder)

            loop = Loop(
                config=config,
                mesh=mesh,
                batches=data.batches,
                names=names,
                compilation=compilation,
                evaluate=evaluate,
                checkpoints=checkpoints,
                ledger=ledger,
                clock=clock,
                writer=writer,
                watchdog=watchdog,
                say=_say,
            )
            state = loop.run(state, stop)
            with clock.spend("checkpoint"):
                checkpoints.wait()
            ledger.write()
            if int(state.step) < config.num_steps:
                clock.row(int(state.step))
                saved = (
                    f"saved at step {state.step}"
                    if int(state.step) > first_step
                    else "no step was taken"
                )
                _say(f"told to stop: {saved}; the same command continues.")
                return EXIT_STOPPED

        # Evaluation
        clock.row(config.num_steps)
        with watchdog.phase("evaluating"), clock.spend("evaluation"):
            numbers = scoring.run(evaluation_params(state, mesh), workdir=workdir)
            ledger.write()
        clock.row(config.num_steps)
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
    return Data(batches, ids, valid, agreement.data_fingerprint(config.data))


def evaluation_params(state: states.TrainState, mesh: Mesh) -> dict:
    """All parameters, whole on every device: evaluation does not split them."""
    return jax.device_put(states.merge(state), sharding.replicated(mesh))


def _start(
    model: SEEM,
    config: Config,
    like: states.TrainState,
    checkpoints: Checkpoints,
    data: Data,
    compilation: Compilation,
) -> states.TrainState:
    """The state that the run goes on from. The compilation begins as early as it does no harm."""
    if checkpoints.latest is not None:
        if checkpoints.latest < config.num_steps:
            compilation.begin(checkpoints.latest + 1)
        return _restored(like, checkpoints, data)
    _say("initialising ...", end=" ")
    begin = time.perf_counter()
    # Traced before the step is: two threads of Python take longer than one after the other.
    create = states.creation(model, config, like)
    compilation.begin(1)
    state = create(jax.random.key(config.seed))
    learning, resting = map(states.num_parameters, (state.trainable, state.frozen))
    _say(
        f"took {time.perf_counter() - begin:.0f} s: {learning / 1e6:.2f} M parameters"
        f" learn, {resting / 1e6:.2f} M are frozen"
    )
    if config.start_from:
        state = _with_starting_weights(state, config)
    checkpoints.save_frozen(state.frozen)
    return state


def _restored(like: states.TrainState, checkpoints: Checkpoints, data: Data) -> states.TrainState:
    trainable, opt_state, frozen = checkpoints.restore(
        like.trainable, like.opt_state, like.frozen, data.batches
    )
    _say(f"continuing from the checkpoint of step {checkpoints.latest}")
    step = jax.device_put(np.int32(checkpoints.latest), like.step.sharding)
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
    seconds = goodput.summary(workdir)
    numbers |= {f"goodput/{kind}_seconds": value for kind, value in seconds.items()}
    report.write(workdir, config, numbers)
    for name, value in sorted(numbers.items()):
        _say(f"  {name:40s} {value:12.2f}")
    _say(goodput.sentence(seconds))
    _say(f"numbers:  {workdir / 'evaluation.json'}\nreport:   {workdir / 'report.html'}")


@contextlib.contextmanager
def _only_one(workdir: Path) -> Iterator[None]:
    """Holds WORKDIR/lock. ValueError when another process has it, before any device is touched."""
    if processes.number() != 0:
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
    """Trains as the flags say, or plans with --dry_run. Returns an exit code of the module docstring."""
    if len(argv) > 1:
        raise app.UsageError(
            f"unknown arguments {argv[1:]}; values are given as --config.FIELD=VALUE"
        )
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # Orbax reports every file otherwise
    config = CONFIG.value
    join_processes()
    if WORKDIR.value:
        config.workdir = WORKDIR.value
    if DRY_RUN.value:
        validate(config)
        count = NUM_DEVICES.value or jax.device_count()
        kind = DEVICE_KIND.value or jax.devices()[0].device_kind
        _say("\n".join(plan(config, count, kind, STEP_SECONDS.value)))
        return 0
    return train_and_leave(config)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    run_program(main)
