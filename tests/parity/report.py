"""Stored arrays against computed ones: one line each, and nothing left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

Stored = dict[str, np.ndarray]  # the arrays of one golden file
PACKED = ("shape", "stats", "values", "bits")
ABOUT = ("config", "seed", "size", "batch")  # what a file says about itself


@dataclasses.dataclass(frozen=True)
class Line:
    """The outcome for one stored array. `passed` is None for inputs, which are read, not compared."""

    name: str
    passed: bool | None
    error: float = float("nan")  # relative rms
    largest: float = float("nan")  # largest absolute error
    tolerance: float = float("nan")
    note: str = ""

    def __str__(self) -> str:
        if self.passed is None:
            return f"{self.name:<52} input"
        numbers = f"{self.error:10.2e} {self.largest:10.2e} {self.tolerance:10.2e}"
        return (
            f"{self.name:<52} {numbers}  {'pass' if self.passed else 'FAIL'}  {self.note}".rstrip()
        )


@dataclasses.dataclass(frozen=True)
class Claim:
    """What we say a stored array is: `value` gives ours, in the official layout, when it is needed.

    `compare` turns (stored, name, ours) into a Line; by default the relative rms error is held
    against the tolerance.
    """

    value: Callable[[], object]
    tolerance: float = 1e-3
    note: str = ""
    compare: Callable[[Stored, str, np.ndarray, Claim], Line] | None = None


Claims = dict[str, Claim]


def load(path: Path) -> Stored:
    """All arrays of a golden file."""
    with np.load(path) as file:
        return dict(file)


def entries(stored: Stored) -> list[str]:
    """The names of the arrays of a file; one that was packed counts once."""
    names = set()
    for key in stored:
        base, _, last = key.rpartition("/")
        names.add(base if last in PACKED and f"{base}/shape" in stored else key)
    return sorted(names - set(ABOUT))


def shape(stored: Stored, name: str) -> tuple[int, ...]:
    """The shape of an array, packed or not."""
    packed = stored.get(f"{name}/shape")
    return stored[name].shape if packed is None else tuple(int(n) for n in packed)


def check(stored: Stored, claims: Claims, inputs: set[str]) -> Iterator[Line]:
    """One Line per array of the file, in order; an array that nothing speaks of fails."""
    for name in entries(stored):
        if name in claims:
            yield _check_one(stored, name, claims[name])
        elif name in inputs:
            yield Line(name, None)
        else:
            yield Line(name, False, note="not compared: nothing computes it")


def _check_one(stored: Stored, name: str, claim: Claim) -> Line:
    try:
        ours = np.asarray(claim.value())
    except Exception as error:
        what = " ".join(str(error).split())
        return Line(name, False, note=f"not compared: {type(error).__name__}: {what}")
    if ours.shape != shape(stored, name):
        return Line(
            name, False, note=f"not compared: shape {ours.shape}, stored {shape(stored, name)}"
        )
    return (claim.compare or relative)(stored, name, ours, claim)


def relative(stored: Stored, name: str, ours: np.ndarray, claim: Claim) -> Line:
    """Relative rms error over the stored elements."""
    want, got = _elements(stored, name, ours)
    difference = np.abs(got - want)
    rms = np.sqrt(np.square(difference).mean()) if want.size else 0.0
    error = float(rms / (np.sqrt(np.square(want).mean()) + 1e-12)) if want.size else 0.0
    largest = float(difference.max(initial=0.0))
    passed = bool(error < claim.tolerance)  # not for NaN
    return Line(name, passed, error, largest, claim.tolerance, claim.note)


def exact(stored: Stored, name: str, ours: np.ndarray, claim: Claim) -> Line:
    """Share of elements that differ; all must be equal, or all but the tolerance."""
    if f"{name}/bits" in stored:
        wrong = unpack_bits(stored, name) != ours
    else:
        want, got = _elements(stored, name, ours)
        wrong = want != got
    share = float(wrong.mean()) if wrong.size else 0.0
    passed = share <= claim.tolerance
    return Line(name, passed, share, float(wrong.any()), claim.tolerance, claim.note)


def equal(value: Callable[[], object], note: str = "") -> Claim:
    """The claim that every element is the same."""
    return Claim(value, 0.0, note, exact)


def unpack_bits(stored: Stored, name: str) -> np.ndarray:
    """A stored boolean array."""
    size = int(np.prod(shape(stored, name)))
    return np.unpackbits(stored[f"{name}/bits"])[:size].astype(bool).reshape(shape(stored, name))


def _elements(stored: Stored, name: str, ours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The stored elements and ours at the same places, float64. Large arrays are stored in part."""
    if name in stored:
        return stored[name].astype(np.float64).ravel(), ours.astype(np.float64).ravel()
    want = stored[f"{name}/values"].astype(np.float64)
    return want, ours.reshape(-1)[places(ours.size, want.size)].astype(np.float64)


def places(size: int, count: int) -> np.ndarray:
    """Flat places of `count` stored elements of an array of `size` (recipe.subset_indices)."""
    if count == size:
        return np.arange(size)
    k = np.arange(count, dtype=np.int64)
    return (k * size) // count + (k * 7919) % max(1, size // count)
