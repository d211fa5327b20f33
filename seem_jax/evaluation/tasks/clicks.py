"""Objects by simulated clicks: how many it takes, and how good the first answer is."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seem_jax import postprocess
from seem_jax.data import strokes
from seem_jax.data.schema import Record
from seem_jax.evaluation import interactive, ritm, sessions, sheets, truth
from seem_jax.evaluation.results import Result
from seem_jax.evaluation.sessions import POINTS, Rows, State
from seem_jax.evaluation.tasks.base import Answer, Context, Pictures, unstack
from seem_jax.image import decode_image
from seem_jax.types import Batch, VisualPrompts

OBJECTS_PER_RECORD = 5  # clicked together, as officially
BATCHES_PER_UNIT = 4  # whose sessions share the rows of a program
LEAVE = 0.75  # share of the rows that goes on while others are filled anew
KINDS = ("point", "circle", "scribble", "polygon", "box")  # of the first prompt
DRAWN = ("circle", "scribble", "polygon")  # by the host, at random


@dataclasses.dataclass
class Item:
    """One session: up to P objects of an image."""

    image: int  # in its unit
    wanted: np.ndarray  # int32 [P], segments
    curves: np.ndarray | None = None  # float32 [P, clicks] when it has ended
    end: State | None = None  # of this row, without features


class Interactive:
    """NoC and IoU of the thing segments of a split, for one kind of first prompt and one user."""

    columns = ("first prompt", "truth", "after the first prompt", "after the last click")

    def __init__(self, context: Context, split: str, kind: str = "point", ritm_user: bool = False):
        options = context.config.evaluation
        self.context, self.split, self.kind = context, split, kind
        # A point is one click, which is what the scores' names have called it from the start.
        word = "click" if kind == "point" else kind
        self.name = f"interactive/ritm/{word}" if ritm_user else f"interactive/{word}"
        self.data = context.open(split)
        self.max_clicks = options.max_clicks
        self.num = 1 if ritm_user else OBJECTS_PER_RECORD
        self.user = sessions.RitmUser() if ritm_user else sessions.SeemUser(boxes=kind == "box")
        self.advance = context.spread(
            sessions.advance, 2, user=self.user, max_clicks=self.max_clicks
        )

    def protocol(self) -> dict[str, Any]:
        shared = {"max_clicks": self.max_clicks, "click": "3x3 pixels at model size"}
        if isinstance(self.user, sessions.RitmUser):
            return shared | {
                "metric": "RITM compute_noc_metric",
                "clicks": "RITM Clicker: original size, exact Euclidean distance, ignored pixels out",
                "threshold": ritm.THRESHOLD,
                "stop": f"each object at IoU >= {ritm.TARGET_IOU}",
                "zoom_in and flip": "none",
            }
        first = {
            "point": "official: deepest pixel of the object",
            "box": "official: deepest pixel of the filled box, which replaces the object for clicks",
        }
        drawn = f"{self.kind} by the official training laws, at most {self._stroke_points()} points"
        return shared | {
            "metric": "SEEM InteractiveEvaluator",
            "first": first.get(self.kind, drawn),
            "clicks": "SEEM v1 best: padded input size, kornia 0.7.0 distance",
            "threshold": 0.5,
            "stop": f"all of up to {OBJECTS_PER_RECORD} objects of a record at IoU > 0.9",
            "masks at model size": "nearest pixel (official: bicubic of a 0/1 map, not zero)",
        }

    def units(self, limit: int) -> list[list[int]]:
        size = BATCHES_PER_UNIT * self.context.config.evaluation.batch_size
        samples = min(len(self.data), limit or len(self.data))
        return [list(range(start, min(start + size, samples))) for start in range(0, samples, size)]

    def answers(self, params, units) -> Iterator[list[Answer]]:
        stream = self.context.batches(self.data, units)
        size = self.context.config.evaluation.batch_size
        for unit in units:
            parts = [next(stream) for _ in range(-(-len(unit) // size))]
            yield self._unit(params, unit, [batch for _, batch, _ in parts], _joined(parts))

    def _unit(self, params, samples, batches: list[Batch], records: list[Record]) -> list[Answer]:
        maps = [truth.segment_map(record) for record in records]
        small = [truth.at_model_size(ids, self.context.size) for ids in maps]
        items = [
            Item(image, wanted)
            for image, record in enumerate(records)
            for wanted in _groups(record, small[image], self.data.num_things, self.num)
        ]
        rows = self._rows(samples, batches, records, maps, small)
        self._play(params, items, rows, batches)
        return [
            self._answer(sample, record, ids, [i for i in items if i.image == image])
            for image, (sample, record, ids) in enumerate(zip(samples, records, maps, strict=True))
        ]

    def _rows(self, samples, batches, records: list[Record], maps, small):
        """A function Item -> its Rows, without the axis B; NumPy."""
        visible = np.concatenate([batch.image_size for batch in batches])[: len(records)]
        originals = [(record.height, record.width) for record in records]
        side = self.context.size
        plan = postprocess.plan_resize(
            visible, originals, (side // 4, side // 4), (side, side), antialias=False
        )

        def one(item: Item) -> Rows:
            k = item.image
            original_map = np.full(plan.inside.shape[1:], ritm.IGNORE, np.int32)
            height, width = originals[k]
            hidden = truth.ignored(records[k])
            original_map[:height, :width] = np.where(hidden, ritm.IGNORE, maps[k])
            return Rows(
                model_map=small[k],
                original_map=original_map,
                wanted=item.wanted,
                visible=visible[k].astype(np.int32),
                original=np.array(originals[k], np.int32),
                plan=jax.tree.map(lambda array: array[k], plan),
                strokes=self._strokes(samples[k], small[k], item.wanted)
                if self.kind in DRAWN
                else None,
            )

        return one

    def _play(self, params, items: list[Item], rows, batches: list[Batch]) -> None:
        """Plays all sessions in the rows of one program; fills in their curves and ends."""
        size = self.context.config.evaluation.batch_size
        waiting = list(items)
        table: list[Item | None] = [None] * size
        held = [rows(Item(0, np.zeros(self.num, np.int32)))] * size
        part, encoded, features, state = -1, None, None, None
        while waiting or any(table):
            fresh = np.zeros(size, bool)
            while waiting and not all(table):
                if waiting[0].image // size != part:  # images come in order: each is encoded once
                    part = waiting[0].image // size
                    encoded = self.context.encode(params, batches[part].image)
                    features = encoded if features is None else features
                new, take = np.zeros(size, bool), np.zeros(size, np.int32)
                for row in range(size):
                    if table[row] is None and waiting and waiting[0].image // size == part:
                        table[row] = waiting.pop(0)
                        new[row], take[row] = True, table[row].image % size
                        held[row] = rows(table[row])
                features = _put(features, encoded, take, new)
                fresh |= new
            batch = jax.tree.map(lambda *arrays: np.stack(arrays), *held)
            state = self._idle(batch, features) if state is None else state
            leave = np.float32(LEAVE if waiting else 0.0)
            state = self.advance(params, leave, fresh, batch, features, state)
            self._collect(table, state)

    def _idle(self, batch: Rows, features) -> State:
        """A state in which no session goes on."""
        begin = functools.partial(sessions.begin, user=self.user, max_clicks=self.max_clicks)
        shapes = jax.eval_shape(begin, batch, features)
        state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
        return state.replace(ended=np.ones_like(state.ended))

    @staticmethod
    def _collect(table: list[Item | None], state: State) -> None:
        shown = jax.device_get(state.replace(features=None, marks=None, memory=None))
        for row, end in enumerate(unstack(shown, table)):
            if table[row] is not None and end.ended:
                table[row].curves, table[row].end = end.iou, end
                table[row] = None

    def _stroke_points(self) -> int:
        return self.context.config.data.max_points // OBJECTS_PER_RECORD

    def _strokes(self, sample: int, ids: np.ndarray, wanted: np.ndarray) -> VisualPrompts:
        """A random drawing on each object, the same for a sample whatever else is evaluated; one
        that is empty (objects below 10 pixels) is the deepest pixels' row-major first."""
        points = self._stroke_points()
        out = VisualPrompts(
            points=np.zeros((len(wanted), points, 2), np.float32),
            prompt=np.repeat(np.arange(len(wanted), dtype=np.int32)[:, None], points, axis=1),
            positive=np.ones((len(wanted), points), bool),
            valid=np.zeros((len(wanted), points), bool),
        )
        for p, segment in enumerate(wanted):
            if not segment:
                continue
            seed = (self.context.config.data.seed, sample, int(segment))
            rng, mask = np.random.default_rng(seed), ids == segment
            drawing = strokes.draw(self.kind, mask, rng)
            if not len(drawing):
                drawing = np.argwhere(mask)[:1, ::-1]
            drawing, _ = strokes.sample([drawing], points, rng)
            out.points[p, : len(drawing)] = drawing / self.context.size
            out.valid[p, : len(drawing)] = True
        flat = jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:]), out)
        return flat

    def _answer(self, sample: int, record: Record, ids, items: list[Item]) -> Answer:
        objects = [
            (int(segment), curve)
            for item in items
            for segment, curve in zip(item.wanted, item.curves, strict=True)
            if segment
        ]
        curves = [curve.astype(np.float64) for _, curve in objects]
        result = {
            "sample": sample,
            "name": record.file_name,
            "score": 100 * float(np.mean([c[0] for c in curves])) if curves else None,
            "objects": [segment for segment, _ in objects],
            "curves": curves,
        }
        return Answer(result, functools.partial(_picture, record, ids, items, self.kind in DRAWN))

    def summary(self, results: Sequence[Result]) -> dict[str, float]:
        return interactive.scores(all_curves(results, self.max_clicks)) | {
            "objects": float(sum(len(result["curves"]) for result in results))
        }


def all_curves(results: Sequence[Result], max_clicks: int) -> np.ndarray:
    """float32 [objects, clicks] of all results; what was not finite is NaN again."""
    curves = [curve for result in results for curve in result["curves"]]
    return np.array(curves, np.float64).astype(np.float32).reshape(len(curves), max_clicks)


@jax.jit
def _put(features, encoded, take, chosen):
    """features with those of images take (int32 [B]) of another batch in the rows chosen."""

    def one(old, new):
        return jnp.where(chosen.reshape(-1, *[1] * (old.ndim - 1)), new[take], old)

    return jax.tree.map(one, features, encoded)


def _joined(parts) -> list[Record]:
    return [record for _, _, records in parts for record in records]


def _groups(record: Record, ids: np.ndarray, num_things: int, num: int) -> Iterator[np.ndarray]:
    """int32 [num] numbers of thing segments to click together, 0 for none.

    Crowds, stuff and things that have no pixel at model size are left out.
    """
    clickable = [
        segment.id
        for segment in truth.segments(record)
        if not segment.crowd and segment.category < num_things and (ids == segment.id).any()
    ]
    for start in range(0, len(clickable), num):
        wanted = np.zeros(num, np.int32)
        part = clickable[start : start + num]
        wanted[: len(part)] = part
        yield wanted


def _picture(record: Record, ids: np.ndarray, items: list[Item], stroke: bool) -> Pictures:
    """One row: the first object of an image, before and after its clicks."""
    item, end = items[0], items[0].end
    image = decode_image(record.image, name=record.file_name)
    cut = np.s_[: record.height, : record.width]
    clicks = (end.iou.shape[1] - 1) * len(item.wanted) * POINTS  # points of the later clicks
    number = np.arange(len(end.prompts.valid)) - (len(end.prompts.valid) - clicks)
    own = (end.prompts.prompt == 0) & end.prompts.valid
    # Of a click the middle is drawn, of another drawing all points.
    middle = own & ((number % POINTS == POINTS // 2) | ((number < 0) & stroke))
    first, every = (
        (end.prompts.points[rows], end.prompts.positive[rows])
        for rows in (middle & (number < 0), middle)
    )
    curve = 100 * end.iou[0]
    return [
        sheets.answered(image, None, *first),
        sheets.answered(image, ids == item.wanted[0]),
        sheets.answered(image, end.first[0][cut], *first),
        sheets.answered(image, end.last[0][cut], *every),
    ], f"IoU {curve[0]:.0f} at first, {curve[-1]:.0f} after {int(end.rounds)} rounds"
