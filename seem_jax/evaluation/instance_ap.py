"""COCO average precision of instances: pycocotools, the owner's code, behind one function."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import json
import math
import numbers
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from seem_jax.data.schema import run_pixels

STATISTICS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
STATISTICS += ("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large")


@dataclasses.dataclass(frozen=True)
class AveragePrecision:
    """Fractions; NaN where nothing can be measured (pycocotools: -1)."""

    statistics: dict[str, float]  # by the names of STATISTICS, in pycocotools' order
    per_category: dict[int, float]  # AP by category id

    def result(self) -> dict[str, float]:
        """The statistics as percentages."""
        return {name: 100.0 * value for name, value in self.statistics.items()}


def average_precision(
    truth: Mapping, detections: Sequence[Mapping], *, boxes: bool = False, faster: bool = False
) -> AveragePrecision:
    """AP and AR of detections against a COCO data set (its JSON as a dict), by masks or by boxes.

    A detection is {image_id, category_id, score, segmentation and/or bbox} as in a COCO result
    file; equal scores keep their order. faster takes the package faster-coco-eval, a drop-in that
    agrees to rounding. Raises ValueError, naming the record, for duplicate ids, unknown images or
    categories, missing fields, masks that do not cover exactly their image and scores that are no
    numbers.
    """
    truth = copy.deepcopy(dict(truth))
    truth.setdefault("info", {})
    truth.setdefault("annotations", [])
    for annotation in truth["annotations"]:
        annotation.setdefault("iscrowd", 0)
    _check(truth, detections, boxes)
    if faster:
        try:
            import faster_coco_eval
        except ImportError as error:
            raise ValueError(
                "faster average precision needs: pip install faster-coco-eval"
            ) from error
        Data, Evaluation = faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster
    else:
        Data, Evaluation = COCO, COCOeval
    with contextlib.redirect_stdout(io.StringIO()):  # both packages print tables
        known = Data()
        known.dataset = truth
        known.createIndex()
        evaluation = Evaluation(
            known, _results(Data, known, detections), "bbox" if boxes else "segm"
        )
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # all sizes, 100 detections
    return AveragePrecision(
        statistics={
            name: math.nan if value < 0 else float(value)
            for name, value in zip(STATISTICS, evaluation.stats, strict=False)
        },
        per_category={
            int(category): _mean(precision[:, :, k])
            for k, category in enumerate(evaluation.params.catIds)
        },
    )


def read_annotations(path: str | Path) -> dict[int, list[dict]]:
    """image_id -> {category_id, iscrowd, area, rle} of each annotation of a COCO instance file, [] for
    an image without any.

    Raises ValueError naming the file, and the annotation, for anything else: ids that occur twice,
    unknown images, masks that do not cover exactly their image.
    """
    try:
        table = json.loads(Path(path).read_text())
        sizes = {image["id"]: (image["height"], image["width"]) for image in table["images"]}
        rows = table["annotations"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no COCO instance file ({error!r}).") from error
    for kind in ("images", "annotations"):
        twice = _twice(table[kind])
        if twice:
            raise ValueError(f"{path}: ids {twice} occur more than once among its {kind}.")
    out: dict[int, list[dict]] = {image: [] for image in sizes}
    for row in rows:
        try:
            shape, size = row["segmentation"], sizes[row["image_id"]]
            if isinstance(shape, list) or isinstance(shape["counts"], list):
                shape = coco_mask.frPyObjects(shape, *size)
            code = coco_mask.merge(shape) if isinstance(shape, list) else shape
            counts = code["counts"]
            if problem := _mask_problem(code, size, row["image_id"]):
                raise ValueError(problem)
            kept = {
                "category_id": row["category_id"],
                "iscrowd": int(row.get("iscrowd", 0)),
                "area": float(row["area"]),
                "rle": counts if isinstance(counts, str) else counts.decode(),
            }
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}, annotation {row.get('id')}: {error!r}.") from error
        out[row["image_id"]].append(kept)
    return out


def _results(Data: type, known, detections: Sequence[Mapping]):
    """The detections as a COCO object; unlike loadRes it also takes none at all."""
    if detections:
        return known.loadRes([dict(detection) for detection in detections])
    empty = Data()
    empty.dataset = {**known.dataset, "annotations": []}
    empty.createIndex()
    return empty


def _mean(precision: np.ndarray) -> float:
    measured = precision[precision > -1]
    return float(measured.mean()) if measured.size else math.nan


def _twice(records: Sequence[Mapping]) -> list:
    """The first ids that occur more than once; records without one are not looked at."""
    counts = Counter(record["id"] for record in records if "id" in record)
    return [number for number, count in counts.items() if count > 1][:5]


def _check(truth: Mapping, detections: Sequence[Mapping], boxes: bool) -> None:
    images = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    categories = {category["id"] for category in truth["categories"]}
    for kind in ("images", "categories", "annotations"):
        twice = _twice(truth[kind])
        if twice:
            raise ValueError(f"truth: ids {twice} occur more than once among its {kind}.")
    common = {"image_id", "category_id"}
    fields = common | {"area", "bbox" if boxes else "segmentation"}
    records = [(f"annotation {a['id']} of the truth", a, fields) for a in truth["annotations"]]
    # pycocotools takes all detections for what the first one is, boxes or masks.
    shape = {"segmentation", "bbox"} & set(detections[0] if detections else ()) or {"segmentation"}
    fields = common | {"score"} | shape
    records += [(f"detection {number}", found, fields) for number, found in enumerate(detections)]
    for name, record, required in records:
        if missing := sorted(required - set(record)):
            raise ValueError(f"{name} has no {' and no '.join(missing)}.")
        if record["image_id"] not in images:
            raise ValueError(f"{name}: unknown image {record['image_id']!r}.")
        if record["category_id"] not in categories:
            raise ValueError(
                f"{name} (image {record['image_id']}): unknown category "
                f"{record['category_id']!r}; known are {sorted(categories)}."
            )
        mask = record.get("segmentation")
        if isinstance(mask, Mapping):
            image = record["image_id"]
            if problem := _mask_problem(mask, images[image], image):
                raise ValueError(f"{name}: {problem}.")
    for number, detection in enumerate(detections):
        score, mask = detection["score"], detection.get("segmentation")
        if not isinstance(score, numbers.Real) or not math.isfinite(score):
            raise ValueError(f"detection {number}: its score is {score!r}.")
        coded = isinstance(mask, Mapping) and isinstance(mask["counts"], (str, bytes))
        if "bbox" not in shape and not coded:
            raise ValueError(f"detection {number}: its segmentation is no compressed COCO code.")


def _mask_problem(mask: Mapping, size: tuple[int, int], image: object) -> str:
    """Why a run-length code does not cover exactly its image, "" if it does. pycocotools reads on beyond
    the end of such a code, for ever or into wrong numbers."""
    counts = mask["counts"]
    if isinstance(counts, list):
        covered = sum(counts)
    else:
        covered = run_pixels(counts.encode() if isinstance(counts, str) else counts)
    if tuple(mask["size"]) == size and covered == size[0] * size[1]:
        return ""
    return (
        f"its mask is {tuple(mask['size'])} (height, width) and covers {covered} pixels, "
        f"image {image} is {size}"
    )
