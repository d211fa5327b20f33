"""Evaluates a trained run: a checkpoint in, scores, picture sheets and a report out.

    python -m seem_jax.evaluate --checkpoint=runs/shapes --output=runs/shapes/again
    python -m seem_jax.evaluate --checkpoint=runs/shapes --output=out --calibrate \
        --tasks=panoptic,instance,semantic,referring,interactive,video
    python -m seem_jax.evaluate --checkpoint=runs/shapes --output=out --config=configs/shapes.py \
        --config.evaluation.max_images=100

    python -m seem_jax.evaluate --checkpoint=runs/focalt_v1 --output=out --tasks=interactive \
        --config=configs/focalt.py --config.model.decoder.rules=official \
        --config.data.interactive_eval=voc:val --config.evaluation.voc_grey_ids=True

Where the official evaluation and common practice differ, fields of config.evaluation choose a side
(seem_jax/config.py); each choice stands in the protocol of the result, and equal protocol hashes mean
numbers that may be compared. configs/focalt.py has the official test sizes and sides.

Without --config everything is as the run was configured; with it, the model must be the same and
data and evaluation are those of the file; the tokenizer is the one beside the checkpoint. The results
of each sample go to OUTPUT/samples; the same command after a kill goes on where it stopped. Several
hosts: start the same command on each with --distributed (see seem_jax/train.py); each answers its share
of the samples.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

import jax
from absl import app, flags, logging

from seem_jax import checkpoint, kept_files
from seem_jax.config import Config
from seem_jax.config_checks import validate
from seem_jax.config_flag import CONFIG, join_processes, run_program
from seem_jax.evaluation import evaluator, report
from seem_jax.models.seem import build

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "work folder of a training run", required=True)
OUTPUT = flags.DEFINE_string("output", None, "folder for the results", required=True)
TASKS = flags.DEFINE_list(
    "tasks", None, f"of {', '.join(evaluator.TASKS)}; as configured if absent"
)
CALIBRATE = flags.DEFINE_bool("calibrate", False, "fit a temperature of the class scores")
STEP = flags.DEFINE_integer("step", None, "step of the checkpoint; the newest good one if absent")


def evaluate(
    run: str,
    output: str,
    config: Config | None,
    step: int | None,
    *,
    tasks: Sequence[str] | None = None,
    calibrate: bool = False,
) -> dict[str, float]:
    """The scores of a checkpoint; writes evaluation.json, report.html, samples and pictures to
    `output`. tasks and calibrate come before those of the configuration.

    Raises ValueError where there is no sound checkpoint or its model is not the one of `config`.
    """
    params, saved = checkpoint.restore_params(run, step)
    config = config or saved
    config.data.tokenizer = str(kept_files.tokenizer(run, config))
    options = config.evaluation
    options.tasks = tuple(tasks) if tasks is not None else options.tasks
    options.calibrate = calibrate or options.calibrate
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
    if jax.process_index() == 0:
        report.write(output, config, numbers)
    return numbers


def main(argv: list[str]) -> int:
    """Evaluates as the flags say."""
    if argv[1:]:
        raise app.UsageError(f"unknown arguments {argv[1:]}")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # Orbax reports every file otherwise
    try:
        join_processes()
        numbers = evaluate(
            CHECKPOINT.value,
            OUTPUT.value,
            CONFIG.value,
            STEP.value,
            tasks=TASKS.value,
            calibrate=CALIBRATE.value,
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, value in sorted(numbers.items()):
        print(f"  {name:40s} {value:8.2f}")
    print(f"report: {OUTPUT.value}/report.html")
    return 0


if __name__ == "__main__":
    run_program(main)
