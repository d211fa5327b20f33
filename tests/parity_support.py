"""The official numbers beside the checkout (../shared/parity), for tests that skip without them."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from seem_jax.convert.rules import State, convert_state
from tests.parity.__main__ import stage_lines
from tests.parity.report import load
from tests.parity.subject import Subject, load_recipe

ROOT = Path(__file__).resolve().parents[1].parent / "shared" / "parity"
SEED = 2023
NAME = "seem_focalt_unicl_lang_v1"  # the configuration of the goldens there
FEATURES = ("backbone.", "sem_seg_head.pixel_decoder.")


def need_material() -> None:
    """Skips the test where the official numbers are not there."""
    if not (ROOT / "recipe.py").is_file():
        pytest.skip("needs the parity material in ../shared/parity beside the checkout")


@functools.cache
def recipe():
    """The module that makes weights and inputs from a seed."""
    need_material()
    return load_recipe(ROOT)


@functools.cache
def subject() -> Subject:
    """Focal-T v1 with the weights of the goldens; one model serves all tests."""
    need_material()
    return Subject(NAME, SEED, ROOT / "manifests")


def check_stage(stage: str) -> None:
    """Compares every array of a golden file; raises AssertionError listing those that fail."""
    need_material()
    paths = sorted((ROOT / "goldens").glob("*.npz"))
    (path,) = [path for path in paths if path.stem.endswith(f"_{stage}")]
    lines = stage_lines(subject(), load(path), path, paths)
    failed = [str(line) for line in lines if line.passed is False]
    assert lines and not failed, "\n".join(failed)


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
