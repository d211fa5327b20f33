"""Panoptic quality, instance AP, semantic and referring scores."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from seem_jax.evaluation import referring
from seem_jax.evaluation.instance_ap import STATISTICS, average_precision
from seem_jax.evaluation.panoptic import PanopticQuality, TruthSegment
from seem_jax.evaluation.semantic import SemanticScores
from tests.metric_goldens.figures import (
    AP,
    EXACT,
    Figure,
    compared,
    fails,
    read_arrays,
    read_cases,
    refused,
)

GROUPS = {"All": "", "Things": "_things", "Stuff": "_stuff"}
SAMPLES = Path(__file__).resolve().parents[2].parent / "shared" / "samples"


def panoptic(folder: Path) -> Iterator[Figure]:
    golden, maps = read_cases(folder), read_arrays(folder)
    is_thing = {c["id"]: bool(c["isthing"]) for c in golden["categories"]}
    for name, case in golden["cases"].items():

        def run(name=name, case=case) -> PanopticQuality:
            quality = PanopticQuality(is_thing)
            for k, image in enumerate(case["images"]):
                quality.add(
                    maps[f"{name}/{k}/gt"],
                    _truth(image["gt_segments_info"]),
                    maps[f"{name}/{k}/pred"],
                    [(s["id"], s["category_id"]) for s in image["pred_segments_info"]],
                    f"{name}, image {k}",
                )
            return quality

        want = case.get("expected", case)
        if fails(case) and "counts" not in want:  # the owner failed before it had counted
            yield refused(f"{name} is refused", run)
            continue
        quality = run()
        yield from _panoptic_counts(name, want["counts"], quality)
        if fails(case):  # the owner divides by zero; ours is NaN for the group without categories
            result = quality.result()
            groups = [result[f"pq{suffix}"] for suffix in GROUPS.values()]
            yield Figure(f"{name}: a group without categories is NaN", True, np.isnan(groups).any())
        else:
            yield from _panoptic_means(name, want, quality)
    if (folder / "coco_sample_cases.json").is_file():
        yield from _panoptic_of_samples(folder)


def _truth(segments: list[dict]) -> list[TruthSegment]:
    return [
        TruthSegment(s["id"], s["category_id"], bool(s.get("iscrowd", 0)), s.get("area"))
        for s in segments
    ]


def _panoptic_counts(name: str, counts: dict, quality: PanopticQuality) -> Iterator[Figure]:
    for category, own in quality.counts.items():
        want = counts.get(str(category), {"tp": 0, "fp": 0, "fn": 0, "iou_sum": 0.0})
        got = [own.true_positive, own.false_positive, own.false_negative]
        expected = [want["tp"], want["fp"], want["fn"]]
        yield Figure(f"{name} {category} tp fp fn", expected, got, EXACT)
        yield Figure(f"{name} {category} iou_sum", want["iou_sum"], own.iou)


def _panoptic_means(name: str, expected: dict, quality: PanopticQuality) -> Iterator[Figure]:
    result = quality.result()
    per_category = quality.per_category()
    for group, suffix in GROUPS.items():
        if group not in expected:
            continue
        for key in ("pq", "sq", "rq"):
            got = result[key + suffix] / 100
            yield Figure(f"{name} {group} {key}", expected[group][key], got)
        wanted = {"All": (True, False), "Things": (True,), "Stuff": (False,)}[group]
        number = sum(
            quality.is_thing[c] in wanted and not np.isnan(q[0]) for c, q in per_category.items()
        )
        yield Figure(f"{name} {group} n", expected[group]["n"], number, EXACT)
    for category, want in expected.get("per_class", {}).items():
        # The owner writes zeros for a category that occurs nowhere, and leaves it out of the means.
        got = np.nan_to_num(per_category[int(category)])
        yield Figure(f"{name} class {category}", [want[k] for k in ("pq", "sq", "rq")], got)


def _panoptic_of_samples(folder: Path) -> Iterator[Figure]:
    """Predictions made from real annotations by the recipe that each case states."""
    samples = next((s for s in (folder.parents[1] / "samples", SAMPLES) if s.is_dir()), None)
    file = next((samples / "coco").rglob("panoptic*.json"), None) if samples else None
    for name, case in read_cases(folder, "coco_sample_cases.json")["cases"].items():
        if file is None:
            yield Figure(f"coco sample {name}", "../samples/coco beside the folder", "absent")
            continue
        recipe = case["prediction"]
        shift = re.search(r"rolled by \(rows,cols\)=\((-?\d+), *(-?\d+)\)", recipe)
        dropped = re.search(r"is a multiple of (\d+)", recipe)
        if not shift:
            yield Figure(f"coco sample {name}", "a known recipe", recipe)
            continue
        stored = json.loads(file.read_text())
        quality = PanopticQuality({c["id"]: bool(c["isthing"]) for c in stored["categories"]})
        for image in stored["annotations"]:
            png = next((samples / "coco").rglob(f"{file.stem}/{image['file_name']}"))
            rgb = np.asarray(Image.open(png), np.int64)
            truth = rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]
            predicted = np.roll(truth, (int(shift[1]), int(shift[2])), (0, 1))
            every = int(dropped[1]) if dropped else len(image["segments_info"]) + 1
            kept = [
                (s["id"], s["category_id"])
                for k, s in enumerate(image["segments_info"])
                if not s["iscrowd"] and (dropped is None or k % every)
            ]
            predicted[~np.isin(predicted, [i for i, _ in kept])] = 0
            quality.add(truth, _truth(image["segments_info"]), predicted, kept, name)
        yield from _panoptic_means(f"coco sample {name}", case, quality)


def instance_ap(folder: Path) -> Iterator[Figure]:
    golden = read_cases(folder)
    names = golden.get("stat_names", STATISTICS)
    for name, case in golden["cases"].items():
        truth, found = read_cases(folder, case["gt"]), read_cases(folder, case["dt"])
        if fails(case) and not found:  # the owner cannot load an empty list; ours has a number
            precision = average_precision(truth, found).statistics["ap"]
            yield Figure(f"{name}: AP without detections", True, not precision > 0)
            continue
        if fails(case):
            yield refused(f"{name} is refused", lambda t=truth, f=found: average_precision(t, f))
            continue
        for kind, expected in case["expected"].items():
            got = average_precision(truth, found, boxes=kind == "bbox")
            for number, value, own in zip(
                names, expected["stats"], got.statistics.values(), strict=True
            ):
                value = np.nan if value == -1 else value  # ours says NaN where nothing is measured
                yield Figure(f"{name} {kind} {number}", value, own, AP)
            per_category = {str(c): v for c, v in got.per_category.items()}
            want = {c: np.nan if v == -1 else v for c, v in expected["per_category_AP"].items()}
            yield from compared(f"{name} {kind} AP of", want, per_category, AP)


def semantic(folder: Path) -> Iterator[Figure]:
    labels = read_arrays(folder)
    for name, case in read_cases(folder)["cases"].items():

        def run(name=name, case=case) -> SemanticScores:
            scores = SemanticScores(case["num_classes"], case.get("ignore_label", 255))
            for k in range(case["num_images"]):
                pair = labels[f"{name}/{k}/gt"], labels[f"{name}/{k}/pred"]
                scores.add(*pair, f"{name}, image {k}")
            return scores

        if fails(case):
            yield refused(f"{name} is refused", run)
            continue
        scores = run()
        result, (iou, accuracy) = scores.result(), scores.per_class()
        got = {key: result[key.lower()] for key in ("mIoU", "fwIoU", "mACC", "pACC")}
        if np.isnan(result["pacc"]):  # no pixel counts: the owner's weighted sum of nothing is 0
            got["fwIoU"] = 0.0
        got |= {f"IoU-c{c}": 100 * value for c, value in enumerate(iou)}
        got |= {f"ACC-c{c}": 100 * value for c, value in enumerate(accuracy)}
        yield from compared(name, case["expected"], got, unit=100)


def grounding(folder: Path) -> Iterator[Figure]:
    stored = read_arrays(folder)
    for name, case in read_cases(folder)["cases"].items():
        if "num_images" in case:
            pairs = [
                (stored[f"{name}/{k}/logits"].astype(np.float32) > 0, stored[f"{name}/{k}/gt"] > 0)
                for k in range(case["num_images"])
            ]
        else:
            pairs = [_in_words(case["what"])]
        shared = [(p & t).sum((1, 2)) for p, t in pairs]
        union = [(p | t).sum((1, 2)) for p, t in pairs]
        shared, union = (np.concatenate([*c, np.zeros(0, np.int64)]) for c in (shared, union))
        result = referring.scores(shared, union)
        got = {"cIoU": result["ciou"], "mIoU": result["miou"]}
        got |= {f"precision@{t}": result[f"p@{t}"] for t in referring.THRESHOLDS}
        yield from compared(name, case["expected"], got, unit=100)
        if "sums" in case:
            sums = case["sums"]
            yield Figure(
                f"{name} intersection union n",
                [sums["intersection"], sums["union"], sums["n"]],
                [shared.sum(), union.sum(), len(union)],
                EXACT,
            )
            ious = referring.expression_iou(shared, union).sum(dtype=np.float64)
            yield Figure(f"{name} iou_sum", sums["iou_sum"], ious, unit=max(1, sums["n"]))


def _in_words(what: str) -> tuple[np.ndarray, np.ndarray]:
    """(prediction, truth) bool [1, H, W] of an image that a case describes by its first pixels."""
    found = re.search(r"(\d+)x(\d+) image.*first (\d+) GT pixels.*first (\d+) logits", what)
    if not found:
        raise ValueError(f"a case is described as {what!r}, which this program cannot draw.")
    height, width, true, predicted = map(int, found.groups())
    order = np.arange(height * width).reshape(1, height, width)
    return order < predicted, order < true
