"""The runner of stored numbers on hostile cases of other seeds: crowds, void, ties, nothing at all.

Expected values are pycocotools' own for AP, and elsewhere the formulas written out pixel by pixel,
segment by segment, without any function of the project.
"""

from __future__ import annotations

import contextlib
import io
import json
import math

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy import ndimage

from tests.metric_goldens import __main__ as command

CATEGORIES = [{"id": 3, "isthing": 1}, {"id": 7, "isthing": 1}, {"id": 92, "isthing": 0}]
CATEGORIES += [{"id": 200, "isthing": 0}]  # occurs nowhere


def write(folder, name: str, cases: dict, arrays: dict | None = None, **more) -> None:
    """A folder of the layout; NaN becomes "nan"."""

    def plain(value):
        if isinstance(value, dict):
            return {str(key): plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple, np.ndarray)):
            return [plain(item) for item in value]
        value = value.item() if isinstance(value, np.generic) else value
        return "nan" if isinstance(value, float) and math.isnan(value) else value

    (folder / name).mkdir(parents=True)
    text = json.dumps(plain({"cases": cases} | more))
    (folder / name / "cases.json").write_text(text)
    if arrays:
        np.savez(folder / name / "arrays.npz", **arrays)


def check(folder, name: str, at_least: int) -> None:
    found = list(command.figures(folder / name))
    assert len(found) >= at_least
    assert [command.line(name, figure) for figure in found if not figure.passed] == []


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values) if values else math.nan


def blobs(rng, count: int, side: int = 40) -> np.ndarray:
    """int64 [side, side]: rectangles numbered from 1 on top of each other, 0 elsewhere."""
    ids = np.zeros((side, side), np.int64)
    for number in range(1, count + 1):
        top, left = rng.integers(0, side - 6, 2)
        height, width = rng.integers(4, 18, 2)
        ids[top : top + height, left : left + width] = number
    return ids


def panoptic_image(rng, kind: str):
    """(truth, its segments, prediction, its segments) of one image."""
    truth = blobs(rng, 7)
    categories = rng.choice([3, 7, 92], 8)
    crowds = rng.random(8) < (0.5 if kind == "crowds" else 0.1)
    if kind == "void":
        truth[:20] = 0
    found = np.roll(truth, rng.integers(-2, 3, 2), (0, 1)) if kind != "void" else blobs(rng, 7)
    guessed = np.where(rng.random(8) < 0.2, rng.choice([3, 7, 92], 8), categories)
    if kind == "empty":
        found = np.zeros_like(found)
    true = [
        {
            "id": int(i),
            "category_id": int(categories[i]),
            "iscrowd": int(crowds[i]),
            "area": int((truth == i).sum()),
        }
        for i in np.unique(truth[truth > 0])
    ]
    pred = [{"id": int(i), "category_id": int(guessed[i])} for i in np.unique(found[found > 0])]
    return truth, true, found, pred


def plain_panoptic(images) -> dict:
    """Counts and qualities by the definition, every pair of segments looked at."""
    counts = {c["id"]: {"tp": 0, "fp": 0, "fn": 0, "iou_sum": 0.0} for c in CATEGORIES}
    for truth, true, found, pred in images:
        hit_true, hit_pred = set(), set()
        for t in true:
            for p in pred:
                if t["iscrowd"] or t["category_id"] != p["category_id"]:
                    continue
                a, b = truth == t["id"], found == p["id"]
                union = (b & (truth != 0)).sum() + a.sum() - (a & b).sum()
                if (a & b).sum() / union > 0.5:
                    counts[t["category_id"]]["tp"] += 1
                    counts[t["category_id"]]["iou_sum"] += (a & b).sum() / union
                    hit_true.add(t["id"]), hit_pred.add(p["id"])
        for t in true:
            if not t["iscrowd"] and t["id"] not in hit_true:
                counts[t["category_id"]]["fn"] += 1
        for p in pred:
            crowd = [t["id"] for t in true if t["iscrowd"] and t["category_id"] == p["category_id"]]
            own = truth[found == p["id"]]
            free = (own == 0) | (own == crowd[-1] if crowd else False)
            if p["id"] not in hit_pred and free.mean() <= 0.5:
                counts[p["category_id"]]["fp"] += 1
    quality = {}
    for category, n in counts.items():
        total = n["tp"] + n["fp"] / 2 + n["fn"] / 2
        sq = n["iou_sum"] / n["tp"] if n["tp"] else 0.0
        if total:
            quality[category] = {"pq": n["iou_sum"] / total, "sq": sq, "rq": n["tp"] / total}
    out = {"counts": {c: n for c, n in counts.items() if any(n.values())}}
    for group, wanted in (("All", (0, 1)), ("Things", (1,)), ("Stuff", (0,))):
        rows = [
            quality[c["id"]] for c in CATEGORIES if c["isthing"] in wanted and c["id"] in quality
        ]
        out[group] = {key: mean(row[key] for row in rows) for key in ("pq", "sq", "rq")}
        out[group]["n"] = len(rows)
    none = dict.fromkeys(("pq", "sq", "rq"), 0.0)
    return out | {"per_class": {c["id"]: quality.get(c["id"], none) for c in CATEGORIES}}


def test_panoptic_cases(tmp_path):
    cases, arrays = {}, {}
    for seed, kind in enumerate(("crowds", "void", "empty", "plain", "crowds")):
        rng = np.random.default_rng(seed + 100)
        name, images = f"{kind}{seed}", [panoptic_image(rng, kind) for _ in range(4)]
        for k, (truth, _, found, _) in enumerate(images):
            scale = 70_001  # ids beyond 16 bits
            arrays[f"{name}/{k}/gt"] = (truth * scale).astype(np.uint32)
            arrays[f"{name}/{k}/pred"] = (found * scale).astype(np.uint32)
        listed = [
            {
                "gt_segments_info": [t | {"id": t["id"] * 70_001} for t in true],
                "pred_segments_info": [p | {"id": p["id"] * 70_001} for p in pred],
            }
            for _, true, _, pred in images
        ]
        cases[name] = {"images": listed, "expected": plain_panoptic(images)}
    write(tmp_path, "panoptic", cases, arrays, categories=CATEGORIES)
    check(tmp_path, "panoptic", 100)


def coco_case(rng, detections: int, crowd: float) -> tuple[dict, list]:
    """Truth and result as in COCO files: 3 images, a category without truth, equal scores."""
    truth, found, side = [], [], 96

    def rle(box):
        mask = np.zeros((side, side), np.uint8, order="F")
        mask[box[0] : box[0] + box[2], box[1] : box[1] + box[3]] = 1
        code = coco_mask.encode(mask)
        return {"size": [side, side], "counts": code["counts"].decode()}, float(mask.sum())

    for image in range(1, 4):
        boxes = np.concatenate([rng.integers(0, 50, (5, 2)), rng.integers(5, 46, (5, 2))], 1)
        for box in boxes:
            code, area = rle(box)
            place = {"image_id": image, "category_id": int(rng.choice([1, 5]))}
            shape = {"segmentation": code, "area": area, "bbox": box[[1, 0, 3, 2]].tolist()}
            crowded = {"id": len(truth) + 1, "iscrowd": int(rng.random() < crowd)}
            truth.append(place | shape | crowded)
        for _ in range(detections):
            box = np.maximum(boxes[rng.integers(5)] + rng.integers(-3, 4, 4), [0, 0, 1, 1])
            code, _ = rle(box)
            place = {"image_id": image, "category_id": int(rng.choice([1, 5, 9]))}
            score = float(rng.integers(0, 20) / 20)
            found.append(place | {"segmentation": code, "score": score})
    images = [{"id": i, "height": side, "width": side} for i in range(1, 4)]
    categories = [{"id": c, "name": str(c)} for c in (1, 5, 9)]
    return {"info": {}, "images": images, "categories": categories, "annotations": truth}, found


def owner_ap(truth: dict, found: list) -> dict:
    with contextlib.redirect_stdout(io.StringIO()):
        known, results = COCO(), COCO()
        known.dataset = truth
        known.createIndex()
        if found:
            results = known.loadRes([dict(d) for d in found])
        else:
            results.dataset = truth | {"annotations": []}
            results.createIndex()
        run = COCOeval(known, results, "segm")
        run.evaluate(), run.accumulate(), run.summarize()
    precision = run.eval["precision"][..., 0, -1]
    each = [precision[:, :, k][precision[:, :, k] > -1] for k in range(3)]
    return {
        "stats": run.stats.tolist(),
        "per_category_AP": {c: mean(v.tolist()) for c, v in zip((1, 5, 9), each, strict=True)},
    }


def test_average_precision_cases(tmp_path):
    cases, files = {}, {}
    for seed, (name, *options) in enumerate(
        [
            ("many", 250, 0.0),
            ("crowds", 30, 0.6),
            ("only_crowds", 10, 1.0),
            ("no_detection", 0, 0.2),
        ]
    ):
        truth, found = coco_case(np.random.default_rng(seed + 40), *options)
        files |= {f"{name}_gt.json": truth, f"{name}_dt.json": found}
        expected = {"segm": owner_ap(truth, found)}
        cases[name] = {"gt": f"{name}_gt.json", "dt": f"{name}_dt.json", "expected": expected}
    truth, found = files["many_gt.json"], files["many_dt.json"]
    files["none_gt.json"] = truth | {"annotations": []}
    expected = {"segm": owner_ap(files["none_gt.json"], found)}
    cases["no_truth"] = {"gt": "none_gt.json", "dt": "many_dt.json", "expected": expected}
    # The owner's loadRes fails on an empty list; ours has a number.
    cases["owner_fails"] = {
        "gt": "many_gt.json",
        "dt": "no_detection_dt.json",
        "error": "IndexError",
    }
    files["unknown_dt.json"] = [found[0] | {"image_id": 77}]
    cases["unknown"] = {"gt": "many_gt.json", "dt": "unknown_dt.json", "error": "AssertionError"}
    write(tmp_path, "instance_ap", cases)
    for name, content in files.items():
        (tmp_path / "instance_ap" / name).write_text(json.dumps(content))
    check(tmp_path, "instance_ap", 5 * 15 + 2)


def test_semantic_cases(tmp_path):
    cases, arrays = {}, {}
    for seed, (classes, ignored) in enumerate([(5, 0.3), (4, 1.0), (9, 0.0)]):
        rng, name = np.random.default_rng(seed), f"case{seed}"
        truth = rng.integers(0, classes - 1, (3, 20, 30))  # the last class is never true
        truth[rng.random(truth.shape) < ignored] = 255
        found = np.where(
            rng.random(truth.shape) < 0.6, truth, rng.integers(0, classes, truth.shape)
        )
        found[found == 255] = 0
        for k in range(3):
            arrays |= {f"{name}/{k}/gt": truth[k], f"{name}/{k}/pred": found[k]}
        valid, want = truth != 255, {}
        hit = [((truth == c) & (found == c)).sum() for c in range(classes)]
        true = [(truth == c).sum() for c in range(classes)]
        pred = [((found == c) & valid).sum() for c in range(classes)]
        ious = [h / (t + p - h) if t else math.nan for h, t, p in zip(hit, true, pred, strict=True)]
        some = sum(t + p > 0 for t, p in zip(true, pred, strict=True))
        exists, pixels = [c for c in range(classes) if true[c]], valid.sum()
        want["mIoU"] = 100 * sum(ious[c] for c in exists) / some if some else math.nan
        want["mACC"] = 100 * mean(hit[c] / true[c] for c in exists)
        # The owner's weighted sum over no class is 0; ours says NaN, and the command knows it.
        want["fwIoU"] = 100 * sum(ious[c] * true[c] for c in exists) / max(pixels, 1)
        want["pACC"] = 100 * sum(hit) / pixels if pixels else math.nan
        want |= {f"IoU-c{c}": 100 * iou for c, iou in enumerate(ious)}
        cases[name] = {"num_classes": classes, "num_images": 3, "expected": want}
    write(tmp_path, "semantic_miou", cases, arrays)
    check(tmp_path, "semantic_miou", 15)


def test_grounding_cases(tmp_path):
    cases, arrays = {}, {}
    for seed, name in enumerate(("noise", "nothing_found", "nothing_true", "no_expression")):
        rng = np.random.default_rng(seed)
        ious, shared, union, count = [], 0, 0, 0 if name == "no_expression" else 3
        for k in range(count):
            truth = rng.random((2, 25, 31)) < (0.0 if name == "nothing_true" else 0.5)
            logits = np.where(truth, 1, -1) + rng.normal(0, 1.5, truth.shape)
            logits = logits.astype(np.float16) if name != "nothing_found" else 0 * truth
            arrays |= {f"{name}/{k}/gt": truth, f"{name}/{k}/logits": np.float16(logits)}
            for mask, true in zip(np.float32(logits) > 0, truth, strict=True):
                a, b = (mask & true).sum(), (mask | true).sum()
                shared, union = shared + a, union + b
                ious.append(float(np.float32(a) / (np.float32(b) + np.float32(1e-6))))
        want = {"cIoU": 100 * shared / union if union else math.nan, "mIoU": 100 * mean(ious)}
        want |= {f"precision@{t}": 100 * mean(i >= t for i in ious) for t in (0.5, 0.7, 0.9)}
        sums = {"intersection": shared, "union": union, "iou_sum": sum(ious), "n": len(ious)}
        cases[name] = {"num_images": count, "expected": want, "sums": sums}
    write(tmp_path, "grounding", cases, arrays)
    check(tmp_path, "grounding", 4 * 7)


def test_interactive_cases(tmp_path):
    cases = {}
    for seed, (objects, clicks, at) in enumerate([(17, 20, 1), (5, 7, 3), (0, 10, 1)]):
        curves = np.sort(np.random.default_rng(seed).random((objects, clicks)), 1).astype(
            np.float32
        )
        curves[:1, -1:] = 0.9  # reached with the last click
        curves[1:2] = np.nan  # nothing to find
        own, ritm = {}, {}
        for t in (0.5, 0.8, 0.85, 0.9):
            counts = []
            for curve in curves:
                reached = [k + 1 for k, iou in enumerate(curve) if iou >= np.float32(t)]
                counts.append(reached[0] if reached else clicks)
            own[f"noc@{t}"] = mean(counts)
            full = sum(count == clicks for count in counts)
            ritm[t] = {"mean_noc": mean(counts), "num_samples_with_noc_equal_max": full}
        own[f"miou@iter{at}"] = mean(curves[:, at - 1].tolist())
        case = {"iou_curves": curves, "max_clicks": clicks, "iou_iter": at}
        cases[f"case{seed}"] = case | {"expected_seem": own, "expected_ritm": ritm}
    write(tmp_path, "interactive_noc", cases)
    check(tmp_path, "interactive_noc", 3 * 9)


def plain_boundary(truth, found) -> float:
    radius = math.ceil(0.008 * math.hypot(*truth.shape))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    edges = []
    for mask in (truth, found):
        padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
        others = (padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:])
        edges.append(np.any([mask != other for other in others], axis=0))
    if not edges[0].any() or not edges[1].any():
        return float(edges[0].any() == edges[1].any())
    near = [ndimage.binary_dilation(edge, x * x + y * y <= radius * radius) for edge in edges]
    precision, recall = (edges[1] & near[0]).sum() / edges[1].sum(), 0.0
    recall = (edges[0] & near[1]).sum() / edges[0].sum()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def test_video_cases(tmp_path):
    cases, arrays = {}, {}
    for seed, frames in enumerate((2, 3, 9, 12)):
        rng, name = np.random.default_rng(seed), f"case{seed}"
        truth = np.stack([np.roll(blobs(rng, 3, 60), t, 0) for t in range(frames)]).astype(np.uint8)
        found = np.stack([np.roll(f, int(rng.integers(0, 5)), 1) for f in truth])
        truth[1:, :3] = 255  # void is background
        found[-1] = 99  # of the last frame nothing counts
        objects, per_object, every = int(truth[0].max()), {}, []
        for i in range(1, objects + 1):
            rows: dict[str, list] = {"J": [], "F": []}
            for t, f in list(zip(truth, found, strict=True))[1:-1]:
                a, b = t == i, f == i
                rows["J"].append((a & b).sum() / (a | b).sum() if (a | b).any() else 1.0)
                rows["F"].append(plain_boundary(a, b))
            per_object[i] = {f"{key}_per_frame": row for key, row in rows.items()}
            every.append([mean(rows["J"]), mean(rows["F"])])
        both = [mean(e[k] for e in every) for k in (0, 1)]
        whole = {"J-Mean": both[0], "F-Mean": both[1], "J&F-Mean": mean(both)}
        cases[name] = {"num_objects": objects, "per_object": per_object, "global": whole}
        arrays |= {f"{name}/gt": truth, f"{name}/pred": found}
    arrays |= {"high/gt": truth, "high/pred": np.full_like(truth, 9)}
    cases["high"] = {"error": "more objects than there are"}
    write(tmp_path, "vos_jf", cases, arrays)
    check(tmp_path, "vos_jf", 4 * 8)


def test_clicks_of_ritm(tmp_path):
    """By SciPy's Euclidean distance; equally deep pixels are taken in reading order."""
    cases, arrays = {}, {}
    for seed in range(3):
        rng = np.random.default_rng(seed + 7)
        truth = (blobs(rng, 3, 50) == 2).astype(np.int32)
        truth[:, :4] = -1
        answers = np.stack([np.roll(truth == 1, rng.integers(-6, 7, 2), (0, 1)) for _ in range(6)])
        shown, clicked, clicks, ious = (
            np.zeros(truth.shape, bool),
            np.zeros(truth.shape, bool),
            [],
            [],
        )
        for answer in answers:
            counted = truth >= 0
            errors = [(truth == 1) & ~shown & counted, (truth == 0) & shown & counted]
            deep = [
                ndimage.distance_transform_edt(np.pad(e, 1))[1:-1, 1:-1] * ~clicked for e in errors
            ]
            positive = deep[0].max() > deep[1].max()
            row, column = divmod(int((deep[0] if positive else deep[1]).argmax()), truth.shape[1])
            clicks.append({"row": row, "col": column, "positive": bool(positive)})
            clicked[row, column], shown = True, answer
            both = ((truth == 1) & shown).sum(), (((truth == 1) | shown) & counted).sum()
            ious.append(both[0] / both[1])
        cases[str(seed)] = {"clicks": clicks, "iou_after_click": ious}
        arrays |= {f"{seed}/gt": truth, f"{seed}/pred_after_click": answers}
    write(tmp_path, "clicks_ritm", cases, arrays)
    check(tmp_path, "clicks_ritm", 3 * 12)


@pytest.mark.parametrize("name", ["panoptic", "instance_ap", "vos_jf"])
def test_a_case_that_cannot_be_read_fails_and_hides_no_other(tmp_path, name):
    good = {"num_objects": 0, "per_object": {}, "global": {}}
    write(tmp_path, name, {"bad": {}, "good": good}, {"x": np.zeros(1)}, categories=CATEGORIES)
    assert not all(figure.passed for figure in command.figures(tmp_path / name))
