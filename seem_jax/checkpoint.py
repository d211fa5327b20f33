"""Checkpoints of a run: saved asynchronously, verified before they are trusted, restored onto any mesh.

    WORKDIR/checkpoints/steps/200/params/    parameters that learn (Orbax)
                                 /opt_state/
                                 /data/      state of the grain iterator
                                 /meta/      configuration, step, versions
                                 /manifest.json  hash of every file above and every array; last
    WORKDIR/checkpoints/frozen/              parameters that never change, saved once
    WORKDIR/checkpoints/damaged/             steps that failed verification, moved aside

Orbax restores flipped bits without a word, so a step counts only when its manifest agrees. Nothing
outside this file knows Orbax.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging

from seem_jax import manifest, processes
from seem_jax.checkpoint_folder import (
    check_same_config,
    delete,
    move_aside,
    newest_good_step,
    saved_config,
    steps,
)
from seem_jax.config import Config
from seem_jax.config_files import to_json
from seem_jax.manifest import problem

WRITTEN_TOGETHER = 200 * 10**6  # bytes of parameters compressed and written at a time
READ_SECONDS = 600.0  # to wait for other processes where nothing but parameters is read


class Checkpoints:
    """The checkpoints of one run. A context manager: leaving it waits for the last save.

    On opening, the newest step whose files agree with its manifest is looked up; newer ones that do
    not agree are moved to checkpoints/damaged with a warning. `latest` is that step, or None.
    """

    def __init__(self, workdir: str | Path, config: Config):
        self.directory = Path(workdir).absolute() / "checkpoints"
        self.config = config
        self.latest = newest_good_step(self.directory, config.faults.meet_seconds, move=True)
        if self.latest is not None:
            check_same_config(self._path(self.latest), config)
        self._saving: _Save | None = None
        self._failed = False  # a save did
        if jax.process_index() == 0:
            for half in self.directory.glob("deleted-*"):  # a kill came in between
                shutil.rmtree(half)
        # Orbax would delete an old step as soon as a new one is written; here it must be sealed first.
        self._manager = ocp.CheckpointManager(
            self.directory / "steps", options=ocp.CheckpointManagerOptions(max_to_keep=None)
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if error is not None and processes.several():
            # Others may be gone, and finishing a save needs them all: only as long as is reasonable.
            if self._saving is not None:
                self._saving.thread.join(self.config.faults.lost_seconds)
            return
        try:
            self.wait()
        except OSError:
            if error is None:
                raise
            logging.exception("the last checkpoint was lost while the run was stopping")
        finally:
            self._close()

    def _close(self) -> None:
        """Orbax raises the error of a failed save once more here, after it was told as an OSError."""
        try:
            self._manager.close()
        except Exception:
            if not self._failed:
                raise

    def save(self, step: int, params: Any, opt_state: Any, data: Any) -> None:
        """Starts saving; the arrays may be used up as soon as it returns. `data` is the grain iterator,
        whose state must be the same on all hosts (it is a step number).

        With one process the devices copy the arrays, beside what they hold, and all else happens in the
        background. With several, Orbax brings them to the hosts before this returns. Raises OSError when
        this save could not begin, or the one before it could not be written.
        """
        self.wait()
        self._check_space(step, params, opt_state)
        trees, position = {"params": params, "opt_state": opt_state}, data.get_state()
        if not processes.several():
            trees = _copies(trees)
            # What devices sum together must come in one order: not from a thread beside the next steps.
            prints = manifest.fingerprints(trees) if jax.device_count() > 1 else None
            self._saving = _Save(step, lambda: self._write_and_seal(step, trees, position, prints))
            return
        # What several processes compute and agree on must come in one order: not beside the next steps.
        prints = manifest.fingerprints(trees)
        try:
            self._write(step, trees, position)
        except Exception as error:
            raise self._failure(step, error) from error
        self._saving = _Save(step, lambda: self._seal(step, prints))

    def _write_and_seal(
        self,
        step: int,
        trees: dict[str, Any],
        position: dict,
        prints: dict[str, jax.Array] | None,
    ) -> None:
        jax.block_until_ready(trees)  # the next step waits for the copy too: do not slow it down
        if prints is None:
            prints = manifest.fingerprints(trees)
        self._write(step, trees, position)
        self._seal(step, prints)

    def _write(self, step: int, trees: dict[str, Any], position: dict) -> None:
        """Hands a step to Orbax, which goes on writing in threads of its own."""
        self._manager.save(
            step,
            force=True,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(trees["params"]),
                opt_state=ocp.args.StandardSave(trees["opt_state"]),
                data=ocp.args.JsonSave(position),
                meta=ocp.args.JsonSave(_meta(step, self.config)),
            ),
        )

    def prepare(self, params: Any, opt_state: Any) -> None:
        """Compiles what a save computes, and makes room for it, so that the first one does not wait."""
        trees = {"params": params, "opt_state": opt_state}
        manifest.fetch(manifest.fingerprints(trees))
        if not processes.several():
            jax.block_until_ready(_copies(trees))

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
        leaves = manifest.fetch(manifest.fingerprints(frozen))
        if jax.process_index() == 0:
            manifest.write(path, leaves)

    def poll(self) -> None:
        """Takes note of a save that has finished meanwhile. Cheap; call it once a step.

        Raises OSError when it could not be written.
        """
        if self._saving is not None and not self._saving.thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Returns when the running save, if any, is on disk and sealed by its manifest."""
        if self._saving is None:
            return
        save, self._saving = self._saving, None
        save.thread.join()
        if save.error is not None:
            raise self._failure(save.step, save.error) from save.error
        self.latest = save.step

    def _seal(self, step: int, prints: dict[str, jax.Array]) -> None:
        """Waits for the files of a step, writes its manifest, then deletes what is too old."""
        self._manager.wait_until_finished()
        self._manager.check_for_errors()
        leaves = manifest.fetch(prints)
        if jax.process_index() == 0:
            manifest.write(self._path(step), leaves)
            for old in steps(self.directory)[self.config.keep_checkpoints :]:
                delete(self._path(old), self.directory / f"deleted-{old}")

    def restore(self, params: Any, opt_state: Any, frozen: Any, data: Any) -> tuple[Any, Any, Any]:
        """(params, opt_state, frozen) of step `latest`, and `data` (None: not) set to where it was.

        The trees are ShapeDtypeStructs with the shardings wanted now; the mesh may be another one
        than the checkpoint was saved on. Where an array is not what it was when it was saved, the
        step before is taken, with a warning, and `latest` is that one. ValueError when none is left.
        """
        while self.latest is not None:
            path = self._path(self.latest)
            if not (path / "opt_state").is_dir():
                raise ValueError(
                    f"{path} holds parameters only (seem_jax.convert wrote them), so no run can "
                    "continue there. Train in another --workdir and start from this one."
                )
            found, wrong = self._restore(params, opt_state)
            if not wrong:
                break
            logging.warning(
                "%s: %d arrays are not what they were when they were saved, as %s. Falling back to "
                "the checkpoint before it.",
                path,
                len(wrong),
                wrong[0],
            )
            self._set_aside(self.latest)
        else:
            raise ValueError(f"no checkpoint in {self.directory} could be restored unchanged.")
        if data is not None:
            data.set_state(found["data"])
        if jax.tree.leaves(frozen):
            frozen = _restore_frozen(self.directory, frozen)
        return found["params"], found["opt_state"], frozen

    def _restore(self, params: Any, opt_state: Any) -> tuple[Any, list[str]]:
        """(what Orbax gives for step `latest`, paths of arrays that are not as they were saved)."""
        found = self._manager.restore(
            self.latest,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(params),
                opt_state=ocp.args.StandardRestore(opt_state),
                data=ocp.args.JsonRestore(),
            ),
        )
        here = manifest.leaves(self._path(self.latest)) if jax.process_index() == 0 else None
        text = processes.from_first("hashes", json.dumps(here), self.config.faults.meet_seconds)
        trees = {"params": found["params"], "opt_state": found["opt_state"]}
        return found, manifest.differing(json.loads(text), trees)

    def _set_aside(self, step: int) -> None:
        """Moves a damaged step away, and takes the newest good one before it as `latest`."""
        limit = self.config.faults.meet_seconds
        if jax.process_index() == 0:
            move_aside(self.directory, step)
        processes.meet("a damaged step was moved", limit)
        self.latest = newest_good_step(self.directory, limit, move=True)

    def should_stop(self, step: int) -> bool:
        """True on all hosts at the same step after one of them was told to stop (with several)."""
        return jax.process_count() > 1 and self._manager.reached_preemption(step)

    def _path(self, step: int) -> Path:
        return self.directory / "steps" / str(step)

    def _failure(self, step: int, error: Exception) -> OSError:
        self._failed = True
        free = shutil.disk_usage(self.directory).free / 2**20
        reason = str(error).strip().splitlines()
        return OSError(
            f"checkpoint of step {step} could not be written to {self.directory} "
            f"({free:.0f} MiB free): {reason[-1] if reason else type(error).__name__}. "
            f"The last good one is step {self.latest}, untouched. Make room and start the same "
            "command again; it continues from there."
        )

    def check_room(self, params: Any, opt_state: Any) -> None:
        """OSError at the start of a run when the disk cannot hold the checkpoints to come.

        A new one is written before an old one goes: room for two is needed, or for one where the
        old ones are there already.
        """
        size, free = _bytes((params, opt_state)), shutil.disk_usage(self.directory).free
        missing = self.config.keep_checkpoints - len(steps(self.directory))
        copies = 1 + (missing > 0)
        if free < copies * size:
            raise OSError(
                f"{self.directory} has {free / 2**20:.0f} MiB free, but {copies} checkpoints of "
                f"{size / 2**20:.0f} MiB must fit there at a time. Make room, or give a --workdir on "
                "another disk."
            )

    def _check_space(self, step: int, params: Any, opt_state: Any) -> None:
        """Fails before anything is written when the disk cannot hold what is about to be."""
        size = _bytes((params, opt_state))
        if shutil.disk_usage(self.directory).free < size:
            raise self._failure(step, OSError(f"needs {size / 2**20:.0f} MiB"))


class _Save:
    """A save under way: a thread that ends when it is sealed, or with `error`."""

    def __init__(self, step: int, seal: Callable[[], None]):
        self.step = step
        self.error: Exception | None = None
        self._seal = seal
        self.thread = threading.Thread(target=self._run, name=f"save of step {step}", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self._seal()
        except Exception as error:  # said by the main thread, at its next step
            self.error = error


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
    manifest.write(path, manifest.fetch(manifest.fingerprints({"params": _on_device(params)})))


def restore_params(workdir: str | Path, step: int | None = None) -> tuple[dict, Config]:
    """(all parameters, configuration) of a run's newest good checkpoint, or of one step.

    Arrays are placed on the first device of this process. ValueError where there is no checkpoint.
    """
    directory = Path(workdir).absolute() / "checkpoints"
    step = newest_good_step(directory, READ_SECONDS, move=False) if step is None else step
    path = directory / "steps" / str(step)
    if step is None:
        raise ValueError(
            f"no checkpoint in {directory}: expected the work folder of a training run (python -m "
            "seem_jax.train writes a checkpoint every config.checkpoint_every steps) or of a conversion."
        )
    if not path.is_dir():
        raise ValueError(f"no checkpoint of step {step} in {directory}: it has {steps(directory)}.")
    if reason := problem(path):
        raise ValueError(f"{reason}; take another step.")
    params = _restore_here(path / "params")
    wrong = manifest.differing(manifest.leaves(path), {"params": params})
    if (directory / "frozen").is_dir():
        frozen = _restore_here(directory / "frozen")
        wrong += manifest.differing(manifest.leaves(directory / "frozen"), frozen)
        params |= frozen
    if wrong:
        raise ValueError(
            f"{path}: {wrong[0]} is not what it was when it was saved; take another step."
        )
    return params, saved_config(path)


def _meta(step: int, config: Config) -> dict:
    """What stands beside the arrays: where they come from."""
    names = ("jax", "flax", "optax", "grain", "numpy")
    return {
        "step": step,
        "config": json.loads(to_json(config)),
        "versions": {name: metadata.version(name) for name in names},
    }


@jax.jit
def _copies(tree: Any) -> Any:
    """Copies where the arrays lie. Returns before they are made; what uses the arrays up waits for them."""
    return jax.tree.map(jnp.copy, tree)


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _on_device(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.device_put(x, jax.local_devices()[0]), tree)


def _restore_frozen(directory: Path, frozen: Any) -> Any:
    path = directory / "frozen"
    if reason := problem(path):
        raise ValueError(
            f"{reason}. The frozen parameters are saved once per run: put back the folder, or "
            "start a new run in another --workdir."
        )
    with ocp.StandardCheckpointer() as checkpointer:
        found = checkpointer.restore(path, frozen)
    if wrong := manifest.differing(manifest.leaves(path), found):
        raise ValueError(f"{path}: {wrong[0]} is not what it was when it was saved.")
    return found


def _restore_here(path: Path) -> dict:
    """A saved tree on the first local device, whatever it was saved on."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    with ocp.StandardCheckpointer() as checkpointer:
        # Of the checkpointer itself, it would warn of a file that only whole steps have.
        tree = ocp.StandardCheckpointHandler().metadata(path).tree
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), tree
        )
        return checkpointer.restore(path, target)
