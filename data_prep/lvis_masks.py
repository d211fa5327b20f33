"""Finer masks for panoptic segments, from LVIS (Gupta et al. 2019), which annotates COCO's images.

As the official training does it: a segment whose box overlaps the box of an LVIS object by more
than 0.7 IoU takes the mask of that object (the one of the largest IoU) and keeps its own class. The
boxes are those of the whole image; the official mapper compares what a random crop leaves of both.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from data_prep.annotations import Object, field, load_json, rle_counts
from data_prep.items import NEVER, Map, paint

MIN_IOU = 0.7  # of the boxes; more than this


@dataclasses.dataclass(frozen=True)
class LVISMask:
    """An LVIS annotation, whose class is not used."""

    annotation: Object
    box: tuple[float, float, float, float]  # (x0, y0, x1, y1) of its polygons, pixels


def read_lvis(paths: Sequence[Path]) -> dict[int, list[LVISMask]]:
    """The annotations of each image, in the order of the files."""
    masks = defaultdict(list)
    for path in paths:
        for number, row in enumerate(load_json(path, ("annotations",))["annotations"]):
            where = f"{path}, annotation {number}"
            polygons = field(row, "segmentation", list, where)
            entry = Object(field(row, "id", int, where), 0, polygons, where)
            corners = [polygon for polygon in polygons if len(polygon) >= 6]
            if not corners or any(len(polygon) % 2 for polygon in corners):
                raise ValueError(f"{where}: 'segmentation' must list polygons of x, y pairs.")
            points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in corners])
            x0, y0, x1, y1 = (*points.min(axis=0).tolist(), *points.max(axis=0).tolist())
            masks[field(row, "image_id", int, where)].append(LVISMask(entry, (x0, y0, x1, y1)))
    return dict(masks)


def with_lvis_masks(found: Map, lvis: Sequence[LVISMask]) -> Map:
    """The map with the masks that fit; what they cover of other segments is `Map.exact`."""
    height, width = found.pixels.shape
    masks = [found.pixels == number + 1 for number in range(len(found.segments))]
    boxes = np.array([_box(mask) for mask in masks], np.float64).reshape(-1, 4)
    overlap = box_iou(boxes, np.array([entry.box for entry in lvis], np.float64))  # [M, lvis]
    for number, ious in enumerate(overlap):
        if not found.segments[number].crowd and ious.max() > MIN_IOU:
            annotation = lvis[int(ious.argmax())].annotation
            counts = rle_counts(annotation, height, width)
            masks[number] = coco_mask.decode({"size": [height, width], "counts": counts}) > 0
    pixels = paint(masks)
    exact = tuple(
        NEVER if np.array_equal(pixels == number + 1, mask) else mask
        for number, mask in enumerate(masks)
    )
    return Map(pixels, found.segments, found.ignore, exact)


def box_iou(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """float64 [M, N] of the boxes (x0, y0, x1, y1), float64 [M, 4] and [N, 4]."""
    first = np.maximum(left[:, None, :2], right[None, :, :2])
    last = np.minimum(left[:, None, 2:], right[None, :, 2:])
    common = np.prod(np.clip(last - first, 0, None), axis=2)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (left, right)]
    union = areas[0][:, None] + areas[1][None, :] - common
    return common / np.maximum(union, 1e-9)


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The box around a mask, its last pixels included."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return 0, 0, 0, 0
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
