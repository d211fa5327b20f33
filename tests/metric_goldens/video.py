"""Video object segmentation: J, F, their statistics, and whole sequences."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from seem_jax.evaluation import vos
from tests.metric_goldens.figures import (
    EXACT,
    Figure,
    compared,
    fails,
    read_arrays,
    read_cases,
    refused,
)
from tests.metric_goldens.masks import SAMPLES


def video(folder: Path) -> Iterator[Figure]:
    golden, stored = read_cases(folder), read_arrays(folder)
    for name, case in golden["cases"].items():
        truth, found = stored[f"{name}/gt"], stored[f"{name}/pred"]
        if fails(case):
            action = lambda t=truth, f=found, n=name: vos.semi_supervised(t, f, n)  # noqa: E731
            yield refused(f"{name} is refused", action)
            continue
        tracks = vos.semi_supervised(truth, found, name)
        yield Figure(f"{name} objects", case["num_objects"], len(tracks.region), EXACT)
        for number, want in case["per_object"].items():
            got = {}
            if int(number) <= len(tracks.region):
                for key, rows in (("J", tracks.region), ("F", tracks.boundary)):
                    row = rows[int(number) - 1]
                    got[f"{key}_per_frame"] = row
                    got[f"{key}_mean_recall_decay"] = vos.statistics(row)
            yield from compared(f"{name} object {number}", want, got)
        yield from compared(f"{name} global", case["global"], _global([tracks]))
    for name, case in golden.get("boundary_pairs", {}).items():
        yield from _pair(name, case, stored)
    for k, case in enumerate(golden.get("db_statistics", [])):
        got = vos.statistics(np.array(case["values"]))
        yield Figure(f"statistics {k}", case["mean_recall_decay"], got)
    if (folder / "real_mask_cases.json").is_file():
        yield from _real(folder)


def _global(tracks: list[vos.Tracks]) -> dict[str, float]:
    own = vos.summary(tracks)
    names = {"J&F-Mean": "j&f", "J-Mean": "j", "J-Recall": "j_recall", "J-Decay": "j_decay"}
    names |= {"F-Mean": "f", "F-Recall": "f_recall", "F-Decay": "f_decay"}
    return {name: own[key] / 100 for name, key in names.items()}


def _pair(name: str, case: dict, stored: dict) -> Iterator[Figure]:
    height, width = (int(n) for n in stored[f"{name}/shape"])
    truth, found = (
        np.unpackbits(stored[f"{name}/{key}"], count=height * width).reshape(height, width) > 0
        for key in ("annotation", "segmentation")
    )
    for key, want in case.items():
        if key == "J":
            yield Figure(f"{name} J", want, vos.region(truth, found))
        elif key == "tolerance_px_default":
            got = int(np.ceil(vos.BOUNDARY * np.linalg.norm(truth.shape)))
            yield Figure(f"{name} tolerance in pixels", want, got, EXACT)
        elif found_number := re.fullmatch(r"F_(?:default|bound_th)_([\d.]+?)(px)?", key):
            got = vos.boundary(truth, found, tolerance=float(found_number[1]))
            yield Figure(f"{name} {key}", want, got)
        else:
            yield Figure(f"{name} {key}", want, "a figure that this program does not know")


def _real(folder: Path) -> Iterator[Figure]:
    """Masks of published methods, which lie among the samples beside the folder."""
    golden = read_cases(folder, "real_mask_cases.json")
    samples = next(
        (s for s in (folder.parents[1] / "samples", SAMPLES) if (s / "vos_masks").is_dir()), None
    )
    for name, case in golden["cases"].items():
        if samples is None:
            yield Figure(f"{name}", "../samples/vos_masks beside the folder", "absent")
            continue

        def load(place: str) -> np.ndarray:
            paths = sorted((samples / place / golden["sequence"]).glob("*.png"))
            return np.stack([np.asarray(Image.open(path)) for path in paths])

        truth = load(case["annotation"])
        if case_shift := re.search(r"rolled by \((-?\d+), *(-?\d+)\)", case["result"]):
            found = np.roll(truth, (int(case_shift[1]), int(case_shift[2])), (1, 2))
        else:
            found = load(case["result"].split()[0].rstrip(","))
        score = vos.unsupervised if name == "unsupervised" else vos.semi_supervised
        tracks = score(truth, found, golden["sequence"])
        for key, rows in (("J", tracks.region), ("F", tracks.boundary)):
            own = {f"{golden['sequence']}_{i + 1}": row.mean() for i, row in enumerate(rows)}
            yield from compared(f"{name} {key} mean", case[f"{key}_mean_per_object"], own)
        yield from compared(f"{name} global", case["global"], _global([tracks]))
