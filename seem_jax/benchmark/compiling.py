"""Suite `compile`: seconds to trace and to compile each program, cold and from the cache; its size."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator

import jax
from jax.experimental.compilation_cache import compilation_cache

from seem_jax import sharding
from seem_jax.benchmark.clock import Budget
from seem_jax.benchmark.operations import CLICK_POINTS
from seem_jax.benchmark.programs import Program, parts
from seem_jax.config import Config
from seem_jax.training import state as states

SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


def run(config: Config, budget: Budget) -> dict[str, float]:
    """Figures of encoding, a click, the initialisation and the training step; budget is not used."""
    measured = parts(config)
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, own_cache(folder), sharding.use(measured.mesh):
        for name, program in {
            "encode": measured.encode(),
            "click": measured.click(min(CLICK_POINTS)),
            "train_step": measured.train_step(rounds=True, batch=config.data.batch_size),
        }.items():
            found |= _figures(name, program)
        begin = time.perf_counter()
        state = states.create(measured.model, measured.config, measured.mesh, jax.random.key(0))
        jax.block_until_ready(state)
        found["compile/initialise/cold_s"] = time.perf_counter() - begin
    return found


def _figures(name: str, program: Program) -> dict[str, float]:
    def once():
        function = program.function
        function = function if hasattr(function, "lower") else jax.jit(function)
        jax.clear_caches()
        begin = time.perf_counter()
        lowered = function.lower(*program.arguments)
        traced = time.perf_counter()
        lowered.compile()
        return traced - begin, time.perf_counter() - traced, lowered.as_text().count("\n")

    trace, cold, lines = once()
    _, warm, _ = once()
    return {
        f"compile/{name}/trace_s": trace,
        f"compile/{name}/cold_s": cold,
        f"compile/{name}/warm_s": warm,
        f"compile/{name}/lines": lines,
    }


@contextlib.contextmanager
def own_cache(folder: str) -> Iterator[None]:
    """A compile cache of this run alone, which holds every program."""
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    for name, value in zip(SETTINGS, (folder, 0.0, 0), strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
