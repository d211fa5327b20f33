"""Imports flow downwards only: the table of the style guide, checked on the syntax trees."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "seem_jax"
BASE = {"types", "config", "name_templates"}
MAY_IMPORT = {
    "types": set(),
    "config": set(),
    "config_checks": {"config"},
    "config_files": {"config", "config_checks"},
    "name_templates": set(),
    "kernels": {"types"},
    "image": set(),
    "nn": {"kernels"},
    "models": {"nn", "kernels", *BASE},
    "losses": {"nn", "kernels", *BASE},
    "data": {"image", *BASE},
    "postprocess": {"kernels", *BASE},
    "interaction": {"kernels", *BASE},
    "sharding": BASE,
    "processes": BASE,
    "manifest": set(),
    "checkpoint_folder": {"config_files", "manifest", "processes", *BASE},
    "kept_files": {"data", *BASE},
    "checkpoint": {"config_files", "checkpoint_folder", "manifest", "processes", *BASE},
    "training": {
        "models",
        "losses",
        "interaction",
        "sharding",
        "kernels",
        "processes",
        "checkpoint",
        "data",
        *BASE,
    },
    "predictor": {
        "models",
        "losses",
        "postprocess",
        "interaction",
        "checkpoint",
        "kept_files",
        "image",
        "data",
        "demo",  # pictures of results
        *BASE,
    },
    "sam_names": {"predictor", "video"},
    "video": {"predictor", "models", "image", "data", "demo", *BASE},
}
ANYTHING = {
    "train",
    "evaluate",
    "predict",
    "predict_inputs",
    "predict_outputs",
    "predict_video",
    "export",
    "benchmark",
    "config_flag",
    "convert",
    "demo",
    "evaluation",
}


def part(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_parts(path: Path) -> set[str]:
    """The first names below seem_jax that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("seem_jax.")}
    return found


FILES = sorted(path for path in ROOT.rglob("*.py") if part(path) != "__init__")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_from_the_layers_below(path):
    own = part(path)
    if own in ANYTHING:
        return
    assert own in MAY_IMPORT, f"{own} has no row in the table of this test"
    above = imported_parts(path) - MAY_IMPORT[own] - {own}
    assert not above, f"{path.relative_to(ROOT)} imports {sorted(above)} from above it"


@pytest.mark.parametrize("library", ["tensorflow", "torch"])
def test_the_package_needs_neither_tensorflow_nor_torch(library):
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in getattr(node, "names", []) if hasattr(alias, "name")]
            names += [getattr(node, "module", None) or ""]
            assert library not in {name.split(".")[0] for name in names}, path
