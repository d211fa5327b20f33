"""python -m tests.fake_cluster WORKDIR PROCESS_ID NUM_PROCESSES PORT DEVICES [STEPS [STUCK]]

One process of a real training run of a tiny model over the records of pipeline_support, on DEVICES forced
CPU devices in each process, on a mesh that splits parameters and batches. Prints the samples of each step.
STUCK = "1:4": process 1 sleeps for ever in place of reading the batch that is its fourth of this start.
"""

import os
import sys
import time

os.environ["XLA_FLAGS"] = (
    f"--xla_force_host_platform_device_count={sys.argv[5]} --xla_backend_optimization_level=0"
)
import tests.conftest  # noqa: I001 - sets the environment before JAX is imported

import jax

from seem_jax import train
from seem_jax.config import FaultsConfig, MeshConfig
from seem_jax.data import pipeline
from seem_jax.evaluation import evaluator
from tests import fakes, pipeline_support

NUM_STEPS, BATCH_SIZE = 3, 8


def configuration(workdir, num_steps):
    config = fakes.tiny_config()
    config.workdir = workdir
    config.num_steps = num_steps
    config.checkpoint_every = 3
    config.faults = FaultsConfig(
        stall_seconds=15, phase_seconds=1200, lost_seconds=15, meet_seconds=60
    )
    config.data.batch_size = BATCH_SIZE
    config.data.min_scale, config.data.max_scale = 0.7, 1.5
    config.model.text.vocab_size = 128  # letters
    config.model.decoder.num_layers, config.max_rounds = 1, 1  # half the time of a start
    config.mesh = MeshConfig(data=2, fsdp=-1, tensor=1)
    config.compile_cache = str(tests.conftest.CACHE)
    return config


class Told:
    """Batches that say which samples they hold, and that stop coming where they are told to."""

    stuck_at = 0
    pause = 0.0  # seconds before each batch

    def __init__(self, batches):
        self.batches, self.count = batches, 0

    def __next__(self):
        time.sleep(self.pause)
        batch = next(self.batches)
        self.count += 1
        if self.count == self.stuck_at:
            a_disk_that_never_answers()
        print("samples", *batch.sample_id, flush=True)
        return batch

    def __getattr__(self, name):
        return getattr(self.batches, name)


def a_disk_that_never_answers():
    time.sleep(3600)


class NoEvaluator:
    def __init__(self, model, config, alive):
        pass

    def run(self, params, *, workdir):
        return {}


def open_data(config):
    batches = pipeline.train_batches(
        config.data,
        pipeline_support.FakeTokenizer(),
        templates=pipeline_support.TEMPLATES,
        splits=[pipeline_support.RECORDS],
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    return train.Data(Told(batches), *fakes.class_token_ids(config))


def main(workdir, process_id, num_processes, port, devices, num_steps=NUM_STEPS, stuck=""):
    if num_processes > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", num_processes, process_id)
    if stuck and int(stuck.split(":")[0]) == process_id:
        Told.stuck_at = int(stuck.split(":")[1])
    train.open_data = open_data
    evaluator.Evaluator = NoEvaluator
    return train.train(configuration(workdir, num_steps))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], *map(int, sys.argv[2:7]), *sys.argv[7:]))
