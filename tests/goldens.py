"""The numbers of the metric owners, which lie outside the repository; tests skip without them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[1].parent / "shared" / "metrics_goldens"


def path(*parts: str) -> Path:
    """A file of the goldens; skips the test where it is absent."""
    found = FOLDER.joinpath(*parts)
    if not found.exists():
        pytest.skip(f"needs {Path('..', 'shared', 'metrics_goldens', *parts)} beside the checkout")
    return found


def cases(name: str) -> dict:
    return json.loads(path(name, "cases.json").read_text())


def arrays(name: str) -> dict[str, np.ndarray]:
    files = {"panoptic": "id_maps.npz", "grounding": "inputs.npz"}
    with np.load(path(name, files.get(name, "arrays.npz"))) as stored:
        return dict(stored)
