"""Objects by simulated clicks: how many it takes, and how good the first answer is."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seem_jax import interaction, postprocess
from seem_jax.data import strokes
from seem_jax.data.schema import Record
from seem_jax.evaluation import drawings, interactive, objects, ritm, sessions, sheets, truth
from seem_jax.evaluation.objects import Clickable
from seem_jax.evaluation.reader import EvalBatch, named
from seem_jax.evaluation.results import Result
from seem_jax.evaluation.sessions import POINTS, Rows, State
from seem_jax.evaluation.tasks.base import MASK_STRIDE, Answer, Context, Pictures, unstack
from seem_jax.image import decode_image
from seem_jax.types import VisualPrompts

BATCHES_PER_UNIT = 4  # whose sessions share the rows of a program
LEAVE = 0.75  # share of the rows that goes on while others are filled anew
KINDS = ("point", *drawings.KINDS, "box")  # of the first prompt
first_clicks = jax.jit(interaction.first_clicks)


@dataclasses.dataclass
class Item:
    """One session: up to P objects of an image."""

    image: int  # in its unit
    objects: list[Clickable]
    shown: bool = False  # whether a picture may need its end
    curves: np.ndarray | None = None  # float32 [P, clicks] when it has ended
    end: State | None = None  # of this row, if shown


class Interactive:
    """NoC and IoU of the thing segments of a split, for one kind of first prompt and one user."""

    columns = ("first prompt", "truth", "after the first prompt", "after the last click")

    def __init__(self, context: Context, split: str, kind: str = "point", ritm_user: bool = False):
        options = context.config.evaluation
        self.context, self.split, self.kind, self.options = context, split, kind, options
        # A point is one click, which is what the scores' names have called it from the start.
        word = "click" if kind == "point" else kind
        self.name = f"interactive/ritm/{word}" if ritm_user else f"interactive/{word}"
        self.data = context.open(split)
        self.max_clicks = options.max_clicks
        self.num = 1 if ritm_user else options.objects_together
        self.user = (
            sessions.RitmUser()
            if ritm_user
            else sessions.SeemUser(boxes=kind == "box", only_first=not options.box_is_object)
        )
        self.advance = context.spread(
            sessions.advance, 2, given_up=(5,), user=self.user, max_clicks=self.max_clicks
        )
        self.sizing = context.sizing(options.edges, bicubic=True)
        self.encode = context.encoder(self.sizing)

    def protocol(self) -> dict[str, Any]:
        """Who clicks where and until when, what is clicked, and how images and masks are sized; the
        official user and RITM's differ in all but the sizes."""
        options = self.options
        shared = {
            "max_clicks": self.max_clicks,
            "click": "3x3 pixels at model size",
            "image": self.sizing.describe(),
            "objects": "of one grey value, as officially: some of VOC merge"
            if options.voc_grey_ids
            else "segments of thing classes that are no crowds",
        }
        if isinstance(self.user, sessions.RitmUser):
            return shared | {
                "metric": "RITM compute_noc_metric",
                "clicks": "RITM Clicker: original size, exact Euclidean distance, ignored pixels out",
                "threshold": ritm.THRESHOLD,
                "stop": f"each object at IoU >= {ritm.TARGET_IOU}",
                "zoom_in and flip": "none",
            }
        together = f"all of up to {self.num} objects of a record" if self.num > 1 else "each object"
        return shared | {
            "metric": "SEEM InteractiveEvaluator",
            "first": self._first(),
            "clicks": "SEEM v1 best: padded input size, kornia 0.7.0 distance",
            "threshold": 0.5,
            "stop": f"{together} at IoU > {sessions.GOOD_ENOUGH}",
            "masks at model size": "bicubic of a 0/1 map, where not 0 (official)"
            if options.grown_masks
            else "nearest pixel",
        }

    def _first(self) -> str:
        if self.kind == "point":
            return "official: deepest pixel of the object"
        if self.kind == "box":
            box = "official: deepest pixel of the filled box"
            later = ", which replaces the object for later clicks"
            return box + (later if self.options.box_is_object else "; later clicks see the object")
        points = f"at most {self._stroke_points()} points"
        if self.options.training_strokes:
            return f"{self.kind} by the official training laws, {points}"
        if self.kind == "polygon":
            return f"official: a curve in the object's box, not on its pixels, {points}"
        return f"official: one random {self.kind} from the object's deepest pixel, {points}"

    def count(self) -> int:
        return len(self.data)

    def grouped(self, samples: Sequence[int]) -> list[list[int]]:
        return self.context.grouped(self.data, samples, self.sizing, BATCHES_PER_UNIT)

    def answers(self, params, units) -> Iterator[list[Answer]]:
        """The answers on images whose sessions have ended, as soon as they have: what is still open
        fills at most the rows of the program."""
        size = self.context.config.evaluation.batch_size
        parts = [
            [list(unit[start : start + size]) for start in range(0, len(unit), size)]
            for unit in units
        ]
        stream = self.context.batches(
            self.data, [part for unit in parts for part in unit], self.sizing
        )
        for unit in parts:
            yield from self._unit(params, [next(stream) for _ in unit])

    def _unit(self, params, batches: list[EvalBatch]) -> Iterator[list[Answer]]:
        samples = [sample for batch in batches for sample in batch.samples]
        records = [record for batch in batches for record in batch.records]
        things = [self._clickable(*one) for one in zip(samples, records, strict=True)]
        items = [
            Item(image, group, shown=number == 0)
            for image, own in enumerate(things)
            for number, group in enumerate(self._groups(own))
        ]
        sessions_of = [[i for i in items if i.image == image] for image in range(len(records))]
        left = collections.Counter(item.image for item in items)

        def answered(images) -> list[Answer]:
            return [self._answer(samples[k], records[k], things[k], sessions_of[k]) for k in images]

        if nothing := [image for image, own in enumerate(sessions_of) if not own]:
            yield answered(nothing)
        for ended in self._play(params, items, self._rows(samples, batches, records), batches):
            left.subtract(item.image for item in ended)
            if done := sorted({item.image for item in ended if not left[item.image]}):
                yield answered(done)

    def records_of(self, batch: EvalBatch) -> Iterator[Rows]:
        """What each session on the images of a batch is about, without the axis B; NumPy."""
        rows = self._rows(batch.samples, [batch], batch.records)
        for image, (sample, record) in enumerate(zip(batch.samples, batch.records, strict=True)):
            for group in self._groups(self._clickable(sample, record)):
                yield rows(Item(image, group))

    def _clickable(self, sample: int, record: Record) -> list[Clickable]:
        with named(self.data, sample, record):
            return objects.clickable(
                record,
                self.data.num_things,
                self.sizing,
                grown=self.options.grown_masks,
                grey=self.options.voc_grey_ids,
            )

    def _groups(self, things: list[Clickable]) -> Iterator[list[Clickable]]:
        """The objects that are clicked together; nobody can click what has no pixel at model size."""
        things = [thing for thing in things if thing.small.any()]
        for start in range(0, len(things), self.num):
            yield things[start : start + self.num]

    def _rows(self, samples, batches: list[EvalBatch], records: list[Record]):
        """A function Item -> its Rows, without the axis B; NumPy."""
        visible = np.concatenate([batch.image_size for batch in batches])[: len(records)]
        originals = [(record.height, record.width) for record in records]
        height, width = batches[0].canvas
        plan = postprocess.plan_resize(
            visible,
            originals,
            (height // MASK_STRIDE, width // MASK_STRIDE),
            (height, width),
            antialias=False,
        )

        def one(item: Item) -> Rows:
            """The objects of a session at model size, its truth at original size (int8, -1 where
            nothing counts), and its first drawing; rows beyond its objects are empty."""
            k, num = item.image, len(item.objects)
            true = np.full((self.num, *plan.inside.shape[1:]), ritm.IGNORE, np.int8)
            cut = np.s_[: originals[k][0], : originals[k][1]]
            with named(self.data, samples[k], records[k]):
                hidden = truth.ignored(records[k])
            small = np.zeros((self.num, height, width), bool)
            true[(slice(None), *cut)] = np.where(hidden, ritm.IGNORE, 0)
            for p, thing in enumerate(item.objects):
                true[p][cut][thing.mask & ~hidden] = 1
                small[p] = thing.small
            return Rows(
                objects=small,
                truth=true,
                wanted=np.arange(self.num) < num,
                visible=visible[k],
                original=np.array(originals[k], np.int32),
                plan=jax.tree.map(lambda array: array[k], plan),
                strokes=self._strokes(samples[k], item, small, visible[k])
                if self.kind in drawings.KINDS
                else None,
            )

        return one

    def _play(
        self, params, items: list[Item], rows, batches: list[EvalBatch]
    ) -> Iterator[list[Item]]:
        """Plays all sessions in the rows of one program; gives those that have ended, with their
        curves and ends filled in."""
        size = self.context.config.evaluation.batch_size
        waiting = list(items)
        table: list[Item | None] = [None] * size
        held = [rows(Item(0, []))] * size
        part, encoded, features, state = -1, None, None, None
        while waiting or any(table):
            fresh = np.zeros(size, bool)
            while waiting and not all(table):
                if waiting[0].image // size != part:  # images come in order: each is encoded once
                    part = waiting[0].image // size
                    encoded = self.encode(params, batches[part].image, batches[part].image_size)
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
            state = self._idle(params, batch, features) if state is None else state
            leave = np.float32(LEAVE if waiting else 0.0)
            state = self.advance(params, leave, fresh, batch, features, state)
            yield self._collect(table, state)

    def _idle(self, params, batch: Rows, features) -> State:
        """A state in which no session goes on."""
        begin = functools.partial(
            sessions.begin, self.context.model, user=self.user, max_clicks=self.max_clicks
        )
        return sessions.idle(jax.eval_shape(begin, params, batch, features), self.max_clicks)

    @staticmethod
    def _collect(table: list[Item | None], state: State) -> list[Item]:
        """The sessions that have ended; their rows become free."""
        ended = []
        shown = jax.device_get(state.replace(tokens=None, marks=None, memory=None))
        for row, end in enumerate(unstack(shown, table)):
            if table[row] is not None and end.ended:
                table[row].curves = end.iou
                table[row].end = end if table[row].shown else None
                ended.append(table[row])
                table[row] = None
        return ended

    def _stroke_points(self) -> int:
        return self.context.config.data.max_points // self.num

    def _strokes(self, sample: int, item: Item, small: np.ndarray, visible) -> VisualPrompts:
        """A random drawing on each object, the same for a sample whatever else is evaluated; one
        that is empty becomes the deepest pixel."""
        points = self._stroke_points()
        out = VisualPrompts(
            points=np.zeros((self.num, points, 2), np.float32),
            prompt=np.repeat(np.arange(self.num, dtype=np.int32)[:, None], points, axis=1),
            positive=np.ones((self.num, points), bool),
            valid=np.zeros((self.num, points), bool),
        )
        canvas = np.array(small.shape[:0:-1], np.float32)  # width and height
        centres = np.asarray(first_clicks(small[None])[0])[0, :, POINTS // 2] * canvas
        for p, thing in enumerate(item.objects):
            rng = np.random.default_rng((self.context.config.data.seed, sample, thing.number))
            mask = np.ascontiguousarray(small[p, : visible[0], : visible[1]])
            deepest = tuple(np.round(centres[p]).astype(int).tolist())
            if self.options.training_strokes:
                drawing = strokes.draw(self.kind, mask, rng)
            else:
                drawing = drawings.draw(self.kind, mask, deepest, rng)
            if not len(drawing):
                drawing = np.array([deepest], np.int32)
            drawing, _ = strokes.sample([drawing], points, rng)
            out.points[p, : len(drawing)] = drawing / canvas
            out.valid[p, : len(drawing)] = True
        return jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:]), out)

    def _answer(
        self, sample: int, record: Record, every: list[Clickable], items: list[Item]
    ) -> Answer:
        things = [
            (thing.number, curve)
            for item in items
            for thing, curve in zip(item.objects, item.curves, strict=False)
        ]
        curves = [curve.astype(np.float64) for _, curve in things]
        result = {
            "sample": sample,
            "name": record.file_name,
            "score": 100 * float(np.mean([c[0] for c in curves])) if curves else None,
            "objects": [number for number, _ in things],
            "left_out": [thing.number for thing in every if not thing.small.any()],
            "curves": curves,
        }
        stroke = self.kind in drawings.KINDS
        return Answer(result, functools.partial(_picture, record, items, self.num, stroke))

    def summary(self, results: Sequence[Result]) -> dict[str, float]:
        return interactive.scores(all_curves(results, self.max_clicks)) | {
            "objects": float(sum(len(result["curves"]) for result in results)),
            "left_out": float(sum(len(result["left_out"]) for result in results)),
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


def _picture(record: Record, items: list[Item], num: int, stroke: bool) -> Pictures:
    """One row: the first object of an image, before and after its clicks."""
    item, end = items[0], items[0].end
    image = decode_image(record.image, name=record.file_name)
    cut = np.s_[: record.height, : record.width]
    clicks = (end.iou.shape[1] - 1) * num * POINTS  # points of the later clicks
    number = np.arange(len(end.prompts.valid)) - (len(end.prompts.valid) - clicks)
    own = (end.prompts.prompt == 0) & end.prompts.valid
    # Of a click the middle is drawn, of another drawing all points.
    middle = own & ((number % POINTS == POINTS // 2) | ((number < 0) & stroke))
    first, every = (
        (end.prompts.points[rows], end.prompts.positive[rows])
        for rows in (middle & (number < 0), middle)
    )
    curve = 100 * end.iou[0]
    firsts = np.concatenate([one.curves[: len(one.objects), 0] for one in items])
    caption = f"IoU {curve[0]:.0f} at first, {curve[-1]:.0f} at the end; rounds: {int(end.rounds)}"
    if len(firsts) > 1:  # the image was chosen for the mean of them
        caption += f"; all {len(firsts)} objects {100 * firsts.mean():.0f} at first"
    return [
        sheets.answered(image, None, *first),
        sheets.answered(image, item.objects[0].mask),
        sheets.answered(image, end.first[0][cut], *first),
        sheets.answered(image, end.last[0][cut], *every),
    ], caption
