"""What a folder of arrays must hold: a hash of every file, and of every array as it was in memory.

Written last, beside the files, as manifest.json: {"files": {name: SHA-256}, "leaves": {path: 16 hex
digits}, "digest": SHA-256 of the two before}. The hashes of files find what happened on the disk; those
of leaves also what happened before and after, and they do not depend on how an array is split over
devices, so a restore onto another mesh is checked too.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

NAME = "manifest.json"
WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint32}  # by bytes of an element
SEEDS = (0x9E3779B9, 0x7F4A7C15)


def write(path: Path, leaves: dict[str, str]) -> None:
    """Seals a folder. `leaves` come from `fingerprints`."""
    content = {
        "files": {str(file.relative_to(path)): _sha256(file) for file in _files(path)},
        "leaves": leaves,
    }
    temporary = path / (NAME + ".tmp")
    temporary.write_text(json.dumps({**content, "digest": _digest(content)}, indent=1))
    os.replace(temporary, path / NAME)


def problem(path: Path) -> str | None:
    """What is wrong with a sealed folder, or None: every file is as it was written."""
    try:
        found = json.loads((path / NAME).read_text())
        digest = found.pop("digest") if "digest" in found else None
    except (OSError, ValueError, AttributeError):
        return f"{path} has no readable {NAME}: saving it did not finish, or the file was changed"
    # Manifests of before had neither leaves nor a digest: a flat dictionary of files.
    if digest is not None and digest != _digest(found):
        return f"{path / NAME} was changed after it was written (its digest differs)"
    wanted = found if digest is None else found["files"]
    present = {str(file.relative_to(path)) for file in _files(path)}
    for name in sorted(set(wanted) | present):
        if name not in present:
            return f"{path / name} is missing"
        if name not in wanted:
            return f"{path / name} does not belong there"
        if _sha256(path / name) != wanted[name]:
            return f"{path / name} was changed after it was written (SHA-256 differs)"
    return None


def leaves(path: Path) -> dict[str, str]:
    """The hashes of the arrays in a sealed folder; none in one of before there were any."""
    return json.loads((path / NAME).read_text()).get("leaves", {})


def differing(wanted: dict[str, str], trees: dict[str, Any]) -> list[str]:
    """Paths of arrays that are not what they were when they were saved; `wanted` may know more."""
    if not wanted:
        return []
    found = fetch(fingerprints(trees))
    return [path for path, value in found.items() if wanted.get(path) != value]


def fingerprints(trees: dict[str, Any]) -> dict[str, jax.Array | np.ndarray]:
    """Path -> uint32 [2], computed where the arrays lie; an accelerator returns before they are done.

    Two sums modulo 2^32 over the bits of all elements, each times odd numbers that depend on the
    element's place. Integer sums do not depend on the order, so every mesh gives the same. One
    flipped bit changes each sum for certain, other changes with probability 1 - 2^-64.
    """
    # XLA:CPU has a thread per device: two programs at once that wait for all devices may lock up.
    on_cpu = jax.default_backend() == "cpu"
    one_by_one = on_cpu and jax.device_count() > 1
    # For each shape XLA:CPU compiles for longer than NumPy sums up the arrays of a whole small model.
    sums_of = _sums_by_numpy if on_cpu and not one_by_one else _sums
    prints = {}
    for path, x in jax.tree_util.tree_leaves_with_path(trees):
        sums = sums_of(x)
        prints[jax.tree_util.keystr(path, simple=True, separator="/")] = sums
        if one_by_one:
            jax.block_until_ready(sums)
    return prints


def fetch(prints: dict[str, jax.Array | np.ndarray]) -> dict[str, str]:
    """The fingerprints as text, once they are done."""
    values = {
        path: x if isinstance(x, np.ndarray) else np.asarray(x.addressable_data(0))
        for path, x in prints.items()
    }
    return {path: f"{a:08x}{b:08x}" for path, (a, b) in values.items()}


@jax.jit
def _sums(x: jax.Array) -> jax.Array:
    bits = x.astype(jnp.uint8)
    if x.dtype != jnp.bool_:
        bits = jax.lax.bitcast_convert_type(x, WORDS[x.dtype.itemsize])
    bits = bits.astype(jnp.uint32)
    place = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):  # the linear index, without a reshape across devices
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    return jnp.stack([_sum(bits, place, seed) for seed in SEEDS])


def _sums_by_numpy(x: jax.Array) -> np.ndarray:
    """`_sums` of an array that lies whole in the memory of this process."""
    held = np.asarray(x)
    bits = np.ascontiguousarray(held).reshape(-1).view(WORDS[held.dtype.itemsize])
    place = np.arange(bits.size, dtype=np.uint32)
    return np.stack([_sum(bits.astype(np.uint32), place, seed) for seed in SEEDS])


def _sum(bits, place, seed):
    """uint32 [], for arrays of JAX or NumPy."""
    odd = _mixed(place + np.uint32(seed)) | np.uint32(1)
    return (bits * odd).sum(dtype=np.uint32)


def _mixed(x):
    """The finaliser of MurmurHash3 (Appleby, public domain): neighbours get unlike numbers."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))


def _digest(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _files(path: Path) -> list[Path]:
    return sorted(f for f in path.rglob("*") if f.is_file() and not f.name.startswith(NAME))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
