"""Compares our metrics with stored numbers of the metric owners.

    python -m tests.metric_goldens DIR [--failures-only]

DIR has the layout that its README describes: panoptic, instance_ap, semantic_miou, grounding,
interactive_noc, clicks_seem, clicks_ritm, vos_jf, stroke_statistics, inference_postprocess; folders
that are not there are not compared. Prints one line per figure; the exit status is 1 if one fails.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.metric_goldens import clicks, masks, video
from tests.metric_goldens.figures import Check, Figure

CHECKS: dict[str, Check] = {
    "panoptic": masks.panoptic,
    "instance_ap": masks.instance_ap,
    "semantic_miou": masks.semantic,
    "grounding": masks.grounding,
    "interactive_noc": clicks.interactive_noc,
    "clicks_seem": clicks.clicks_seem,
    "clicks_ritm": clicks.clicks_ritm,
    "vos_jf": video.video,
    "stroke_statistics": clicks.stroke_statistics,
    "inference_postprocess": clicks.inference_postprocess,
}


def figures(folder: Path) -> Iterator[Figure]:
    """The figures of one folder; an exception of a metric is a figure that fails."""
    try:
        yield from CHECKS[folder.name](folder)
    except Exception as error:  # a broken case must not hide those of the other folders
        yield Figure("reading the cases", "no error", f"{type(error).__name__}: {error}")


def line(folder: str, figure: Figure) -> str:
    verdict = "pass" if figure.passed else "FAIL"
    return (
        f"{verdict}  {folder:22s} {figure.name:48s} expected {_short(figure.expected):24s} "
        f"got {_short(figure.got):24s} difference {figure.difference:.2g}"
    )


def _short(value: object) -> str:
    array = np.asarray(value) if isinstance(value, (np.ndarray, list, tuple)) else None
    if array is not None and array.size > 4:
        shape = "x".join(map(str, array.shape))
        return f"{shape}, sum {array.sum():.6g}" if array.dtype != object else f"{shape} entries"
    if isinstance(value, dict):
        return " ".join(f"{k}={v}" for k, v in value.items())
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--failures-only", action="store_true", help="print what fails, not all")
    args = parser.parse_args()
    present = [name for name in CHECKS if (args.folder / name).is_dir()]
    if not present:
        print(f"error: {args.folder} holds none of the folders {sorted(CHECKS)}.", file=sys.stderr)
        return 1
    counts = {True: 0, False: 0}
    for name in present:
        for figure in figures(args.folder / name):
            counts[figure.passed] += 1
            if not (figure.passed and args.failures_only):
                print(line(name, figure), flush=True)
    absent = sorted(set(CHECKS) - set(present))
    note = f"; not there: {', '.join(absent)}" if absent else ""
    print(f"{counts[True]} passed, {counts[False]} failed{note}")
    return 1 if counts[False] else 0


if __name__ == "__main__":
    sys.exit(main())
