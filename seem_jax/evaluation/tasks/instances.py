"""Average precision of the instances that the object queries find."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from pycocotools import mask as coco_mask

from seem_jax import postprocess
from seem_jax.data.schema import Record
from seem_jax.evaluation import truth
from seem_jax.evaluation.instance_ap import average_precision, read_annotations
from seem_jax.evaluation.results import Result
from seem_jax.evaluation.tasks.base import Answer, Context, Pictures, identified
from seem_jax.evaluation.tasks.everything import Everything, object_logits, one_by_one

SHOWN = 0.5  # score above which a picture has a detection


def instances(model, params, table, features, plan, *, num_things: int, top: int):
    """`postprocess.Instances` [B, top, ...] at the original sizes."""
    names, masks = object_logits(model, params, table, features)

    def read(names, masks, inside):
        # Below zero outside the image, so that the mean over a mask reads the image only.
        masks = jnp.where(inside[None], masks, -jnp.inf)
        return postprocess.instances(names, masks, num_things, top)

    return one_by_one(read, names, masks, plan)


class Instances(Everything):
    """Average precision of thing masks."""

    name = "instance"
    TOP = 100  # pairs of query and class that are kept

    def __init__(self, context: Context, split: str):
        super().__init__(context, split)
        self.program = context.spread(instances, 2, num_things=self.num_things, top=self.TOP)
        self.file = context.config.evaluation.instance_annotations
        self.annotations = read_annotations(self.file) if self.file else None

    def protocol(self) -> dict[str, Any]:
        faster = self.context.config.evaluation.faster_coco_eval
        return super().protocol() | {
            "metric": "COCO mask AP, " + ("faster-coco-eval" if faster else "pycocotools"),
            "truth": f"the annotations of {identified(self.file)}"
            if self.file
            else "thing segments of the panoptic truth, crowds as crowds",
            "detections": f"best {self.TOP} pairs of query and class, thing classes of these",
        }

    def _answer(self, sample: int, record: Record, found: postprocess.Instances) -> Answer:
        cut = np.s_[: record.height, : record.width]
        true = self._truth(record)
        kept = [k for k in np.flatnonzero(found.valid) if found.mask[k][cut].any()]
        detections = [
            {
                "category": int(found.label[k]),
                "score": float(found.score[k]),
                "rle": _rle(found.mask[k][cut]),
            }
            for k in kept
        ]
        result = {
            "sample": sample,
            "name": record.file_name,
            "size": [record.height, record.width],
            "truth": true,
            "detections": detections,
        }
        result["score"] = self._precision([result]).result()["ap"]

        def pictures() -> Pictures:
            truths = [(_mask(t, record), t["category"]) for t in true if not t["crowd"]]
            best = [d for d in detections if d["score"] > SHOWN]
            answers = [(_mask(d, record), d["category"]) for d in best]
            return self._pictures(record, truths, answers, f"AP {result['score']:.0f}")

        return Answer(result, pictures)

    def _truth(self, record: Record) -> list[dict]:
        """The things to be found, by contiguous class; the areas are those that AP sorts them by."""
        if self.annotations is None:
            return [
                {
                    "category": segment.category,
                    "crowd": segment.crowd,
                    "rle": _rle(mask),
                    "area": float(np.count_nonzero(mask)),
                }
                for segment, mask in truth.segment_masks(record)
                if segment.category < self.num_things
            ]
        if record.image_id not in self.annotations:
            raise ValueError(
                f"{self.file} has no image {record.image_id} ({record.file_name}); give the annotations "
                f"of {self.split} in config.evaluation.instance_annotations."
            )
        contiguous = {number: c for c, number in enumerate(self.data.category_ids)}
        out = []
        for row in self.annotations[record.image_id]:
            category = contiguous.get(row["category_id"], self.num_things)
            if category >= self.num_things:
                raise ValueError(
                    f"{self.file}, image {record.image_id}: category {row['category_id']} is no thing "
                    f"class of {self.split}."
                )
            kept = {"crowd": bool(row["iscrowd"]), "rle": row["rle"], "area": row["area"]}
            out.append({"category": category} | kept)
        return out

    def _precision(self, results: Sequence[Result]):
        """average_precision over images and things of any number, also none."""
        masks = [(r, mask) for r in results for mask in r["truth"]]
        data = {
            "images": [
                {"id": r["sample"], "height": r["size"][0], "width": r["size"][1]} for r in results
            ],
            "categories": [{"id": c, "name": self.names[c]} for c in range(self.num_things)],
            "annotations": [
                {
                    "id": number,
                    "image_id": r["sample"],
                    "category_id": mask["category"],
                    "iscrowd": int(mask["crowd"]),
                    "segmentation": {"size": r["size"], "counts": mask["rle"]},
                    "area": mask["area"],
                }
                for number, (r, mask) in enumerate(masks, 1)
            ],
        }
        detections = [
            {
                "image_id": r["sample"],
                "category_id": mask["category"],
                "score": mask["score"],
                "segmentation": {"size": r["size"], "counts": mask["rle"]},
            }
            for r in results
            for mask in r["detections"]
        ]
        faster = self.context.config.evaluation.faster_coco_eval
        return average_precision(data, detections, faster=faster)

    def summary(self, results: Sequence[Result]) -> dict[str, float]:
        found = self._precision(results)
        per_class = {
            f"class/{self.names[c]}/ap": 100 * value for c, value in found.per_category.items()
        }
        return found.result() | per_class


def _rle(mask: np.ndarray) -> str:
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()


def _mask(stored: dict, record: Record) -> np.ndarray:
    size = [record.height, record.width]
    return coco_mask.decode({"size": size, "counts": stored["rle"].encode()}).astype(bool)
