"""The official numbers beside the checkout (../shared/parity): weights by a seed, inputs, goldens."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from seem_jax.convert.rules import State, convert_state

ROOT = Path(__file__).resolve().parents[1].parent / "shared" / "parity"
SEED = 2023
FEATURES = ("backbone.", "sem_seg_head.pixel_decoder.")
TEXT = ("sem_seg_head.predictor.lang_encoder.",)


def need_material() -> None:
    """Skips the test where the official numbers are not there."""
    if not (ROOT / "recipe.py").is_file():
        pytest.skip("needs the parity material in ../shared/parity beside the checkout")


@functools.cache
def recipe():
    """The module that makes weights and inputs from a seed."""
    need_material()
    spec = importlib.util.spec_from_file_location("parity_recipe", ROOT / "recipe.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def golden(stage: str) -> dict[str, np.ndarray]:
    """All arrays of goldens/focalt_v1_<stage>.npz."""
    need_material()
    with np.load(ROOT / "goldens" / f"focalt_v1_{stage}.npz") as file:
        return dict(file)


def manifest(name: str) -> list[tuple[str, tuple[int, ...], str]]:
    """[(official name, shape, dtype)] of an official configuration."""
    rows = recipe().load_manifest(ROOT / "manifests" / f"seem_{name}.json")
    return [(key, tuple(shape), dtype) for key, shape, dtype in rows]


@functools.cache
def official_weights(
    name: str = "focalt_unicl_lang_v1", parts: tuple[str, ...] = ("",), seed: int = SEED
) -> State:
    """Official names and arrays of the parts whose names start with one of `parts`."""
    rows = [row for row in manifest(name) if row[0].startswith(parts)]
    return recipe().make_state_dict(rows, seed)


def converted(shapes: dict, parts: tuple[str, ...] = ("",)) -> dict:
    """Our parameters of Focal-T v1; `shapes` is the expected tree of the same parts."""
    return convert_state(official_weights(parts=parts), shapes)


def images(count: int = 2, height: int = 256, width: int = 320) -> np.ndarray:
    """The golden images, uint8 [B, H, W, 3]."""
    made = [recipe().make_image(SEED, index, height, width) for index in range(count)]
    return np.stack(made).transpose(0, 2, 3, 1)


def error(stage: dict[str, np.ndarray], name: str, array) -> float:
    """Relative rms difference of an array, in the official layout, from a golden."""
    return recipe().compare(stage, name, np.asarray(array))["rel_rms"]


def channels_first(x) -> np.ndarray:
    """[B, h, w, C] -> [B, C, h, w]."""
    return np.asarray(x).transpose(0, 3, 1, 2)
