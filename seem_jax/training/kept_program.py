"""The compiled training step kept in a file, so that a run that starts again need not even trace it.

JAX's own cache is asked with the lowered program, which costs a start more than loading what it finds. This
one is asked with what the program is made from: configuration, code, versions, devices, shapes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import json
import os
import platform
from pathlib import Path

import jax
from absl import logging
from jax.experimental import serialize_executable
from jax.sharding import Mesh
from jax.stages import Compiled

from seem_jax.config import Config
from seem_jax.training import agreement

PREFIX = "train_step-"
MOST = 8  # files in a folder; those that were not used for longest go


def place(
    config: Config, arguments: tuple, mesh: Mesh, made_by: tuple = (), *, decoder: bool = True
) -> Path | None:
    """Where the step of these abstract arguments on this mesh is kept; None where it is not: without a compile
    cache, and with several processes, whose programs must not differ. decoder as for `make_train_step`.

    made_by are the classes and functions that the step comes from: they may lie in files of a user.
    """
    if not config.compile_cache or jax.process_count() > 1:
        return None
    try:
        sources = [Path(inspect.getfile(each)).read_bytes() for each in made_by]
    except (OSError, TypeError):  # typed in at a prompt
        return None
    facts = agreement.facts(dataclasses.replace(config, workdir="")) | {
        "devices": [str(device) for device in mesh.devices.flat],
        "mesh": str(dict(mesh.shape)),
        "decoder": decoder,
        "processor": _processor(),
        "flags": [os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")],
        "jax": {name: str(x) for name, x in jax.config.values.items() if "cache" not in name},
        "sources": [hashlib.sha256(source).hexdigest() for source in sources],
        "shapes": [str(leaf) for leaf in jax.tree.leaves(arguments)],
        "tree": str(jax.tree.structure(arguments)),
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]
    return Path(config.compile_cache) / f"{PREFIX}{key}"


def keep(path: Path, compiled: Compiled) -> None:
    """Writes the step, aside first.

    Not for one out of JAX's own cache: XLA for CPU writes a program that it has read without its functions, and
    what was written fails when it is run ("Function ... not found", jax 0.10 and 0.12).
    """
    try:
        program, *_ = serialize_executable.serialize(compiled)
    except (ValueError, NotImplementedError, RuntimeError) as error:
        logging.info("the compiled step is not kept: %s", error)
        return
    _, metrics = jax.tree.unflatten(compiled.out_tree, range(compiled.out_tree.num_leaves))
    head = {"sha256": hashlib.sha256(program).hexdigest(), "metrics": sorted(metrics)}
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(json.dumps(head).encode() + b"\n" + program)
        os.replace(aside, path)
        of_all = sorted(path.parent.glob(f"{PREFIX}*"), key=lambda each: each.stat().st_mtime)
        for old in of_all[:-MOST]:
            old.unlink(missing_ok=True)
    except OSError as error:  # a full disk shall not stop a run that needs none of this
        with contextlib.suppress(OSError):
            aside.unlink()
        logging.warning("the compiled step is not kept in %s: %s", path.parent, error)


def load(path: Path, arguments: tuple, mesh: Mesh) -> Compiled | None:
    """The step that `keep` wrote, for the devices of the mesh; None, with a line in the log, where the file is
    damaged. The arguments are those of the step, its first one the state, which it also gives.

    Like every compile cache, the folder must be as trusted as the code: what is loaded is executed.
    """
    if not path.exists():
        return None
    try:
        head, _, program = path.read_bytes().partition(b"\n")
        head = json.loads(head)
        if hashlib.sha256(program).hexdigest() != head["sha256"]:
            raise ValueError("its bytes are not those that were written")
        os.utime(path)
        result = (arguments[0], dict.fromkeys(head["metrics"], 0))
        return serialize_executable.deserialize_and_load(
            program,
            jax.tree.structure((arguments, {})),
            jax.tree.structure(result),
            execution_devices=list(mesh.devices.flat),
        )
    except Exception as error:  # whatever a cache holds, training must go on
        logging.warning("%s is of no use, so the step is compiled again: %s", path, error)
        with contextlib.suppress(OSError):
            path.unlink()
        return None


def _processor() -> str:
    """What XLA compiles for on a CPU: the features of the processor, or at least its name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "".join(sorted({line for line in lines if line.startswith(("flags", "Features"))}))
