"""What checkpoints cost: python -m seem_jax.benchmark --suite=checkpoint --config=configs/focalt.py

Saves the whole state of a configuration (add --config.optimizer.frozen=() to have moments of all
parameters) three times into a temporary folder below config.workdir, as training does, with random
numbers that no compression makes smaller. The stall is how long a save keeps the training loop: until
`save` has returned and a program that uses the state up, as the next step does, has run, less the time
of that program without a save. What writes the files runs beside the next steps. It is compared with a
plain copy of the state in memory.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seem_jax import sharding
from seem_jax.checkpoint import Checkpoints
from seem_jax.config import Config
from seem_jax.models.seem import build
from seem_jax.training import state as states

SAVES = 3


class _NoData:
    """The place in the data is one number."""

    def get_state(self) -> dict[str, int]:
        return {"step": 0}


def run(config: Config) -> dict[str, float]:
    """Seconds and bytes of saving and restoring; the worst of SAVES saves."""
    mesh = sharding.make_mesh(config.mesh)
    wanted = states.abstract(build(config.model), config, mesh)
    trees = (wanted.trainable, wanted.opt_state)
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda x: _random(rng, x), trees)
    Path(config.workdir).mkdir(parents=True, exist_ok=True)
    folder = tempfile.mkdtemp(prefix="checkpoint_benchmark_", dir=config.workdir)
    try:
        return _figures(folder, config, state, trees)
    finally:
        shutil.rmtree(folder)


def _figures(folder: str, config: Config, state: Any, wanted: Any) -> dict[str, float]:
    copies, stalls, writes = [], [], []
    next_step = jax.jit(lambda tree: jax.tree.map(jnp.negative, tree), donate_argnums=0)
    state = jax.block_until_ready(next_step(state))
    with Checkpoints(folder, config) as checkpoints:
        checkpoints.prepare(*state)  # as the training loop does
        for step in range(1, SAVES + 1):
            begin = time.perf_counter()
            state = jax.block_until_ready(next_step(state))
            alone = time.perf_counter() - begin
            begin = time.perf_counter()
            jax.tree.map(lambda x: np.array(x, copy=True), state)
            copied = time.perf_counter()
            checkpoints.save(step, *state, _NoData())
            state = jax.block_until_ready(next_step(state))
            saved = time.perf_counter() - alone
            checkpoints.wait()
            copies.append(copied - begin)
            stalls.append(saved - copied)
            writes.append(time.perf_counter() - alone - saved)
        begin = time.perf_counter()
        checkpoints.restore(*wanted, None, None)
        restored = time.perf_counter() - begin
    beyond = [stall - copy for stall, copy in zip(stalls, copies, strict=True)]
    return {
        "checkpoint/gib": sum(x.nbytes for x in jax.tree.leaves(state)) / 2**30,
        "checkpoint/copy_seconds": max(copies),
        "checkpoint/stall_seconds": max(stalls),
        "checkpoint/stall_beyond_copy_seconds": max(beyond),
        "checkpoint/background_seconds": max(writes),
        "checkpoint/restore_seconds": restored,
    }


def _random(rng: np.random.Generator, like: jax.ShapeDtypeStruct) -> jax.Array:
    value = rng.standard_normal(like.shape, np.float32).astype(like.dtype)
    return jax.device_put(value, like.sharding)
