"""What all processes of a run, and all of its starts, must have in common, as facts to be compared."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
from importlib import metadata
from pathlib import Path

import jax

import seem_jax
from seem_jax.config import Config, DataConfig
from seem_jax.data import sources

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
MAY_DIFFER = ("config.compile_cache",)  # a folder of the host
SAMPLED = 16  # records of a split whose bytes are compared


def facts(config: Config) -> dict[str, object]:
    """Name -> value: every field of the configuration, code, versions and kind of device."""
    found = {
        f"config.{name}": value
        for name, value in _flat(dataclasses.asdict(config))
        if f"config.{name}" not in MAY_DIFFER
    }
    versions = {f"version of {name}": metadata.version(name) for name in PACKAGES}
    return (
        found
        | versions
        | {
            "version of python": platform.python_version(),
            "code of seem_jax": code_fingerprint(),
            "kind of device": jax.local_devices()[0].device_kind,
        }
    )


def code_fingerprint() -> str:
    """Of every Python file of this package."""
    root, total = Path(seem_jax.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        total.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return total.hexdigest()[:16]


def data_fingerprint(config: DataConfig) -> str:
    """Of the training records: sizes and lengths of all, the bytes of some of each split, the names of
    the classes; and of the tokenizer."""
    total = hashlib.sha256(Path(config.tokenizer).read_bytes())
    for split in sources.open_training(config):
        total.update(repr((split.name, split.split, split.class_names)).encode())
        for index in split.source.index:
            total.update(index.tobytes())
        step = max(len(split) // SAMPLED, 1)
        for item in range(0, len(split), step):
            total.update(split.source[item])
    return total.hexdigest()[:16]


def check_same_data(workdir: Path, fingerprint: str, *, continues: bool) -> None:
    """Keeps `data_fingerprint` in WORKDIR/data.json. ValueError where a run that continues began with
    other data: its position in them would mean other samples, and the token ids other words."""
    path = workdir / "data.json"
    if continues and path.is_file():
        before = json.loads(path.read_text())["records and tokenizer"]
        if before != fingerprint:
            raise ValueError(
                f"the training records, their class names or the tokenizer are not those that the run in "
                f"{workdir} began with (fingerprint {fingerprint}, then {before}). Put those back, or "
                f"train on these in a new folder: --workdir=NEW --config.start_from={workdir}"
            )
        return
    aside = path.with_suffix(f".{os.getpid()}.tmp")
    aside.write_text(json.dumps({"records and tokenizer": fingerprint}))
    os.replace(aside, path)


def _flat(tree: dict, prefix: str = "") -> list[tuple[str, object]]:
    return [
        pair
        for name, value in tree.items()
        for pair in (
            _flat(value, f"{prefix}{name}.")
            if isinstance(value, dict)
            else [(prefix + name, value)]
        )
    ]
