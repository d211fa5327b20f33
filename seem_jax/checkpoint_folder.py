"""The folder of a run's checkpoints: which steps are there, which of them are whole, and whose they are."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import jax
from absl import logging

from seem_jax import manifest, processes
from seem_jax.config import Config
from seem_jax.config_files import from_json

# A run may continue with other values of these; all other fields must agree.
MAY_DIFFER = (
    "workdir",
    "compile_cache",
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "start_from",
    "may_be_fresh",
    "data.max_bad_records",
    "mesh.",
    "evaluation.",
    "faults.",
    "profile.",
    "rematerialise",
    "scan_layers",
    "useful_gflop_per_image",
    "data.panoptic_eval",
    "data.referring_eval",
    "data.referring_unseen_eval",
    "data.interactive_eval",
    "data.num_threads",
    "data.num_workers",
    "data.prefetch",
    "model.attention",
)


def newest_good_step(directory: Path, seconds: float, *, move: bool) -> int | None:
    """The newest step that is whole, or None. All processes get one answer, within `seconds`.

    `move`: damaged ones are moved aside with a warning; for the run itself only, since to others a
    step that is just being sealed looks damaged.
    """
    step = None
    if jax.process_index() == 0:
        for step in steps(directory):
            reason = manifest.problem(directory / "steps" / str(step))
            if reason is None:
                break
            if move:
                move_aside(directory, step)
            logging.warning("%s. Falling back to the checkpoint before it.", reason)
        else:
            step = None
    return json.loads(processes.from_first("newest step", json.dumps(step), seconds))


def steps(directory: Path) -> list[int]:
    """The steps in a folder of checkpoints, whole or not, newest first."""
    folder = directory / "steps"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted((int(name) for name in names if name.isdigit()), reverse=True)


def move_aside(directory: Path, step: int) -> None:
    """Puts a damaged step where nobody takes it for a good one."""
    target = directory / "damaged" / str(step)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(directory / "steps" / str(step), target)


def delete(path: Path, going: Path) -> None:
    """Renames before it deletes, so that a kill in between leaves no half of a step behind."""
    os.replace(path, going)
    shutil.rmtree(going)


def saved_config(path: Path) -> Config:
    """The configuration inside the folder of one checkpoint."""
    meta = json.loads((path / "meta" / "metadata").read_text())
    try:
        return from_json(json.dumps(meta["config"]))
    except ValueError as error:
        raise ValueError(f"the configuration in {path / 'meta'} cannot be read: {error}") from error


def check_same_config(path: Path, config: Config) -> None:
    """ValueError with what differs where a run may not continue from the checkpoint in `path`."""
    lines = differences(saved_config(path), config)
    if lines:
        raise ValueError(
            f"{path} is a checkpoint of another configuration:\n  "
            + "\n  ".join(lines)
            + "\nGive the same values, or another --workdir to start a new run."
        )


def differences(saved: Config, given: Config) -> list[str]:
    """One line per field that differs and that a run cannot change on the way."""
    old, new = _flat(dataclasses.asdict(saved)), _flat(dataclasses.asdict(given))
    return [
        f"config.{name}: checkpoint {old.get(name)!r}, now {new.get(name)!r}"
        for name in sorted(set(old) | set(new))
        if old.get(name) != new.get(name) and not name.startswith(MAY_DIFFER)
    ]


def _flat(tree: dict, prefix: str = "") -> dict[str, object]:
    out = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            out |= _flat(value, f"{prefix}{name}.")
        else:
            out[prefix + name] = value
    return out
