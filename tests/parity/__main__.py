"""python -m tests.parity --goldens DIR --manifests DIR [--seed N]; exit status 1 if anything fails."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from tests.parity.report import Line, Stored, check, entries, load
from tests.parity.stages import STAGES, postprocess_stage
from tests.parity.subject import Subject


def main(arguments: list[str] | None = None) -> int:
    """Compares every file and prints a line per stored array. 1 if one fails, else 0."""
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__)
    parser.add_argument("--goldens", type=Path, required=True, help="folder of <tag>_<stage>.npz")
    parser.add_argument("--manifests", type=Path, required=True, help="folder of <config>.json")
    parser.add_argument("--seed", type=int, help="instead of the seed that a file states")
    options = parser.parse_args(arguments)
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    paths = sorted(options.goldens.glob("*.npz"))
    if not paths:
        print(f"no .npz file in {str(options.goldens)!r}.", file=sys.stderr)
        return 1
    counts = {True: 0, False: 0, None: 0}
    missing = 0
    start = time.perf_counter()
    for path, lines in compare(paths, options.manifests, options.seed):
        print(f"{path.name}:{'relative rms':>55} {'largest':>10} {'tolerance':>10}")
        for line in lines:
            print(f"  {line}", flush=True)
            skipped = line.note.startswith("not compared")
            missing += skipped
            counts[line.passed] += not skipped
        print(f"  ({time.perf_counter() - start:.0f} s)")
        start = time.perf_counter()
    print(
        f"passed {counts[True]}, failed {counts[False]}, not compared {missing} "
        f"(and {counts[None]} inputs read)"
    )
    return int(counts[False] + missing > 0)


def compare(
    paths: list[Path], manifests: Path, seed: int | None = None
) -> Iterator[tuple[Path, list[Line]]]:
    """(file, lines) of each golden file; files of one model come together, so it is made once."""
    files: list[tuple[tuple, Path, Stored]] = []
    for path in paths:
        try:
            stored = load(path)
            model = (str(stored["config"]), int(stored["seed"]) if seed is None else seed)
            order = (model, stored["size"].tolist(), int(stored["batch"]))
        except Exception as error:
            yield path, [Line(path.name, False, note=_why(error))]
            continue
        files.append((order, path, stored))
    subject, made = None, None
    for (model, *_), path, stored in sorted(files, key=lambda file: (file[0], file[1])):
        try:
            if made != model:
                subject, made = None, None  # frees the old model first
                subject, made = Subject(*model, manifests), model
            lines = stage_lines(subject, stored, path, paths)
        except Exception as error:
            lines = [Line(name, False, note=_why(error)) for name in entries(stored)]
        yield path, lines


def _why(error: Exception) -> str:
    """What went wrong, in one line."""
    return f"not compared: {type(error).__name__}: {' '.join(str(error).split())}"


def stage_lines(subject: Subject, stored: Stored, path: Path, paths: list[Path]) -> list[Line]:
    """The lines of one file, by the stage in its name."""
    stage = path.stem.rpartition("_")[2]
    if stage not in STAGES:
        raise ValueError(f"no stage {stage!r}; the name must end in one of {sorted(STAGES)}.")
    if stage == "postprocess":
        claims, inputs = postprocess_stage(subject, stored, _seg_of(stored, paths))
    else:
        claims, inputs = STAGES[stage](subject, stored)
    return list(check(stored, claims, inputs))


def _seg_of(stored: Stored, paths: list[Path]) -> Stored | None:
    """The seg file of the same model and images, when there is one."""
    for path in paths:
        if path.stem.endswith("_seg"):
            seg = load(path)
            same = all(
                np.array_equal(seg[k], stored[k]) for k in ("config", "seed", "size", "batch")
            )
            if same:
                return seg
    return None


if __name__ == "__main__":
    sys.exit(main())
