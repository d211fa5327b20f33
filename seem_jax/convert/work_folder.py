"""Official weights into a work folder that every entry point takes, and back."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from seem_jax import checkpoint, kept_files
from seem_jax.config import Config
from seem_jax.config_checks import validate
from seem_jax.convert import coco_names, recognise, safetensors_file
from seem_jax.convert.rules import (
    BUFFERS,
    HEAD,
    SEEM_ONLY,
    XDECODER_ONLY,
    State,
    official_state,
    views,
)
from seem_jax.models.seem import build, initialise

NUM_CLASSES = 133  # of COCO panoptic; the official criterion has one weight more, of "no object"
NO_OBJECT = 0.1
FLOATS = ("float16", "bfloat16", "float32")
# X-Decoder of Focal-L and DaViT-d3 has 201 of these, SEEM 101: officially they start anew then.
QUERIES = {
    "decoder/query_features": HEAD + "query_feat.weight",
    "decoder/query_positions": HEAD + "query_embed.weight",
}


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of a file. Names in files are official ones, parameters are paths of ours."""

    kind: recognise.Kind
    num_tensors: int  # in the file
    num_parameters: int  # in the work folder, scalars
    left_out: list[str]  # names in the file that SEEM has no use for
    fresh: list[str]  # parameters that the file does not hold: initialised


def convert(state: State, config: Config, output: str | Path) -> Report:
    """Writes the parameters of an official state dict to a new work folder `output`.

    `checkpoint.restore_params(output)` reads it; tokenizer and class names lie beside them where the
    configuration's data set is here, else the names of COCO alone. Empties `state`, so that the memory
    is free for writing. An X-Decoder file gives a start for training: what SEEM adds is initialised with
    config.seed. ValueError, and nothing at `output`, when the state is of
    another model than `config`, is incomplete, holds anything unknown or has values that are not finite.
    """
    validate(config)
    _need_free(output)
    kind = recognise.recognise(state)
    recognise.check(kind, state, config)
    _check_values(state)
    model = build(config.model)
    shapes = jax.eval_shape(lambda key: nn.unbox(initialise(model, key)), jax.random.key(0))
    wanted = flatten_dict(shapes, sep="/")
    fresh, left_out = set(), {name for name in state if name in BUFFERS}
    if kind.family == "X-Decoder":
        left_out |= XDECODER_ONLY & state.keys()
        fresh = set(SEEM_ONLY)
        for path, name in QUERIES.items():
            if name in state and state[name].shape != wanted[path].shape:
                fresh.add(path)
                left_out.add(name)
    known = {name: array for name, array in state.items() if name not in left_out}
    given = {path: shape for path, shape in wanted.items() if path not in fresh}
    try:
        params = views(known, unflatten_dict(given, sep="/"))
    except ValueError as error:
        other = recognise.other_config(kind, config)
        if other is None:
            raise
        raise ValueError(
            f"this looks like {kind}: use --config={other}. The configuration given has another "
            f"backbone, {config.model.backbone}"
        ) from error
    report = Report(
        kind=kind,
        num_tensors=len(state),
        num_parameters=sum(int(np.prod(shape.shape)) for shape in wanted.values()),
        left_out=sorted(left_out),
        fresh=sorted(fresh),
    )
    state.clear()
    known.clear()
    # One by one, and each view goes when its array is there, so that beside the mapped file there is
    # never more than one copy; the file itself is gone when writing begins.
    for path in list(params):
        own = np.array(params.pop(path), wanted[path].dtype, order="C")
        params[path] = jax.device_put(own, may_alias=True).block_until_ready()
    if fresh:
        params |= _initial(model, config.seed, sorted(fresh))
    _write(output, unflatten_dict(params, sep="/"), config)
    return report


def reverse(workdir: str | Path, output: str | Path, step: int | None = None) -> int:
    """Writes the parameters of a work folder as safetensors in the official layout; their number.

    The buffers that SEEM v1 keeps are written too, so that the file is complete for the official code:
    the kernel that widens clicks, and the class weights of COCO panoptic.
    """
    if Path(output).suffix != ".safetensors":
        raise ValueError(f"--output={output}: give a file name that ends with .safetensors.")
    _need_free(output)
    params, _ = checkpoint.restore_params(workdir, step)
    state = official_state(params)
    weights = np.ones(NUM_CLASSES + 1, np.float32)
    weights[-1] = NO_OBJECT
    state |= {
        "dilation_kernel": np.ones((1, 1, 3, 3), np.float32),
        recognise.EMPTY_WEIGHT: weights,
    }
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    safetensors_file.write(output, dict(sorted(state.items())))
    return len(state)


def _need_free(output: str | Path) -> None:
    if os.path.lexists(output):
        raise ValueError(f"{output} exists, and is not overwritten: give another --output.")


def _check_values(state: State) -> None:
    """Parameters are finite floating-point numbers."""
    problems = []
    for name, array in state.items():
        if name in BUFFERS:
            continue
        if array.dtype.name not in FLOATS:
            problems.append(f"{name} has the type {array.dtype}; expected one of {FLOATS}")
        elif not np.isfinite(array).all():
            problems.append(f"{name} has values that are not finite; the file may be damaged")
    if problems:
        raise ValueError("the file holds wrong values:\n  " + "\n  ".join(problems))


def _initial(model, seed: int, paths: list[str]) -> dict[str, jax.Array]:
    """Fresh values of some parameters; the others are never computed."""

    def chosen(key):
        params = flatten_dict(nn.unbox(initialise(model, key)), sep="/")
        return {path: params[path] for path in paths}

    return jax.jit(chosen)(jax.random.key(seed))


def _write(output: str | Path, params: dict, config: Config) -> None:
    """Writes a work folder beside its place, then moves it there: it is whole or not there at all."""
    output = Path(output).absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    free = shutil.disk_usage(output.parent).free
    if free < size:
        raise ValueError(
            f"{output.parent} has {free / 2**20:.0f} MiB left; {size / 2**20:.0f} MiB are needed."
        )
    aside = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        checkpoint.save_params(aside, params, config)
        kept_files.keep(aside, config)
        if not (aside / kept_files.CLASSES).is_file():  # no data set is here
            (aside / kept_files.CLASSES).write_text(json.dumps(coco_names.classes()))
        _need_free(output)
        os.rename(aside, output)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
