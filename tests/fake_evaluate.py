"""Evaluates an untrained model in one of several processes; a program of its own.

python -m tests.fake_evaluate WORKDIR NUM_PROCESSES PROCESS PORT
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import jax

from seem_jax.evaluation import evaluator
from seem_jax.evaluation.tasks import base
from tests import evaluation_support
from tests.fakes import tiny_config

TASKS = ("panoptic", "referring", "interactive", "video")
SEQUENCES = {"a": (3, (64, 64)), "b": (3, (32, 64)), "c": (4, (64, 64))}  # frames and their size


def main(workdir: str, num_processes: str, process: str, port: str) -> None:
    if int(num_processes) > 1:
        jax.distributed.initialize(f"localhost:{port}", int(num_processes), int(process))
    frames = [(name, *size) for name, (n, size) in SEQUENCES.items() for _ in range(n)]
    records = [
        dataclasses.replace(evaluation_support.record(k, *size, 8), sequence=name, frame=k)
        for k, (name, *size) in enumerate(frames)
    ]
    base.catalog.open_split = lambda root, name: evaluation_support.FakeSplit(records)
    base.Tokenizer = evaluation_support.FakeTokenizer
    config = evaluation_support.only(tiny_config(), *TASKS, max_images=0, max_clicks=3)
    config.data.referring_unseen_eval = ""
    config.evaluation.object_threshold = 0.0  # an untrained model is never sure
    model, params = evaluation_support.untrained(config)
    numbers = evaluator.run(model, params, config, workdir=workdir)
    (Path(workdir) / f"numbers{process}.json").write_text(json.dumps(numbers))


if __name__ == "__main__":
    main(*sys.argv[1:])
