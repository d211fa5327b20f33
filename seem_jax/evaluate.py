"""Evaluates a trained run: a checkpoint in, scores, picture sheets and a report out.

    python -m seem_jax.evaluate --checkpoint=runs/shapes --output=runs/shapes/again
    python -m seem_jax.evaluate --checkpoint=runs/shapes --output=out --config=configs/shapes.py \
        --config.evaluation.max_images=100

Without --config everything is as the run was configured; with it, the model must be the same and
data and evaluation are those of the file.
"""

from __future__ import annotations

import dataclasses
import sys

import jax
from absl import app, flags

from seem_jax import checkpoint
from seem_jax.config import Config, validate
from seem_jax.config_flag import CONFIG
from seem_jax.evaluation import evaluator, report
from seem_jax.models.seem import build

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "work folder of a training run", required=True)
OUTPUT = flags.DEFINE_string("output", None, "folder for the results", required=True)
STEP = flags.DEFINE_integer("step", None, "step of the checkpoint; the newest good one if absent")


def evaluate(run: str, output: str, config: Config | None, step: int | None) -> dict[str, float]:
    """The scores of a checkpoint; writes evaluation.json, report.html and pictures to `output`.

    Raises ValueError where there is no sound checkpoint or its model is not the one of `config`.
    """
    params, saved = checkpoint.restore_params(run, step)
    config = config or saved
    validate(config)
    given, trained = (dataclasses.asdict(c.model) for c in (config, saved))
    different = sorted(part for part in trained if given[part] != trained[part])
    if different:
        raise ValueError(
            f"the checkpoint in {run} has another model than --config: config.model."
            f"{', config.model.'.join(different)} differ. Give the configuration of the run, or none."
        )
    if config.compile_cache:
        jax.config.update("jax_compilation_cache_dir", config.compile_cache)
    numbers = evaluator.run(build(config.model), params, config, workdir=output)
    report.write(output, config, numbers)
    return numbers


def main(argv: list[str]) -> int:
    if argv[1:]:
        raise app.UsageError(f"unknown arguments {argv[1:]}")
    try:
        numbers = evaluate(CHECKPOINT.value, OUTPUT.value, CONFIG.value, STEP.value)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, value in sorted(numbers.items()):
        print(f"  {name:40s} {value:8.2f}")
    print(f"report: {OUTPUT.value}/report.html")
    return 0


if __name__ == "__main__":
    app.run(main)
