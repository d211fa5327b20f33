"""One number (or list of numbers) of a stored case beside ours."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

RATIO = 1e-6  # tolerance of fractions; percentages are compared as fractions
EXACT = 0.0
AP = 1e-9


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure passes where |got - expected| <= tolerance x unit; NaN equals NaN only."""

    name: str
    expected: Any
    got: Any
    tolerance: float = RATIO
    unit: float = 1.0  # 100 for percentages

    @property
    def difference(self) -> float:
        """The largest absolute difference in units; infinite where the kinds or lengths differ."""
        try:
            expected, got = (np.asarray(v, np.float64) for v in (self.expected, self.got))
        except (TypeError, ValueError):
            return 0.0 if self.expected == self.got else math.inf
        if expected.shape != got.shape:
            return math.inf
        same = (np.isnan(expected) & np.isnan(got)) | (expected == got)
        with np.errstate(invalid="ignore"):
            distance = np.where(same, 0.0, np.abs(got - expected)) / self.unit
        return float(np.nan_to_num(distance, nan=math.inf).max(initial=0.0))

    @property
    def passed(self) -> bool:
        return self.difference <= self.tolerance


Check = Callable[[Path], Iterator[Figure]]


def read_cases(folder: Path, name: str = "cases.json") -> dict:
    """A JSON file of a folder, with its "nan" strings as NaN."""
    path = folder / name
    try:
        return _numbers(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is missing or no JSON ({error}).") from error


def read_arrays(folder: Path) -> dict[str, np.ndarray]:
    """All arrays of the NPZ files of a folder."""
    out: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as stored:
            out.update(stored)
    return out


def fails(case: Mapping) -> bool:
    """Whether the owner's code ends with an error on this case."""
    return "error" in case or "error" in case.get("expected", {})


def refused(name: str, action: Callable[[], object]) -> Figure:
    """Passes where the action raises a ValueError, as bad input must."""
    try:
        action()
    except ValueError:
        return Figure(name, "an error", "an error")
    return Figure(name, "an error", "no error")


def compared(
    name: str, expected: Mapping, got: Mapping, tolerance: float = RATIO, unit: float = 1.0
) -> Iterator[Figure]:
    """A figure for every expected key; one that we lack is a failure."""
    for key, value in expected.items():
        yield Figure(f"{name} {key}", value, got.get(key, "absent"), tolerance, unit)


def _numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return math.nan if isinstance(value, str) and value.lower() == "nan" else value
