"""What the object queries say of every pixel: panoptic segments, classes. instances.py has the rest."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from seem_jax import name_templates, postprocess
from seem_jax.data.schema import Record
from seem_jax.demo import draw
from seem_jax.evaluation import calibration, sheets, truth
from seem_jax.evaluation.panoptic import Counts, PanopticQuality
from seem_jax.evaluation.reader import named
from seem_jax.evaluation.results import Result
from seem_jax.evaluation.semantic import SemanticScores
from seem_jax.evaluation.tasks.base import Answer, Context, Pictures, identified, unstack
from seem_jax.image import decode_image
from seem_jax.models.seem import class_logits, mask_logits

UNLABELLED = 255  # label of pixels that no score counts
MATCH = 0.5  # IoU above which a segment is the one meant
LOGIT_DIGITS = 4  # kept of the class logits in the results


def object_logits(model, params, table, features):
    """(float32 [B, Q, C], float32 [B, Q, h, w]): names and masks of the object queries."""
    outputs = model.apply({"params": params}, features, method="decode").object
    names = class_logits(outputs.class_embedding[-1], table, params["logit_scale"])
    return names, mask_logits(outputs.mask_embedding[-1], features)


def one_by_one(read, names, masks, plan):
    """`read(names, masks at original size, inside)` of each image of a batch in turn: the full-size
    masks of all queries of a whole batch would not fit."""

    def one(image):
        names, masks, plan = image
        alone = jax.tree.map(lambda array: array[None], plan)
        return read(names, postprocess.resize(masks[None], alone)[0], plan.inside)

    return jax.lax.map(one, (names, masks, plan))


@struct.dataclass
class Slots:
    """The contest of the slots for the pixels, and what each slot says of its class."""

    pixels: postprocess.PanopticSlots  # [B, ...]
    names: jax.Array  # float32 [B, Q, C]


def panoptic(model, params, table, features, plan, *, threshold: float) -> Slots:
    """Which object query owns which pixel, at the original sizes."""
    names, masks = object_logits(model, params, table, features)
    read = functools.partial(postprocess.panoptic_slots, threshold=threshold)
    return Slots(pixels=one_by_one(read, names, masks, plan), names=names)


def semantic(model, params, table, features, plan):
    """int32 [B, H, W], the best class of each pixel at the original sizes."""
    names, masks = object_logits(model, params, table, features)

    def read(names, masks, inside):
        del inside
        return jnp.argmax(postprocess.semantic_scores(names, masks), axis=0).astype(jnp.int32)

    return one_by_one(read, names, masks, plan)


class Everything:
    """What the tasks share: the batches, the vocabulary and the pictures. A task has a
    compiled `program` and an `_answer` from its output for one image."""

    columns = ("input", "truth", "prediction")

    def __init__(self, context: Context, split: str):
        self.context, self.split = context, split
        self.data = context.open(split)
        self.num_things, self.names = self.data.num_things, self.data.class_names
        self.sizing = context.sizing(context.config.evaluation.edges)
        self.encode = context.encoder(self.sizing)

    def count(self) -> int:
        return len(self.data)

    def grouped(self, samples: Sequence[int]) -> list[list[int]]:
        return self.context.grouped(self.data, samples, self.sizing)

    def protocol(self) -> dict[str, Any]:
        vocabulary = self.context.config.evaluation.vocabulary
        return {
            "vocabulary": identified(vocabulary) if vocabulary else "class names of the data",
            "image": self.sizing.describe(),
            "mask_resize": "bilinear to the padded input, antialiased bicubic to the original",
        }

    def answers(self, params, units) -> Iterator[list[Answer]]:
        table = self.context.class_table(params, self.data)
        for batch in self.context.batches(self.data, units, self.sizing):
            features = self.encode(params, batch.image, batch.image_size)
            found = self.program(params, table, features, self.context.plan(batch))
            yield [
                self._named_answer(sample, record, own)
                for sample, record, own in zip(
                    batch.samples, batch.records, unstack(found, batch.records), strict=True
                )
            ]

    def _named_answer(self, sample: int, record: Record, found) -> Answer:
        with named(self.data, sample, record):
            return self._answer(sample, record, found)

    def _answer(self, sample: int, record: Record, found) -> Answer:
        raise NotImplementedError

    def _pictures(self, record: Record, true, found, caption: str) -> Pictures:
        """true and found are lists of (mask, category)."""
        image = decode_image(record.image, name=record.file_name)
        drawn = [_named(image, pair, self.names) for pair in (true, found)]
        return [image, *drawn], f"{record.file_name}    {caption}"


class Panoptic(Everything):
    """Panoptic quality, and how far the scores of the segments can be believed."""

    name = "panoptic"

    def __init__(self, context: Context, split: str):
        super().__init__(context, split)
        options = context.config.evaluation
        self.overlap, self.calibrate = options.overlap_threshold, options.calibrate
        self.program = context.spread(panoptic, 2, threshold=options.object_threshold)

    def protocol(self) -> dict[str, Any]:
        options = self.context.config.evaluation
        return super().protocol() | {
            "metric": "panopticapi pq_compute; a group without categories is NaN",
            "area": "of the true map",
            "object_threshold": options.object_threshold,
            "overlap_threshold": options.overlap_threshold,
            "calibration": "temperature fitted on even samples, measured on odd ones"
            if self.calibrate
            else "none",
        }

    def _answer(self, sample: int, record: Record, slots: Slots) -> Answer:
        ids, found = postprocess.panoptic_segments(slots.pixels, self.num_things, self.overlap)
        ids = ids[: record.height, : record.width]
        true_map, true = truth.segment_map(record), truth.segments(record)
        predicted = [(segment.id, segment.category) for segment in found]
        quality = self._quality()
        quality.add(true_map, true, ids, predicted, record.file_name)
        counts = {c: n for c, n in quality.counts.items() if any(vars(n).values())}
        meant = _meant(true_map, true, ids, predicted)
        segments = [
            {
                "category": segment.category,
                "meant": meant.get(segment.id, len(self.names)),
                "confidence": segment.score,
            }
            for segment in found
        ]
        if self.calibrate:
            owner = slots.pixels.owner[: record.height, : record.width]
            for segment, (number, _) in zip(segments, predicted, strict=True):
                slot = owner[ids == number].min()  # of stuff in several slots, the one that scored
                segment["logits"] = np.round(slots.names[slot].astype(np.float64), LOGIT_DIGITS)
        result = {
            "sample": sample,
            "name": record.file_name,
            "score": quality.result()["pq"],
            "counts": {str(c): list(vars(n).values()) for c, n in counts.items()},
            "segments": segments,
        }

        def pictures() -> Pictures:
            truths = [(true_map == s.id, s.category) for s in true if not s.crowd]
            answers = [(ids == i, category) for i, category in predicted]
            return self._pictures(record, truths, answers, f"PQ {result['score']:.0f}")

        return Answer(result, pictures)

    def _quality(self) -> PanopticQuality:
        return PanopticQuality({c: c < self.num_things for c in range(len(self.names))})

    def summary(self, results: Sequence[Result]) -> dict[str, float]:
        """Qualities of all results in percent, by class too, the errors of the scores, and with --calibrate
        those after it."""
        quality = self._quality()
        for result in results:
            for category, counts in result["counts"].items():
                quality.counts[int(category)].add(Counts(*counts))
        out = quality.result()
        for category, (pq, _, _) in quality.per_category().items():
            out[f"class/{self.names[category]}/pq"] = 100 * pq
        segments = [segment for result in results for segment in result["segments"]]
        confidence = np.array([s["confidence"] for s in segments])
        correct = np.array([s["category"] == s["meant"] for s in segments], bool)
        out["ece"] = 100 * calibration.calibration_error(confidence, correct)
        curve = calibration.risk_coverage(confidence, correct)
        out["risk"] = 100 * calibration.area_under_risk(curve)
        return out | (self._calibrated(results) if self.calibrate else {})

    @staticmethod
    def _calibrated(results: Sequence[Result]) -> dict[str, float]:
        """Temperature from the even samples; errors before and after it on the odd ones, and
        ece_perfect, the error that perfect scores have on as many segments."""
        fitting, testing = calibration.halves(results)
        temperature = calibration.fit_temperature(*fitting)
        out = {"temperature": temperature, "calibration_segments": float(len(testing[1]))}
        for key, value in (("before", 1.0), ("after", temperature)):
            known = math.isfinite(value)
            believed = calibration.believed(*testing, value) if known else (np.zeros(0),) * 2
            out[f"nll_{key}"] = calibration.surprise(*testing, value) if known else math.nan
            out[f"ece_{key}"] = 100 * calibration.calibration_error(*believed)
            curve = calibration.risk_coverage(*believed)
            out[f"risk_{key}"] = 100 * calibration.area_under_risk(curve)
        out["ece_perfect"] = 100 * calibration.error_of_perfect_scores(believed[0])
        return out


class Semantic(Everything):
    """A class for every pixel."""

    name = "semantic"

    def __init__(self, context: Context, split: str):
        super().__init__(context, split)
        self.program = context.spread(semantic, 2)

    def protocol(self) -> dict[str, Any]:
        return super().protocol() | {
            "metric": "SEEM SemSegEvaluator; miou divides by the classes true or predicted, "
            "miou_true by the true ones",
            "truth": "every segment, crowds too, by its class; all else is ignored",
        }

    def _answer(self, sample: int, record: Record, labels: np.ndarray) -> Answer:
        labels = labels[: record.height, : record.width]
        ids = truth.segment_map(record)
        true = np.full(ids.shape, self._ignored(), np.int32)
        for segment in truth.segments(record):
            true[ids == segment.id] = segment.category
        scores = SemanticScores(len(self.names), self._ignored())
        confusion = scores.add(true, labels, record.file_name)
        result = {
            "sample": sample,
            "name": record.file_name,
            "score": scores.result()["miou_true"],
            "confusion": [[*pair, confusion[tuple(pair)]] for pair in np.argwhere(confusion)],
        }

        def pictures() -> Pictures:
            drawn = [
                [(array == c, int(c)) for c in np.unique(array) if c != self._ignored()]
                for array in (true, labels)
            ]
            return self._pictures(record, *drawn, f"mIoU {result['score']:.0f}")

        return Answer(result, pictures)

    def _ignored(self) -> int:
        return max(UNLABELLED, len(self.names))  # vocabularies may be longer than 255

    def summary(self, results: Sequence[Result]) -> dict[str, float]:
        """IoUs and accuracies of all results in percent, IoU by class too."""
        scores = SemanticScores(len(self.names), self._ignored())
        for result in results:
            for predicted, true, pixels in result["confusion"]:
                scores.confusion[predicted, true] += pixels
        iou = scores.per_class()[0]
        per_class = {f"class/{n}/iou": 100 * v for n, v in zip(self.names, iou, strict=True)}
        return scores.result() | per_class


def _meant(true_map, true, ids, predicted) -> dict[int, int]:
    """Predicted id -> class of the true segment that its mask covers with IoU above one half."""
    out = {}
    for number, _ in predicted:
        mask = ids == number
        for segment in true:
            other = true_map == segment.id
            union = np.count_nonzero(mask | other)
            if union and np.count_nonzero(mask & other) / union > MATCH:
                out[number] = segment.category
    return out


def _named(image, pairs, names: list[str]) -> np.ndarray:
    """The picture with (mask, category) pairs in their colours and with their names."""
    texts, colours = [], []
    for _, category in pairs:
        name = name_templates.spoken(names[category])
        colours.append(draw.colour(category, shade=texts.count(name)))
        texts.append(name)
    return sheets.named(image, [mask for mask, _ in pairs], texts, colours)
