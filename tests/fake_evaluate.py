"""Evaluates the oracle of test_evaluator.py in one of several processes; a program of its own.

python -m tests.fake_evaluate WORKDIR NUM_PROCESSES PROCESS PORT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

from seem_jax.evaluation import evaluator
from seem_jax.evaluation.tasks import base
from tests import test_evaluator
from tests.fakes import tiny_config


def main(workdir: str, num_processes: str, process: str, port: str) -> None:
    if int(num_processes) > 1:
        jax.distributed.initialize(f"localhost:{port}", int(num_processes), int(process))
    shapes = [(64, 64), (32, 64), (32, 32), (64, 32), (64, 64), (32, 64), (64, 64)]
    records = [test_evaluator.record(k, *size, 8) for k, size in enumerate(shapes)]
    base.catalog.open_split = lambda root, name: test_evaluator.FakeSplit(records)
    base.Tokenizer = test_evaluator.FakeTokenizer
    config = tiny_config()
    config.evaluation.max_images = 0
    config.evaluation.tasks = ("panoptic", "referring")
    params = {"logit_scale": jnp.float32(4.0)}
    numbers = evaluator.run(test_evaluator.Oracle(), params, config, workdir=workdir)
    (Path(workdir) / f"numbers{process}.json").write_text(json.dumps(numbers))


if __name__ == "__main__":
    main(*sys.argv[1:])
