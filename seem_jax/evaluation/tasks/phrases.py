"""Objects by a sentence, by a sentence and a click, by a click alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from seem_jax.data.schema import Record
from seem_jax.evaluation import programs, referring, sheets, truth
from seem_jax.evaluation.reader import EvalBatch, named
from seem_jax.evaluation.results import Result
from seem_jax.evaluation.tasks.base import Answer, Context, Pictures
from seem_jax.image import decode_image
from seem_jax.interaction import POINTS_PER_CLICK
from seem_jax.types import VisualPrompts

PHRASES_PER_CALL = 4
CLICK_CENTRE = POINTS_PER_CLICK // 2
WAYS = {  # how an object is asked for -> the compiled program
    "text": programs.answer_text,
    "text+click": programs.answer_text_and_click,
    "click": programs.answer_click,
}


class Referring:
    """cIoU and its kin; every phrase is answered alone, several at a time."""

    def __init__(self, context: Context, split: str, ways: Sequence[str], name: str = "referring"):
        """With one way the scores' names go without it."""
        self.context, self.split, self.name = context, split, name
        self.data, self.ways = context.open(split), tuple(ways)
        self.columns = ("input", "truth", *self.ways)
        self.programs = {way: context.spread(WAYS[way], 1) for way in self.ways}
        self.sizing = context.sizing(context.config.evaluation.referring_edges)
        self.encode = context.encoder(self.sizing)

    def count(self) -> int:
        return len(self.data)

    def grouped(self, samples: Sequence[int]) -> list[list[int]]:
        return self.context.grouped(self.data, samples, self.sizing)

    def protocol(self) -> dict[str, Any]:
        first = self.context.config.evaluation.first_sentence_only
        return {
            "metric": "SEEM GroundingEvaluator; cIoU over all expressions, denominator + 1e-6",
            "sentences": "the first of each object (official)"
            if first
            else "all; first_sentence/ has the first of each object (official)",
            "click": "official first click on the true object, at model size",
            "image": self.sizing.describe(),
            "mask_resize": "bilinear to the padded input, antialiased bicubic to the original",
            "ways": list(self.ways),
        }

    def answers(self, params, units) -> Iterator[list[Answer]]:
        """The answers of each unit, a batch of images, whose phrases are asked PHRASES_PER_CALL of
        every image at a time, in every way. The first phrase of an image is kept for its picture."""
        for batch in self.context.batches(self.data, units, self.sizing):
            records = batch.records
            wanted = [self._wanted(record) for record in records]
            plan = self.context.plan(batch)
            features = self.encode(params, batch.image, batch.image_size)
            most = max(map(len, wanted))
            found: list[list[dict]] = [[] for _ in records]
            shown: dict[int, tuple] = {}
            for start in range(0, most, PHRASES_PER_CALL):
                part = [own[start : start + PHRASES_PER_CALL] for own in wanted]
                ids, valid = _phrases(batch, part)
                originals, models = self._truth(batch, part, plan)
                answers = {
                    way: jax.device_get(
                        program(params, features, ids, valid, originals, models, plan)
                    )
                    for way, program in self.programs.items()
                }
                for b, own in enumerate(part):
                    for g, phrase in enumerate(own):
                        found[b].append(_counts(records[b], phrase, answers, b, g))
                    if own and b not in shown:
                        shown[b] = (own[0], answers, originals)
            yield [
                self._answer(sample, record, own, shown.get(b), b)
                for b, (sample, record, own) in enumerate(
                    zip(batch.samples, records, found, strict=True)
                )
            ]

    def _wanted(self, record: Record) -> list[int]:
        """The phrases of a record that are evaluated."""
        if not self.context.config.evaluation.first_sentence_only:
            return list(range(len(record.phrase_text)))
        first = {}
        for phrase, index in enumerate(record.phrase_object):
            first.setdefault(index, phrase)
        return sorted(first.values())

    def _truth(self, batch: EvalBatch, part: list[list[int]], plan):
        """(bool [B, G, H, W] at original size, bool [B, G, h, w] at model size) of some phrases."""
        shape = (len(batch.image), PHRASES_PER_CALL)
        originals = np.zeros((*shape, *plan.inside.shape[1:]), bool)
        models = np.zeros((*shape, *batch.canvas), bool)
        each = zip(batch.samples, batch.records, part, strict=True)
        for b, (sample, record, own) in enumerate(each):
            for g, phrase in enumerate(own):
                with named(self.data, sample, record):
                    mask = truth.object_mask(record, record.phrase_object[phrase])
                originals[b, g, : record.height, : record.width] = mask
                models[b, g] = self.sizing.place_map(mask)
        return originals, models

    def _answer(self, sample: int, record: Record, own: list[dict], shown, b: int) -> Answer:
        last = self.ways[-1]
        ious = [phrase["intersection"][last] / max(phrase["union"][last], 1) for phrase in own]
        result = {
            "sample": sample,
            "name": record.file_name,
            "score": 100 * float(np.mean(ious)) if ious else None,
            "phrases": own,
        }

        def pictures() -> Pictures:
            image = decode_image(record.image, name=record.file_name)
            phrase, answers, originals = shown
            cut = np.s_[: record.height, : record.width]
            row = [image, sheets.answered(image, originals[b, 0][cut])]
            caption = f'"{record.phrase_text[phrase]}"'
            for way, answer in answers.items():
                clicks = () if answer.clicks is None else _first_click(answer.clicks, (b, 0))
                row.append(sheets.answered(image, answer.mask[b, 0][cut], *clicks))
                iou = answer.intersection[b, 0] / max(answer.union[b, 0], 1)
                caption += f"    {way}: IoU {100 * iou:.0f}"
            if len(own) > 1:  # the image was chosen for the mean of them
                caption += f"    all {len(own)} sentences, {last}: {result['score']:.0f}"
            return row, caption

        return Answer(result, pictures)

    def summary(self, results: Sequence[Result]) -> dict[str, float]:
        phrases = [phrase for result in results for phrase in result["phrases"]]
        firsts = [phrase for phrase in phrases if phrase["first"]]
        out = self._scores(phrases, "")
        return out | (self._scores(firsts, "first_sentence/") if len(firsts) < len(phrases) else {})

    def _scores(self, phrases: Sequence[dict], start: str) -> dict[str, float]:
        out = {}
        for way in self.ways:
            counts = (
                np.array([p[key][way] for p in phrases], np.int64)
                for key in ("intersection", "union")
            )
            prefix = start + (f"{way}/" if len(self.ways) > 1 else "")
            out |= {prefix + key: value for key, value in referring.scores(*counts).items()}
        return out


def _phrases(batch: EvalBatch, part: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Token ids int32 and their valid bool [B, PHRASES_PER_CALL, J] of some phrases of each row."""
    shape = (len(batch.image), PHRASES_PER_CALL, batch.token_ids.shape[-1])
    ids, valid = np.zeros(shape, np.int32), np.zeros(shape, bool)
    for b, own in enumerate(part):
        ids[b, : len(own)] = batch.token_ids[b, own]
        valid[b, : len(own)] = batch.token_valid[b, own]
    return ids, valid


def _counts(record: Record, phrase: int, answers: dict, b: int, g: int) -> dict[str, Any]:
    return {
        "text": record.phrase_text[phrase],
        "first": record.phrase_object[phrase] not in record.phrase_object[:phrase],
        "intersection": {way: int(a.intersection[b, g]) for way, a in answers.items()},
        "union": {way: int(a.union[b, g]) for way, a in answers.items()},
    }


def _first_click(prompts: VisualPrompts, index):
    """(x, y) float [1, 2] and sign of the middle of the first click."""
    middle = slice(CLICK_CENTRE, CLICK_CENTRE + 1)
    return prompts.points[index][middle], prompts.positive[index][middle]
