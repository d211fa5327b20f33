"""Suite `checkpoint`: saving the state of training, and restoring it."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import jax

from seem_jax.benchmark import inputs
from seem_jax.benchmark.clock import Budget
from seem_jax.benchmark.programs import parts
from seem_jax.checkpoint import Checkpoints
from seem_jax.config import Config
from seem_jax.training import state as states


class _Position:
    """Stands for the data pipeline, whose state is a number."""

    def get_state(self):
        return {"next_index": 1}

    def set_state(self, state) -> None:
        del state


def run(config: Config, budget: Budget) -> dict[str, float]:
    """Seconds that a step waits for a save, until it is sealed, and of restoring; budget not used."""
    measured = parts(config)
    wanted = states.abstract(measured.model, measured.config, measured.mesh)
    state = inputs.fill(wanted)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves((state.trainable, state.opt_state)))
    with tempfile.TemporaryDirectory() as folder:
        with Checkpoints(Path(folder), measured.config) as checkpoints:
            begin = time.perf_counter()
            checkpoints.save(1, state.trainable, state.opt_state, _Position())
            waited = time.perf_counter() - begin
            checkpoints.wait()
            saved = time.perf_counter() - begin
        with Checkpoints(Path(folder), measured.config) as checkpoints:
            begin = time.perf_counter()
            found = checkpoints.restore(wanted.trainable, wanted.opt_state, {}, _Position())
            jax.block_until_ready(found[:2])
            restored = time.perf_counter() - begin
    return {
        "checkpoint/bytes": float(size),
        "checkpoint/step_waits_s": waited,
        "checkpoint/sealed_s": saved,
        "checkpoint/restored_s": restored,
    }
