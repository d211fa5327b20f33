"""Writes the folder of an exported model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jax import export

from seem_jax.config_files import to_json
from seem_jax.convert import safetensors_file
from seem_jax.data.transforms import PAD_VALUE
from seem_jax.export import loader, usage
from seem_jax.export.programs import PLATFORMS, programs
from seem_jax.predictor import Predictor
from seem_jax.predictor.programs import MASK_STRIDE, MAX_ANSWERS, MAX_REFERENCE_POINTS


def export_model(
    predictor: Predictor, output: str | Path, *, tokenizer: str | Path | None = None
) -> Path:
    """Writes programs, weights, configuration, tokenizer and loader; returns the folder.

    output must not exist: it appears, by renaming, when everything is in it. tokenizer is a model
    file to copy there. The programs run on CPU, CUDA and TPU; how depthwise convolutions are
    computed is that of the machine that exports.
    """
    output = Path(output)
    if output.exists() or output.is_symlink():
        raise ValueError(f"output = {output} exists; it is not overwritten. Give another name.")
    if tokenizer is not None and not Path(tokenizer).is_file():
        raise ValueError(f"tokenizer = {tokenizer}: there is no such file.")
    output.parent.mkdir(parents=True, exist_ok=True)
    aside = output.with_name(f".{output.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        params = jax.tree.map(lambda leaf: np.asarray(jax.device_get(leaf)), predictor.params)
        safetensors_file.write(aside / "weights.safetensors", flatten_dict(params, sep="/"))
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
        for program in programs(predictor.config, shapes, predictor.side):
            made = export.export(jax.jit(program.function), platforms=PLATFORMS)(
                shapes, *program.arguments
            )
            (aside / f"{program.name}.stablehlo").write_bytes(made.serialize())
        (aside / "config.json").write_text(to_json(predictor.config))
        (aside / "about.json").write_text(json.dumps(about(predictor), indent=1))
        (aside / "README.md").write_text(usage.TEXT)
        shutil.copyfile(loader.__file__, aside / "load.py")
        if tokenizer is not None:
            shutil.copyfile(tokenizer, aside / "tokenizer.model")
        aside.rename(output)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return output


def about(predictor: Predictor) -> dict:
    """The numbers that a caller needs."""
    return {
        "jax": jax.__version__,
        "model": predictor.fingerprint(),
        "image_size": predictor.side,
        "padding": PAD_VALUE,
        "mask_stride": MASK_STRIDE,
        "answers": MAX_ANSWERS,
        "reference_points": MAX_REFERENCE_POINTS,
        "phrase_tokens": predictor.config.data.max_phrase_tokens,
        "templates": list(predictor.texts.templates),
        "classes": list(predictor.classes),
        "num_things": predictor.naming.num_things,
    }
