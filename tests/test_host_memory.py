"""Programs keep the memory that they free; users who set up malloc themselves are left alone."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Large blocks come and go, as the temporaries of a compiled program do.
TURNS = """
import ctypes, resource
from seem_jax.host_memory import keep_freed_memory
print(keep_freed_memory())
libc, size = ctypes.CDLL(None), 48 << 20
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    block = libc.malloc(ctypes.c_size_t(size))
    ctypes.memset(block, 1, size)
    libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(**environment):
    """(whether memory is kept, page faults of ten blocks)."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", TURNS],
        cwd=ROOT,
        env=clean | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    kept, count = done.stdout.split()
    return kept == "True", int(count)


def test_a_block_is_cleared_once_and_not_each_time():
    kept, count = faults()
    if not kept:
        pytest.skip("malloc here is not that of glibc")
    pages = (48 << 20) // resource.getpagesize()
    assert count < 2 * pages  # ten times the pages when each block is mapped anew


def test_a_malloc_that_was_set_up_is_left_alone():
    assert not faults(MALLOC_ARENA_MAX="2")[0]
    assert not faults(GLIBC_TUNABLES="glibc.malloc.arena_max=2")[0]
