"""python -m tests.fake_watch PROCESS TOTAL PORT FAULT: a process of a run without a model, watched.

All meet in each step, as in a collective. FAULT comes in process 1 at step 5: "none", "sleep", "error",
"differs" (it starts with another configuration). Tests send signals for the others.
"""

import os
import sys
import tempfile
import time

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=1"
import tests.conftest  # noqa: F401, I001 - sets the environment before JAX is imported

import jax

from seem_jax import processes
from seem_jax.config import FaultsConfig
from seem_jax.training.watchdog import Watchdog
from tests.fakes import tiny_config

LIMITS = FaultsConfig(stall_seconds=6, phase_seconds=30, lost_seconds=6, meet_seconds=20)


def sleeps_for_ever():
    time.sleep(1000)


def steps(watchdog, process, fault):
    for step in range(10_000):
        watchdog.beat(f"data of step {step}")
        if step == 5 and process == 1 and fault == "sleep":
            sleeps_for_ever()
        if step == 5 and process == 1 and fault == "error":
            raise ValueError("record 17 is bad")
        watchdog.beat(f"step {step}")
        processes.meet(f"step {step}", 600)
        print(f"step {step}", flush=True)
        time.sleep(0.05)


def main(process, total, port, fault):
    if total > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", total, process)
    with Watchdog(LIMITS, tempfile.mkdtemp()) as watchdog:
        try:
            rate = 0.1 + (fault == "differs" and process == 1)
            processes.agree("start", {"config.seed": tiny_config().seed, "rate": rate}, 20)
            steps(watchdog, process, fault)
        except Exception as error:
            watchdog.failed(error)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), sys.argv[4])
