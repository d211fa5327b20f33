"""Runs the tasks over validation records: numbers, and a picture sheet for each task.

Every host computes everything; records are read, batched and padded by the data pipeline.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from seem_jax import postprocess
from seem_jax.config import Config
from seem_jax.data import catalog, pipeline
from seem_jax.data.schema import Record
from seem_jax.demo import draw
from seem_jax.evaluation import programs, sheets, truth
from seem_jax.evaluation.interactive import InteractiveScores
from seem_jax.evaluation.panoptic import PanopticQuality
from seem_jax.evaluation.referring import ReferringScores
from seem_jax.image import decode_image
from seem_jax.interaction import POINTS_PER_CLICK
from seem_jax.models.language import class_names
from seem_jax.models.language.tokenizer import Tokenizer
from seem_jax.types import Batch, VisualPrompts

OBJECTS_PER_RECORD = 5  # clicked together, as officially
PHRASES_PER_CALL = 4
CLICK_CENTRE = POINTS_PER_CLICK // 2


def run(
    model, params: dict, config: Config, *, workdir: str | Path, max_images: int | None = None
) -> dict[str, float]:
    """The scores of all tasks that have a data set, by name; writes WORKDIR/pictures/*.png.

    Keys: panoptic/pq and its kin, referring/{text,text+click,unseen}/ciou, miou, p@..,
    interactive/click/iou@k and noc@t; percentages 0 to 100, NoC in clicks, NaN where nothing could
    be measured. max_images (0: all) overrides config.evaluation.max_images.
    """
    return Evaluator(model, config).run(params, workdir=workdir, max_images=max_images)


class Evaluator:
    """The compiled programs of one model, so that evaluating again compiles nothing again."""

    def __init__(self, model, config: Config):
        options = config.evaluation
        self.config, self.size = config, options.image_size or config.data.image_size
        self.tokenizer = Tokenizer(config.data.tokenizer)
        self.embed = jax.jit(functools.partial(class_names.embed, model))
        self.encode = jax.jit(
            lambda params, images: model.apply({"params": params}, images, method="encode_image")
        )
        self.panoptic_slots = jax.jit(
            functools.partial(programs.panoptic, model, threshold=options.object_threshold)
        )
        self.answer_phrases = jax.jit(functools.partial(programs.answer_phrases, model))
        self.click_session = jax.jit(
            functools.partial(programs.click_session, model, max_clicks=options.max_clicks)
        )

    def run(
        self, params: dict, *, workdir: str | Path, max_images: int | None = None
    ) -> dict[str, float]:
        """See `run` above."""
        data = self.config.data
        limit = self.config.evaluation.max_images if max_images is None else max_images
        pictures = Path(workdir) / "pictures"
        tasks = (
            ("panoptic", data.panoptic_eval, self.panoptic),
            ("referring", data.referring_eval, self.referring),
            ("referring/unseen", data.referring_unseen_eval, self.unseen),
            ("interactive/click", data.interactive_eval, self.interactive),
        )
        out: dict[str, float] = {}
        for name, split, task in tasks:
            if not split:
                continue
            begin = time.perf_counter()
            sheet, numbers = task(params, split, limit)
            sheet.save(pictures / f"{name.replace('/', '_')}.png")
            out |= {f"{name}/{key}": value for key, value in numbers.items()}
            if jax.process_index() == 0:
                seconds = time.perf_counter() - begin
                print(f"evaluated {name} on {split}: {seconds:.0f} s", flush=True)
        return out

    def panoptic(self, params, split: str, limit: int):
        """(sheet, scores) of the object queries with the class names as vocabulary."""
        options = self.config.evaluation
        known = catalog.open_split(self.config.data.root, split)
        table = self.class_table(params, split, known.class_names)
        quality = PanopticQuality({c: c < known.num_things for c in range(len(known.class_names))})
        sheet = sheets.Sheet(("input", "truth", "prediction"), options.num_pictures)
        for batch, records in self._batches(split, limit):
            plan = self._plan(batch, records)
            slots = self.panoptic_slots(params, self.encode(params, batch.image), table, plan)
            for b, (record, own) in enumerate(_unstack(slots, records)):
                ids, found = postprocess.panoptic_segments(
                    own, known.num_things, options.overlap_threshold
                )
                ids = ids[: record.height, : record.width]
                true_map, true = truth.segment_map(record), truth.segments(record)
                predicted = [(s.id, s.category) for s in found]
                quality.add(true_map, true, ids, predicted, record.file_name)
                if not sheet.full:
                    image = decode_image(record.image, name=record.file_name)
                    pairs = [(s.id, s.category) for s in true if not s.crowd]
                    caption = f"{record.file_name}, record {batch.sample_id[b]}"
                    sheet.add(
                        [image]
                        + [
                            _panoptic_picture(image, *drawn, known.class_names)
                            for drawn in ((true_map, pairs), (ids, predicted))
                        ],
                        caption,
                    )
        return sheet, quality.result()

    def class_table(self, params, split: str, names: list[str]):
        """float32 [C, V], the vocabulary of a data set."""
        ids, valid = class_names.class_token_ids(
            self.tokenizer,
            names,
            self.config.data.max_phrase_tokens,
            class_names.templates_of(split),
        )
        return self.embed(params, ids, valid)

    def referring(self, params, split: str, limit: int):
        """(sheet, scores) of text alone and of text with one click on the object."""
        return self._phrases(params, split, limit, {"text": False, "text+click": True})

    def unseen(self, params, split: str, limit: int):
        """(sheet, scores) of text alone, keys without a prefix."""
        sheet, numbers = self._phrases(params, split, limit, {"text": False})
        return sheet, {key.removeprefix("text/"): value for key, value in numbers.items()}

    def _phrases(self, params, split: str, limit: int, modes: dict[str, bool]):
        scores = {mode: ReferringScores() for mode in modes}
        columns = ("input", "truth", *modes)
        sheet = sheets.Sheet(columns, self.config.evaluation.num_pictures)
        for batch, records in self._batches(split, limit):
            plan = self._plan(batch, records)
            features = self.encode(params, batch.image)
            most = max(len(record.phrase_text) for record in records)
            for start in range(0, most, PHRASES_PER_CALL):
                wanted = range(start, start + PHRASES_PER_CALL)
                ids, valid = _columns(batch.phrases.token_ids, batch.phrases.token_valid, wanted)
                originals, models = self._phrase_truth(batch, records, wanted, plan)
                answers = {
                    mode: jax.device_get(
                        self.answer_phrases(
                            params, features, ids, valid, originals, models if click else None, plan
                        )
                    )
                    for mode, click in modes.items()
                }
                exists = valid.any(-1)  # [B, G]
                for mode, answer in answers.items():
                    scores[mode].add(answer.intersection[exists], answer.union[exists])
                for b, g in np.argwhere(exists):
                    if not sheet.full and g == 0 and start == 0:
                        _add_phrase(sheet, records[b], start + g, originals[b, g], answers, b, g)
        numbers = {
            f"{mode}/{key}": value
            for mode, score in scores.items()
            for key, value in score.result().items()
        }
        return sheet, numbers

    def _phrase_truth(self, batch: Batch, records: list[Record], wanted: range, plan):
        """(bool [B, G, H, W] at original size, bool [B, G, h, w] at model size) of some phrases."""
        rows = len(batch.image)
        originals = np.zeros((rows, len(wanted), *plan.inside.shape[1:]), bool)
        models = np.zeros((rows, len(wanted), self.size, self.size), bool)
        for b, record in enumerate(records):
            for g, phrase in enumerate(wanted):
                if phrase < len(record.phrase_text):
                    mask = truth.object_mask(record, record.phrase_object[phrase])
                    originals[b, g, : record.height, : record.width] = mask
                    models[b, g] = truth.at_model_size(mask, self.size)
        return originals, models

    def interactive(self, params, split: str, limit: int):
        """(sheet, scores) of simulated clicks on the thing segments, at most 5 objects together."""
        options = self.config.evaluation
        known = catalog.open_split(self.config.data.root, split)
        scores = InteractiveScores(options.max_clicks)
        columns = ("first click", "truth", "after 1 click", "after the last click")
        sheet = sheets.Sheet(columns, options.num_pictures)
        for batch, records in self._batches(split, limit):
            plan = self._plan(batch, records, antialias=False)
            features = self.encode(params, batch.image)
            maps = [truth.segment_map(record) for record in records]
            originals = truth.padded(maps, len(batch.image), *plan.inside.shape[1:])
            small = [truth.at_model_size(array, self.size) for array in maps]
            models = truth.padded(small, len(batch.image), self.size, self.size)
            for wanted in _groups(records, small, known.num_things, len(batch.image)):
                session = jax.device_get(
                    self.click_session(params, features, models, originals, wanted, plan)
                )
                scores.add(session.iou[wanted > 0])
                for b in np.flatnonzero(wanted[:, 0]):
                    if not sheet.full:
                        _add_session(sheet, records[b], maps[b], wanted[b], session, b)
        return sheet, scores.result()

    def _batches(self, split: str, limit: int) -> Iterator[tuple[Batch, list[Record]]]:
        return iter(
            pipeline.eval_batches(
                self.config.data,
                split,
                self.tokenizer,
                batch_size=self.config.evaluation.batch_size,
                image_size=self.size,
                max_images=limit,
            )
        )

    def _plan(self, batch: Batch, records: list[Record], *, antialias: bool = True):
        return postprocess.plan_resize(
            batch.image_size,
            [(record.height, record.width) for record in records],
            (self.size // 4, self.size // 4),
            (self.size, self.size),
            antialias=antialias,
        )


def _unstack(tree, records: list[Record]):
    """(record, its part of a batched pytree as NumPy) for each record."""
    tree = jax.device_get(tree)
    for b, record in enumerate(records):
        yield record, jax.tree.map(lambda array, b=b: array[b], tree)


def _columns(ids: np.ndarray, valid: np.ndarray, wanted: range):
    """Some phrases of [B, G, J] arrays, padded with empty ones at the end."""
    lack = max(0, wanted.stop - ids.shape[1])
    pad = [(0, 0), (0, lack), (0, 0)]
    part = slice(wanted.start, wanted.stop)
    return np.pad(ids, pad)[:, part], np.pad(valid, pad)[:, part]


def _groups(
    records: list[Record], maps: list[np.ndarray], num_things: int, batch: int
) -> Iterator[np.ndarray]:
    """int32 [batch, 5] numbers of thing segments to click together, 0 for none.

    Crowds, stuff and things that have no pixel at model size are left out.
    """
    clickable = [
        [
            segment.id
            for segment in truth.segments(record)
            if not segment.crowd and segment.category < num_things and (array == segment.id).any()
        ]
        for record, array in zip(records, maps, strict=True)
    ]
    for start in range(0, max(map(len, clickable)), OBJECTS_PER_RECORD):
        wanted = np.zeros((batch, OBJECTS_PER_RECORD), np.int32)
        for b, ids in enumerate(clickable):
            part = ids[start : start + OBJECTS_PER_RECORD]
            wanted[b, : len(part)] = part
        yield wanted


def _panoptic_picture(image, ids, pairs, names: list[str]) -> np.ndarray:
    masks, texts, colours = [], [], []
    for number, category in pairs:
        name = class_names.spoken(names[category])
        masks.append(ids == number)
        colours.append(draw.colour(category, shade=texts.count(name)))
        texts.append(name)
    return sheets.named(image, masks, texts, colours)


def _add_phrase(sheet, record: Record, phrase: int, true_mask, answers: dict, b: int, g: int):
    image = decode_image(record.image, name=record.file_name)
    cut = np.s_[: record.height, : record.width]
    pictures = [image, sheets.answered(image, true_mask[cut])]
    caption = f'"{record.phrase_text[phrase]}"'
    for mode, answer in answers.items():
        clicks = () if answer.clicks is None else _centres(answer.clicks, (b, g), 1)
        pictures.append(sheets.answered(image, answer.mask[b, g][cut], *clicks))
        iou = answer.intersection[b, g] / max(answer.union[b, g], 1)
        caption += f"    {mode}: IoU {100 * iou:.0f}"
    sheet.add(pictures, caption)


def _add_session(sheet, record: Record, ids, wanted, session, b: int) -> None:
    """One row: the first object of an image, before and after its clicks."""
    image = decode_image(record.image, name=record.file_name)
    cut = np.s_[: record.height, : record.width]
    used = int(session.num_clicks[b])
    where, positive = _centres(session.prompts, b, used * len(wanted))
    own = np.arange(used) * len(wanted)  # clicks on object 0
    own = own[session.prompts.valid[b].reshape(-1, POINTS_PER_CLICK)[own].any(-1)]
    first, every = (where[:1], positive[:1]), (where[own], positive[own])
    curve = 100 * session.iou[b, 0]
    sheet.add(
        [
            sheets.answered(image, None, *first),
            sheets.answered(image, ids == wanted[0]),
            sheets.answered(image, session.first[b, 0][cut], *first),
            sheets.answered(image, session.last[b, 0][cut], *every),
        ],
        f"IoU {curve[0]:.0f} after 1 click, {curve[-1]:.0f} after {len(own)}",
    )


def _centres(prompts: VisualPrompts, index, count: int):
    """(x, y) float [count, 2] and sign of the middles of the first clicks."""
    middle = np.s_[CLICK_CENTRE : count * POINTS_PER_CLICK : POINTS_PER_CLICK]
    return prompts.points[index][middle], prompts.positive[index][middle]
