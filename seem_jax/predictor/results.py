"""What the predictor answers, and how it becomes COCO, polygons, PNGs and pictures. NumPy only."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from seem_jax.demo import draw
from seem_jax.postprocess import Segment
from seem_jax.predictor.everything import alike
from seem_jax.predictor.prompts import MaskMemory


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """N masks of one image, best first, with scores and, given classes, names."""

    masks: np.ndarray  # bool [N, H, W], the size of the original image
    scores: np.ndarray  # float32 [N] in [0, 1], share of the model's answers that say this mask
    quality: np.ndarray  # float32 [N] in [0, 1], mean mask probability inside the mask
    texts: tuple[str | None, ...]  # the phrase each mask answers, None for drawn prompts alone
    logits: np.ndarray  # float32 [N, h, w] of the padded model image at stride 4
    memories: tuple[MaskMemory, ...]  # of each mask: give one as `memory` to the next round
    classes: tuple[str, ...]  # C names to choose from; empty when none were given
    labels: np.ndarray  # int32 [N], the best class, -1 without classes
    probabilities: np.ndarray  # float32 [N, C]; what is missing to 1 is "none of them"
    dropped_points: int  # drawn pixels beyond the static maximum, thinned out evenly

    def __len__(self) -> int:
        return len(self.masks)

    @property
    def mask(self) -> np.ndarray:
        """bool [H, W], the best mask; ValueError where no mask reached the threshold."""
        return self.masks[self._first()]

    @property
    def memory(self) -> MaskMemory:
        """The memory of the best mask."""
        return self.memories[self._first()]

    @property
    def names(self) -> tuple[str | None, ...]:
        """The likeliest class of each mask; None without classes."""
        return tuple(self.classes[label] if label >= 0 else None for label in self.labels)

    @functools.cached_property
    def boxes(self) -> np.ndarray:
        """float32 [N, 4], (x0, y0, x1, y1) in pixels around each mask; zeros where it is empty."""
        return np.array([box_around(mask) for mask in self.masks], np.float32).reshape(-1, 4)

    @property
    def areas(self) -> np.ndarray:
        """int64 [N], pixels."""
        return self.masks.sum((1, 2), dtype=np.int64)

    def take(self, indices: Sequence[int]) -> Prediction:
        """Some of the answers, in the order of their indices."""
        chosen = np.asarray(indices, np.int64)
        return dataclasses.replace(
            self,
            masks=self.masks[chosen],
            scores=self.scores[chosen],
            quality=self.quality[chosen],
            texts=tuple(self.texts[index] for index in chosen),
            logits=self.logits[chosen],
            memories=tuple(self.memories[index] for index in chosen),
            labels=self.labels[chosen],
            probabilities=self.probabilities[chosen],
        )

    def different(self, overlap: float = 0.7) -> Prediction:
        """The answers whose mask no better one gives already, with an IoU of `overlap` or more.

        `Predictor.instances` names one object several times, as the COCO protocol has it. Masks are
        compared at the resolution of their logits.
        """
        if not len(self):
            return self
        iou = alike(self.logits > 0, self.logits > 0)
        kept: list[int] = []
        for index in range(len(self)):
            if (iou[index, kept] < overlap).all():
                kept.append(index)
        return self.take(kept)

    def to_rle(self) -> list[dict[str, Any]]:
        """COCO run-length encodings (column-major), ready for JSON."""
        return [encode_rle(mask) for mask in self.masks]

    def to_polygons(self) -> list[list[np.ndarray]]:
        """The outer rings of each mask, float32 [n, 2] of (x, y) at pixel centres.

        Holes are lost: use `to_rle` where they matter.
        """
        return [polygons_of(mask) for mask in self.masks]

    def to_coco(self, image_id: int, category_ids: Sequence[int] | None = None) -> list[dict]:
        """COCO results: one dict per mask with RLE, bbox (x, y, width, height), area and score.

        category_ids gives the number of each class in the wanted data set (1, 2, ... if absent).
        """
        ids = range(1, len(self.classes) + 1) if category_ids is None else category_ids
        if len(ids) != len(self.classes):
            raise ValueError(
                f"category_ids has {len(ids)} numbers for {len(self.classes)} classes."
            )
        out = []
        for index, rle in enumerate(self.to_rle()):
            x0, y0, x1, y1 = self.boxes[index].tolist()
            entry = {
                "image_id": image_id,
                "category_id": int(ids[self.labels[index]]) if self.labels[index] >= 0 else 0,
                "segmentation": rle,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": int(self.areas[index]),
                "score": float(self.scores[index]),
            }
            named = {"name": self.names[index], "text": self.texts[index]}
            out.append(entry | {key: value for key, value in named.items() if value is not None})
        return out

    def to_supervision(self) -> dict[str, Any]:
        """The fields of `supervision.Detections(**fields)`, without depending on that library."""
        fields: dict[str, Any] = {
            "xyxy": self.boxes,
            "mask": self.masks,
            "confidence": self.scores,
            "class_id": self.labels.astype(int),
        }
        if self.classes:
            fields["data"] = {"class_name": np.array(self.names, dtype=str)}
        return fields

    def draw(
        self,
        image: np.ndarray,
        side: int | None = None,
        clear: Sequence[Sequence[float]] = (),
    ) -> np.ndarray:
        """A copy of the image uint8 [H, W, 3] with the masks, their names or phrases, and scores.

        Its longer edge is `side` pixels, or as it was: letters do not fit into small pictures. They
        stay off the places (x, y) in [0, 1] of `clear`, where marks are to be seen.
        """
        _same_size(image, self.masks.shape[1:])
        image, shown = sized(image, self.masks, side)
        tags = [
            f"{name or text or ''} {score:.2f}".strip()
            for name, text, score in zip(self.names, self.texts, self.scores, strict=True)
        ]
        order = range(len(self) - 1, -1, -1)  # the best on top
        masks = [shown[index] for index in order]
        colours = [draw.colour(index) for index in order]
        shown = draw.overlay(image, masks, colours)
        return draw.names(shown, masks, [tags[i] for i in order], clear)

    def _first(self) -> int:
        if not len(self):
            raise ValueError("no mask reached the threshold: lower it, or look at len(prediction).")
        return 0


@dataclasses.dataclass(frozen=True, eq=False)
class PanopticPrediction:
    """Every pixel of one image belongs to one segment or to none (0)."""

    segmentation: np.ndarray  # int32 [H, W], segment ids from 1
    segments: tuple[Segment, ...]  # in id order
    classes: tuple[str, ...]

    def segments_info(self) -> list[dict[str, Any]]:
        """One dict per segment, ready for JSON; the fields that COCO and transformers use."""
        out = []
        for segment in self.segments:
            mask = self.segmentation == segment.id
            x0, y0, x1, y1 = box_around(mask)
            out.append(
                {
                    "id": segment.id,
                    "category_id": segment.category + 1,
                    "label_id": segment.category,
                    "name": self.classes[segment.category],
                    "isthing": int(segment.is_thing),
                    "score": segment.score,
                    "area": int(mask.sum()),
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "iscrowd": 0,
                }
            )
        return out

    def to_png(self) -> np.ndarray:
        """uint8 [H, W, 3], the ids as COCO writes them: id = R + 256 G + 65536 B."""
        ids = self.segmentation
        return np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)

    def draw(self, image: np.ndarray, side: int | None = None) -> np.ndarray:
        """A copy of the image with every segment in the colour of its class; as `Prediction.draw`."""
        _same_size(image, self.segmentation.shape)
        masks = [self.segmentation == segment.id for segment in self.segments]
        image, masks = sized(image, masks, side)
        names = [self.classes[segment.category] for segment in self.segments]
        seen: list[str] = []
        colours = []
        for segment, name in zip(self.segments, names, strict=True):
            colours.append(draw.colour(segment.category, shade=seen.count(name)))
            seen.append(name)
        return draw.names(draw.overlay(image, masks, colours), masks, names)


@dataclasses.dataclass(frozen=True, eq=False)
class SemanticPrediction:
    """The class of every pixel of one image."""

    labels: np.ndarray  # int32 [H, W], index into classes
    classes: tuple[str, ...]

    def draw(self, image: np.ndarray, side: int | None = None) -> np.ndarray:
        """A copy of the image with every class in its colour; as `Prediction.draw`."""
        _same_size(image, self.labels.shape)
        there = np.unique(self.labels).tolist()
        image, masks = sized(image, [self.labels == label for label in there], side)
        coloured = draw.overlay(image, masks, [draw.colour(label) for label in there])
        return draw.names(coloured, masks, [self.classes[label] for label in there])


def box_around(mask: np.ndarray) -> tuple[int, int, int, int]:
    """(x0, y0, x1, y1) in pixels, the end exclusive; zeros for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
    """{"size": [H, W], "counts": text} of a bool mask [H, W]."""
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": [int(n) for n in rle["size"]], "counts": rle["counts"].decode()}


def polygons_of(mask: np.ndarray) -> list[np.ndarray]:
    """The outer rings of a bool mask [H, W], each float32 [n, 2] with n at least 3."""
    rings, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [ring[:, 0].astype(np.float32) for ring in rings if len(ring) >= 3]


def sized(
    image: np.ndarray, masks: Sequence[np.ndarray], side: int | None
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The image and its masks with a longer edge of `side` pixels, or as they are."""
    if side is None:
        return image, list(masks)
    return draw.fit(image, side), [draw.fit(mask, side) for mask in masks]


def _same_size(image: np.ndarray, size: tuple[int, ...]) -> None:
    if image.shape != (*size, 3) or image.dtype != np.uint8:
        raise ValueError(
            f"image is {image.dtype} {image.shape}; expected uint8 {(*size, 3)}, the image of this "
            "prediction."
        )
