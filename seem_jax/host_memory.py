"""How this process gets its memory from the operating system. Programs call this at their start."""

from __future__ import annotations

import ctypes
import os
import sys

# Numbers of glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
_TOP_PAD_BYTES = 64 << 20


def keep_freed_memory() -> bool:
    """Lets malloc keep what is freed for the next step; whether it does so now.

    Left alone, glibc maps every large temporary of a program anew and gives it back at the end of the
    step. The kernel then clears those pages again and again: 40,000 page faults and a tenth to a fifth of
    the processor time in a training step of configs/shapes.py. Nothing but time changes. Does nothing
    where malloc is not glibc's, or where the user has set it up (MALLOC_ARENA_MAX, GLIBC_TUNABLES).
    """
    if not sys.platform.startswith("linux"):
        return False
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    # Memory of the one arena that grows in place is reused whatever its size; mapped blocks are not.
    wanted = {
        _ARENA_MAX: 1,
        _MMAP_MAX: 0,
        _TRIM_THRESHOLD: 2**31 - 1,
        _TOP_PAD: _TOP_PAD_BYTES,
    }
    taken = [mallopt(option, value) for option, value in wanted.items()]
    return all(taken)
