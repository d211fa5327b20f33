"""Checkpoints of a run: saved asynchronously, verified before they are trusted, restored onto any mesh.

    WORKDIR/checkpoints/steps/200/params/    parameters that learn (Orbax)
                                 /opt_state/
                                 /data/      state of the grain iterator
                                 /meta/      configuration, step, versions
                                 /manifest.json  SHA-256 of every file above; written last
    WORKDIR/checkpoints/frozen/              parameters that never change, saved once
    WORKDIR/checkpoints/damaged/             steps that failed verification, moved aside

Orbax restores flipped bits without a word, so a step counts only when its manifest agrees. Nothing
outside this file knows Orbax.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils

from seem_jax import config as config_lib
from seem_jax.config import Config

MANIFEST = "manifest.json"
WRITTEN_TOGETHER = (
    200 * 10**6
)  # bytes of parameters alone that are compressed and written at a time
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
    "data.panoptic_eval",
    "data.referring_eval",
    "data.referring_unseen_eval",
    "data.interactive_eval",
    "data.num_threads",
    "data.num_workers",
    "data.prefetch",
    "model.attention",
)


class Checkpoints:
    """The checkpoints of one run. A context manager: leaving it waits for the last save.

    On opening, the newest step whose files agree with its manifest is looked up; newer ones that do
    not agree are moved to checkpoints/damaged with a warning. `latest` is that step, or None.
    """

    def __init__(self, workdir: str | Path, config: Config):
        self.directory = Path(workdir).absolute() / "checkpoints"
        self.config = config
        self.latest = _newest_good_step(self.directory)
        if self.latest is not None:
            _check_same_config(self._path(self.latest), config)
        self._unsealed: int | None = None
        self._manager = ocp.CheckpointManager(
            self.directory / "steps",
            options=ocp.CheckpointManagerOptions(max_to_keep=config.keep_checkpoints),
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        try:
            self.wait()
        except OSError:
            if error is None:
                raise
            logging.exception("the last checkpoint was lost while the run was stopping")
        self._manager.close()

    def save(self, step: int, params: Any, opt_state: Any, data: Any) -> None:
        """Starts saving; returns when the arrays were copied. `data` is the grain iterator, whose
        state must be the same on all hosts (it is a step number).

        Raises OSError when this save, or the one before it, could not be written.
        """
        self.wait()
        self._check_space(step, params, opt_state)
        try:
            self._manager.save(
                step,
                force=True,
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(params),
                    opt_state=ocp.args.StandardSave(opt_state),
                    data=ocp.args.JsonSave(data.get_state()),
                    meta=ocp.args.JsonSave(_meta(step, self.config)),
                ),
            )
        except Exception as error:
            raise self._failure(step, error) from error
        self._unsealed = step

    def save_frozen(self, frozen: Any) -> None:
        """Saves the parameters that never change, in place of those of an earlier start."""
        path = self.directory / "frozen"
        if not jax.tree.leaves(frozen):
            return
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(path, frozen, force=True)
        except Exception as error:
            raise self._failure(0, error) from error
        if jax.process_index() == 0:
            _write_manifest(path)

    def poll(self) -> None:
        """Seals a save that has finished meanwhile. Cheap; call it once a step."""
        if self._unsealed is not None and not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Returns when the running save, if any, is on disk and sealed by its manifest."""
        if self._unsealed is None:
            return
        step, self._unsealed = self._unsealed, None
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
            if jax.process_index() == 0:
                _write_manifest(self._path(step))
        except Exception as error:
            raise self._failure(step, error) from error
        self.latest = step

    def restore(self, params: Any, opt_state: Any, frozen: Any, data: Any) -> tuple[Any, Any, Any]:
        """(params, opt_state, frozen) of step `latest`, and `data` set to where it was.

        The trees are ShapeDtypeStructs with the shardings wanted now; the mesh may be another one
        than the checkpoint was saved on.
        """
        if not (self._path(self.latest) / "opt_state").is_dir():
            raise ValueError(
                f"{self._path(self.latest)} holds parameters only (seem_jax.convert wrote them), so "
                "no run can continue there. Train in another --workdir and start from this one."
            )
        found = self._manager.restore(
            self.latest,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(params),
                opt_state=ocp.args.StandardRestore(opt_state),
                data=ocp.args.JsonRestore(),
            ),
        )
        data.set_state(found["data"])
        if jax.tree.leaves(frozen):
            frozen = _restore_frozen(self.directory, frozen)
        return found["params"], found["opt_state"], frozen

    def should_stop(self, step: int) -> bool:
        """True on all hosts at the same step after one of them was told to stop (with several)."""
        return jax.process_count() > 1 and self._manager.reached_preemption(step)

    def _path(self, step: int) -> Path:
        return self.directory / "steps" / str(step)

    def _failure(self, step: int, error: Exception) -> OSError:
        free = shutil.disk_usage(self.directory).free / 2**20
        reason = str(error).strip().splitlines()
        return OSError(
            f"checkpoint of step {step} could not be written to {self.directory} "
            f"({free:.0f} MiB free): {reason[-1] if reason else type(error).__name__}. "
            f"The last good one is step {self.latest}, untouched. Make room and start the same "
            "command again; it continues from there."
        )

    def _check_space(self, step: int, params: Any, opt_state: Any) -> None:
        """Fails before anything is written when the disk cannot hold what is about to be."""
        size = sum(leaf.nbytes for leaf in jax.tree.leaves((params, opt_state)))
        if shutil.disk_usage(self.directory).free < size:
            raise self._failure(step, OSError(f"needs {size / 2**20:.0f} MiB"))


def save_params(workdir: str | Path, params: Any, config: Config) -> None:
    """Writes parameters alone as step 0 of a new work folder, for `restore_params`."""
    path = Path(workdir).absolute() / "checkpoints" / "steps" / "0"
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(params))
    together = max(WRITTEN_TOGETHER, 2 * largest) / 1e9  # an array must fit
    handler = ocp.CompositeCheckpointHandler(
        params=ocp.StandardCheckpointHandler(save_concurrent_gb=together),
        meta=ocp.JsonCheckpointHandler(),
    )
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(
            path,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(params), meta=ocp.args.JsonSave(_meta(0, config))
            ),
        )
    _write_manifest(path)


def restore_params(workdir: str | Path, step: int | None = None) -> tuple[dict, Config]:
    """(all parameters, configuration) of a run's newest good checkpoint, or of one step.

    Arrays are placed on the first device of this process. ValueError where there is no checkpoint.
    """
    directory = Path(workdir).absolute() / "checkpoints"
    step = _newest_good_step(directory) if step is None else step
    path = directory / "steps" / str(step)
    if step is None or not path.is_dir():
        raise ValueError(
            f"no checkpoint {'' if step is None else f'of step {step} '}in {directory}: give --workdir"
            " of a training run (python -m seem_jax.train writes one every config.checkpoint_every)."
        )
    if reason := problem(path):
        raise ValueError(f"{reason}; take another step.")
    params = _restore_here(path / "params")
    if (directory / "frozen").is_dir():
        params |= _restore_here(directory / "frozen")
    return params, saved_config(path)


def _meta(step: int, config: Config) -> dict:
    """What stands beside the arrays: where they come from."""
    names = ("jax", "flax", "optax", "grain", "numpy")
    return {
        "step": step,
        "config": json.loads(config_lib.to_json(config)),
        "versions": {name: metadata.version(name) for name in names},
    }


def saved_config(path: Path) -> Config:
    """The configuration inside the folder of one checkpoint."""
    meta = json.loads((path / "meta" / "metadata").read_text())
    try:
        return config_lib.from_json(json.dumps(meta["config"]))
    except ValueError as error:
        raise ValueError(f"the configuration in {path / 'meta'} cannot be read: {error}") from error


def problem(path: Path) -> str | None:
    """What is wrong with a folder that has a manifest, or None: every file is as it was written."""
    try:
        wanted = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError):
        return f"{path} has no readable {MANIFEST}: saving it did not finish"
    found = {str(file.relative_to(path)) for file in _files(path)}
    for name in sorted(set(wanted) | found):
        if name not in found:
            return f"{path / name} is missing"
        if name not in wanted:
            return f"{path / name} does not belong there"
        if _sha256(path / name) != wanted[name]:
            return f"{path / name} was changed after it was written (SHA-256 differs)"
    return None


def differences(saved: Config, given: Config) -> list[str]:
    """One line per field that differs and that a run cannot change on the way."""
    old, new = _flat(dataclasses.asdict(saved)), _flat(dataclasses.asdict(given))
    return [
        f"config.{name}: checkpoint {old.get(name)!r}, now {new.get(name)!r}"
        for name in sorted(set(old) | set(new))
        if old.get(name) != new.get(name) and not name.startswith(MAY_DIFFER)
    ]


def _newest_good_step(directory: Path) -> int | None:
    """Looks from the newest step back; moves damaged ones aside. All processes get one answer."""
    step = None
    if jax.process_index() == 0:
        for step in _steps(directory):
            reason = problem(directory / "steps" / str(step))
            if reason is None:
                break
            _move_aside(directory, step)
            logging.warning("%s. Falling back to the checkpoint before it.", reason)
        else:
            step = None
    if jax.process_count() > 1:
        agreed = int(multihost_utils.broadcast_one_to_all(np.int32(-1 if step is None else step)))
        step = None if agreed < 0 else agreed
    return step


def _steps(directory: Path) -> list[int]:
    steps = directory / "steps"
    names = [path.name for path in steps.iterdir()] if steps.is_dir() else []
    return sorted((int(name) for name in names if name.isdigit()), reverse=True)


def _move_aside(directory: Path, step: int) -> None:
    target = directory / "damaged" / str(step)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(directory / "steps" / str(step), target)


def _check_same_config(path: Path, config: Config) -> None:
    lines = differences(saved_config(path), config)
    if lines:
        raise ValueError(
            f"{path} is a checkpoint of another configuration:\n  "
            + "\n  ".join(lines)
            + "\nGive the same values, or another --workdir to start a new run."
        )


def _restore_frozen(directory: Path, frozen: Any) -> Any:
    path = directory / "frozen"
    if reason := problem(path):
        raise ValueError(
            f"{reason}. The frozen parameters are saved once per run: put back the folder, or "
            "start a new run in another --workdir."
        )
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path, frozen)


def _restore_here(path: Path) -> dict:
    """A saved tree on the first local device, whatever it was saved on."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.metadata(path).item_metadata.tree
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), tree
        )
        return checkpointer.restore(path, target)


def _write_manifest(path: Path) -> None:
    sums = {str(file.relative_to(path)): _sha256(file) for file in _files(path)}
    temporary = path / (MANIFEST + ".tmp")
    temporary.write_text(json.dumps(sums, indent=1, sort_keys=True))
    os.replace(temporary, path / MANIFEST)


def _files(path: Path) -> list[Path]:
    return sorted(f for f in path.rglob("*") if f.is_file() and not f.name.startswith(MANIFEST))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flat(tree: dict, prefix: str = "") -> dict[str, object]:
    out = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            out |= _flat(value, f"{prefix}{name}.")
        else:
            out[prefix + name] = value
    return out
