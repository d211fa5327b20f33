"""What a configuration costs: python -m seem_jax.benchmark --suite=operations --config=configs/focalt.py

Without --config it is configs/focalt.py, the official size. Prints a flat dictionary,
`<suite>/<figure>`; --json=FILE keeps it. Suites:

    operations  operation counts and bytes of every part, by the compiler; runs nothing
    forward     encoding an image, and all segments with their names
    click       a click on an encoded image: p50 and p95
    round       a simulated round of training with the click that follows
    train_step  a whole training step
    kernels     every implementation of every kernel, for the choice of the fastest
    compile     tracing, compiling cold and from the cache, size of the programs
    checkpoint  saving and restoring the state of training
    interactive interactive evaluation, at once against a loop
    data        images a second of the input pipeline

The same command runs on CPU, GPU and TPU; numbers of half precision take
--config.model.dtype=bfloat16. Times stand beside the rate of a plain matrix product measured in the
same run. Several suites, sizes and batches in one run: --suite=forward,click --batch=1,8,32.
"""

from __future__ import annotations

import contextlib
import json
import platform
import time
from pathlib import Path

import jax
from absl import app, flags

from configs import focalt
from seem_jax.benchmark import (
    checkpoint,
    compiling,
    data,
    interactive,
    kernels,
    operations,
    timing,
)
from seem_jax.benchmark.clock import Budget
from seem_jax.config import Config
from seem_jax.config_checks import validate
from seem_jax.config_flag import CONFIG, run_program
from seem_jax.training.ledger import peak_bytes, peak_device_bytes

SUITES = {
    "operations": lambda config, budget: operations.run(config),
    "forward": timing.forward,
    "click": timing.click,
    "round": timing.one_round,
    "train_step": timing.train_step,
    "kernels": kernels.run,
    "compile": compiling.run,
    "checkpoint": lambda config, budget: checkpoint.run(config),
    "interactive": lambda config, budget: interactive.run(config),
    "data": lambda config, budget: data.run(config),
}

SUITE = flags.DEFINE_list("suite", ["operations"], f"What to measure, of {', '.join(SUITES)}.")
JSON = flags.DEFINE_string("json", None, "File to write the figures to.")
BATCH = flags.DEFINE_list("batch", ["1"], "Batch sizes of forward and train_step.")
SECONDS = flags.DEFINE_float("seconds", 10.0, "For how long each figure is measured.")
PROFILE = flags.DEFINE_string("profile", None, "Folder for a profile of the suites that run.")


def main(argv: list[str]) -> None:
    """Runs the suites of --suite and prints their figures."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}; see --help")
    config = CONFIG.value or focalt.get_config()
    validate(config)
    unknown = sorted(set(SUITE.value) - set(SUITES))
    if unknown:
        raise app.UsageError(f"--suite={','.join(unknown)}: choose from {sorted(SUITES)}.")
    batches = [batch for batch in BATCH.value if batch.isdigit() and int(batch) > 0]
    if batches != BATCH.value:
        raise app.UsageError(f"--batch={','.join(BATCH.value)}: expected positive numbers.")
    budget = Budget(seconds=SECONDS.value, batches=tuple(map(int, batches)))
    profile = jax.profiler.trace(PROFILE.value) if PROFILE.value else contextlib.nullcontext()
    with profile:
        figures = _run(config, budget)
    for name, value in figures.items():
        print(f"  {name:56s} {value:16,.3f}")
    if JSON.value:
        target = Path(JSON.value)
        aside = target.with_name(target.name + ".tmp")
        aside.write_text(json.dumps({**_machine(), **figures}, indent=2) + "\n")
        aside.replace(target)


def _run(config: Config, budget: Budget) -> dict[str, float]:
    print("  ".join(f"{name} {value}" for name, value in _machine().items()), flush=True)
    figures: dict[str, float] = {}
    for name in SUITE.value:
        begin = time.perf_counter()
        figures |= SUITES[name](config, budget)
        figures[f"{name}/peak_bytes"] = float(peak_device_bytes() or peak_bytes())
        print(f"suite {name} of {config.name} took {time.perf_counter() - begin:.0f} s", flush=True)
    return figures


def _machine() -> dict[str, str]:
    device = jax.devices()[0]
    return {
        "machine/device": f"{len(jax.devices())} x {device.device_kind} ({device.platform})",
        "machine/versions": f"python {platform.python_version()}, jax {jax.__version__}",
    }


if __name__ == "__main__":
    run_program(main)
