"""Video: objects are given in the first frame and found in all later ones."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seem_jax import interaction, postprocess
from seem_jax.data import strokes
from seem_jax.data.schema import Record
from seem_jax.demo import draw
from seem_jax.evaluation import sheets, truth, vos
from seem_jax.evaluation.reader import named
from seem_jax.evaluation.results import Result
from seem_jax.evaluation.tasks.base import Answer, Context, Pictures
from seem_jax.image import decode_image
from seem_jax.models.seem import mask_logits, remember
from seem_jax.types import Memory, VisualPrompts

OBJECTS = 5  # prompts of a decoding are a multiple of this, so that few sizes compile


def first_frame(model, params, features, prompts: VisualPrompts, *, num: int):
    """(tokens of the prompts, memory of their answers) on the frame that they were drawn on, [1, ...]."""
    variables = {"params": params}
    visual = model.apply(variables, features, prompts, num, method="encode_prompts")
    outputs = model.apply(variables, features, None, visual, objects=False, method="decode")
    return visual, remember(outputs, visual)


def later_frames(model, params, visual, memory: Memory, features, plan):
    """uint8 [B, H, W], the object of each pixel (0 none) of frames, each decoded by itself.

    A pixel goes to the object with the largest logit, if that is above 0.
    """
    frames = len(features.mask)
    visual, memory = jax.tree.map(lambda array: jnp.repeat(array, frames, axis=0), (visual, memory))
    outputs = model.apply(
        {"params": params}, features, None, visual, memory, objects=False, method="decode"
    )
    logits = mask_logits(remember(outputs, visual).mask_embedding, features)
    logits = jnp.where(visual.prompt_valid[..., None, None], logits, -jnp.inf)
    full = postprocess.resize(jnp.maximum(logits, -1e4), plan)  # [B, P, H, W]
    best = jnp.argmax(full, axis=1) + 1
    return jnp.where(full.max(1) > 0, best, 0).astype(jnp.uint8)


class Video:
    """J, F and their kin on sequences of frames; memory does not grow with their number."""

    columns = ("given", "truth, middle", "found, middle", "truth, last", "found, last")

    def __init__(self, context: Context, split: str, one_click: bool = False):
        """one_click: all objects are one, given by a click (DAVIS 2016), instead of by masks."""
        self.context, self.split, self.one_click = context, split, one_click
        self.name = "video/click" if one_click else "video"
        self.data = context.open(split)
        sequences: dict[str, list[int]] = {}
        for sample in range(len(self.data)):
            record = self.data[sample]
            if not record.sequence:
                raise ValueError(
                    f"{split}, record {sample} ({record.file_name}) is of no sequence; video needs a data "
                    "set of sequences, as data_prep.davis makes it."
                )
            sequences.setdefault(record.sequence, []).append(sample)
        self.sequences = list(sequences.values())
        self.first = functools.cache(
            lambda num: jax.jit(functools.partial(first_frame, context.model, num=num))
        )
        self.later = context.spread(later_frames, 3)
        self.sizing = context.sizing(context.config.evaluation.video_edges, bicubic=True)
        self.encode = context.encoder(self.sizing)

    def protocol(self) -> dict[str, Any]:
        return {
            "metric": "davis2017-evaluation, semi-supervised",
            "given": "a click on the middle of all objects as one (DAVIS 2016)"
            if self.one_click
            else f"the masks of the first frame, at most {self._points()} points of each",
            "method": "tokens and memory of the first frame; each later frame is decoded by itself",
            "image": self.sizing.describe(),
            "frames": "first and last are left out",
            "overlap": "the largest logit above 0",
        }

    def count(self) -> int:
        """A sample is a sequence here."""
        return len(self.sequences)

    def grouped(self, samples: Sequence[int]) -> list[list[int]]:
        return [[sample] for sample in samples]

    def answers(self, params, units) -> Iterator[list[Answer]]:
        for unit in units:
            yield [self._sequence(params, number) for number in unit]

    def _sequence(self, params, number: int) -> Answer:
        """Follows one sequence, a batch of frames at a time."""
        unit = self.sequences[number]
        size = self.context.config.evaluation.batch_size
        batches = [unit[start : start + size] for start in range(0, len(unit), size)]
        kept = {0, len(unit) // 2, len(unit) - 1}
        shown: list[tuple[Record, np.ndarray, np.ndarray]] = []
        given, frame, name = None, 0, ""
        for batch in self.context.batches(self.data, batches, self.sizing):
            maps = [self._truth(*one) for one in zip(batch.samples, batch.records, strict=True)]
            features = self.encode(params, batch.image, batch.image_size)
            if given is None:
                name = batch.records[0].sequence
                scores = vos.FrameScores(name)
                given = self._first_frame(params, features, maps[0])
            labels = self.later(params, *given, features, self.context.plan(batch))
            for record, own, answer in zip(batch.records, maps, np.asarray(labels), strict=False):
                # The first frame was given.
                answer = answer[: record.height, : record.width] if frame else own
                if frame in kept:
                    shown.append((record, own, answer))
                scores.add(own, answer)
                frame += 1
        tracks = scores.tracks()
        result = {
            "sample": number,
            "name": name,
            "frames": len(unit),
            "score": vos.summary([tracks])["j&f"],
            "region": tracks.region,
            "boundary": tracks.boundary,
        }
        return Answer(result, functools.partial(_pictures, shown, result))

    def _first_frame(self, params, features, ids: np.ndarray):
        """What the objects of the first frame are, from its features [B, ...] and its map."""
        num = int(ids.max(initial=0))
        count = max(OBJECTS, -(-num // OBJECTS) * OBJECTS)
        alone = jax.tree.map(lambda array: array[:1], features)
        return self.first(count)(params, alone, self._prompts(ids, num, count))

    def _truth(self, sample: int, record: Record) -> np.ndarray:
        with named(self.data, sample, record):
            ids = truth.segment_map(record)
        return np.minimum(ids, 1) if self.one_click else ids

    def _points(self) -> int:
        return self.context.config.data.max_points

    def _prompts(self, ids: np.ndarray, num: int, count: int) -> VisualPrompts:
        """What was drawn on the first frame, [1, ...], with room for `count` objects."""
        small = self.sizing.place_map(ids)
        size = np.array(small.shape[::-1], np.float32)
        masks = small[None] == np.arange(1, count + 1)[:, None, None]  # [count, h, w]
        if self.one_click:
            points, positive, valid, _ = interaction.first_clicks(jnp.asarray(masks)[None])
            return interaction.as_prompts(points, positive, valid)
        each = self._points()
        points = np.zeros((1, count * each, 2), np.float32)
        valid = np.zeros((1, count * each), bool)
        for p in range(num):
            pixels = np.argwhere(masks[p])[:, ::-1].astype(np.int32)
            drawn, _ = strokes.sample([pixels], each, np.random.default_rng((num, p)))
            points[0, p * each : p * each + len(drawn)] = drawn / size
            valid[0, p * each : p * each + len(drawn)] = True
        owner = np.repeat(np.arange(count, dtype=np.int32), each)[None]
        return VisualPrompts(points=points, prompt=owner, positive=np.ones_like(valid), valid=valid)

    def summary(self, results: Sequence[Result]) -> dict[str, float]:
        tracks = [
            vos.Tracks(*(np.array(r[key], np.float64) for key in ("region", "boundary")))
            for r in results
        ]
        return vos.summary(tracks) | {"objects": float(sum(len(t.region) for t in tracks))}


def _pictures(shown, result: Result) -> Pictures:
    row = []
    for k, (record, true, found) in enumerate(shown):
        image = decode_image(record.image, name=record.file_name)
        row += [_coloured(image, ids) for ids in ((true,) if k == 0 else (true, found))]
    row += [row[-1]] * (len(Video.columns) - len(row))  # sequences of one or two frames
    return row, f"{result['name']}    {result['frames']} frames"


def _coloured(image: np.ndarray, ids: np.ndarray) -> np.ndarray:
    numbers = [int(i) for i in np.unique(ids) if i]
    colours = [draw.colour(i) for i in numbers]
    return sheets.named(image, [ids == i for i in numbers], [str(i) for i in numbers], colours)
