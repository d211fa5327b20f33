"""python -m tests.fake_train WORKDIR [POISONED_STEP [NUM_STEPS [CHECKPOINT_EVERY]]]: a real run.

On fake batches, one process on one device, as a child of the tests that kill it. The batch of the
poisoned step (0: none) has labels beyond the last class; reading there gives NaN.
"""

import os
import sys
import time

# One device, and little optimisation, since compiling takes longer than training here.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0"
)
import tests.conftest  # noqa: I001 - sets the environment before JAX is imported

import jax

from seem_jax import train
from seem_jax.evaluation import evaluator
from tests import fakes

NUM_STEPS = 8


class FakeBatches:
    """Batch number i is fake_batch(seed=i); the state is the number of the next one."""

    def __init__(self, config, poisoned):
        self.config, self.poisoned, self.number = config, poisoned, 0
        self.dropped = {"objects": 0}

    def __next__(self):
        self.number += 1
        time.sleep(0.3)  # long enough to save and to be told something
        batch = fakes.fake_batch(self.config, self.config.data.batch_size, seed=self.number)
        if self.number == self.poisoned:
            batch.objects.label[0] = 1000
        return batch.replace(sample_id=batch.sample_id + 100 * self.number)

    def get_state(self):
        return {"number": self.number}

    def set_state(self, state):
        self.number = state["number"]

    def close(self):
        pass


class FakeEvaluator:
    def __init__(self, model, config, alive):
        pass

    def run(self, params, *, workdir):
        total = sum(float(abs(leaf).sum()) for leaf in jax.tree.leaves(params))
        return {"panoptic/pq": total}


def fake_config(workdir, num_steps, every):
    config = fakes.tiny_config()
    config.workdir = str(workdir)
    config.num_steps, config.checkpoint_every = num_steps, every
    config.encoder_steps = min(3, num_steps - 1)  # so that a run has both programs
    config.model.decoder.num_layers, config.max_rounds = 1, 1  # half the time of a start
    config.compile_cache = str(tests.conftest.CACHE)
    return config


def main(workdir, poisoned=0, num_steps=NUM_STEPS, every=2):
    train.open_data = lambda config: train.Data(
        FakeBatches(config, poisoned), *fakes.class_token_ids(config)
    )
    evaluator.Evaluator = FakeEvaluator
    return train.train_and_leave(fake_config(workdir, num_steps, every))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], *map(int, sys.argv[2:])))
