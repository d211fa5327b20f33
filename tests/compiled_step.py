"""A training step that is traced and compiled once, and then read from a file by every start of a run.

Starting the tiny model takes mostly tracing; the tests that start one some dozens of times do without. What
runs is the same program, byte for byte.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pickle
import sys
from pathlib import Path

import jax
from jax.experimental import serialize_executable

from seem_jax import processes
from seem_jax.training import agreement
from seem_jax.training.loop import Loop

FOLDER = "SEEM_JAX_COMPILED_STEPS"  # an environment variable; where it is not set, nothing is kept
NOT_COMPILED = (
    "workdir",
    "compile_cache",
    "checkpoint_every",
    "faults",
)  # fields of the configuration


def reuse() -> None:
    """From here on, runs of this process take their step from the folder, or put it there."""
    if FOLDER in os.environ:
        Loop._compile = _compile


def _compile(loop: Loop, state: object, batch: object) -> object:
    path = Path(os.environ[FOLDER]) / f"{_key(loop.config)}.pickle"
    if not path.is_file():
        compiled = ORIGINAL(loop, state, batch)
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_bytes(pickle.dumps(serialize_executable.serialize(compiled)))
        os.replace(temporary, path)
        return compiled
    with loop.watchdog.phase("reading the training step"), loop.clock.spend("compile"):
        compiled = serialize_executable.deserialize_and_load(*pickle.loads(path.read_bytes()))
        loop.checkpoints.prepare(state.trainable, state.opt_state)
    return compiled


ORIGINAL = Loop._compile


def _key(config: object) -> str:
    """Of all that the program depends on: configuration, code, and which devices of which process."""
    fields = {k: v for k, v in dataclasses.asdict(config).items() if k not in NOT_COMPILED}
    place = (processes.number(), jax.process_count(), jax.local_device_count())
    program = sys.modules["__main__"].__spec__.name
    text = repr((program, fields, place, agreement.code_fingerprint(), os.environ["XLA_FLAGS"]))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
