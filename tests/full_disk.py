"""python -m tests.full_disk FOLDER LIMIT...: saves that meet a full disk, in a process of their own.

Saves step 1, then once for each LIMIT tries a further step: as "free=0.4", with a disk on which only that
share of a checkpoint fits (FOLDER is then a small file system of its own), or as "file=0.4", with files
cut off at that share of the largest one, which makes writing in the background fail. Prints a line of JSON
for each: where the error came up and what it said, and the newest step that is whole afterwards.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=1"
import tests.conftest  # noqa: F401, I001 - sets the environment before JAX is imported

import jax.numpy as jnp
import numpy as np

from seem_jax.checkpoint import Checkpoints
from seem_jax.checkpoint_folder import newest_good_step
from tests.fakes import tiny_config


class Position:
    def get_state(self):
        return {"step": 1}


def trees(step):
    """About 4 MB that no compression makes smaller."""
    rng = np.random.default_rng(step)
    params = {
        f"w{i}": jnp.asarray(rng.normal(size=(256, 256)).astype(np.float32)) for i in range(8)
    }
    return params, {"mu": {name: value + 1 for name, value in params.items()}}


def size_of(path):
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def attempt(folder, step):
    """(where an error came up, its text) of a save as the training loop makes it."""
    where = "nowhere"
    try:
        with Checkpoints(folder, tiny_config()) as checkpoints:
            where = "save"
            checkpoints.save(step, *trees(step), Position())
            where = "a later step"
            for _ in range(100):
                time.sleep(0.05)
                checkpoints.poll()
            where = "exit"
        return "nowhere", ""
    except OSError as error:
        return where, str(error)


def main(folder, limits):
    folder = Path(folder)
    Checkpoints._check_space = lambda *arguments: None  # the disk fills up after that look
    first = folder / "checkpoints" / "steps" / "1"
    assert attempt(folder, 1) == ("nowhere", "")
    whole, largest = size_of(first), max(f.stat().st_size for f in first.rglob("*") if f.is_file())
    for number, limit in enumerate(limits):
        kind, share = limit.split("=")
        ballast = folder / "ballast"
        if kind == "free":
            free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
            with ballast.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, int(free - float(share) * whole))
            where, text = attempt(folder, 2 + number)
            ballast.unlink()
        else:
            before = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(float(share) * largest), before[1]))
            where, text = attempt(folder, 2 + number)
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        newest = newest_good_step(folder / "checkpoints", 1, move=True)
        print("tried", json.dumps({"limit": limit, "where": where, "text": text, "newest": newest}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
