"""Interactive evaluation at once on the device, against loops at batch 1; suite `interactive`.

    python -m seem_jax.benchmark --suite=interactive --config=configs/shapes.py

All play official sessions on the same images of config.data.interactive_eval with the model of the
configuration: the weights of config.start_from, or random ones, with which no object is ever good and
every session takes all clicks. `PlainSessions` is the evaluation as it is usually written, one call a
click, masks judged on the host: record by record (up to 5 objects together, as officially) or object
by object. tests/test_interactive_speed.py compares the IoUs after each click.
"""

from __future__ import annotations

import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from seem_jax import checkpoint, interaction, postprocess
from seem_jax.config import Config
from seem_jax.evaluation import sessions
from seem_jax.evaluation.tasks.base import Context
from seem_jax.evaluation.tasks.clicks import Interactive
from seem_jax.models.seem import build, initialise, mask_logits, remember
from seem_jax.types import Memory

IMAGES, PLAIN_IMAGES = 32, 4  # played at once; in a loop
TIMES = 2  # each is timed so often, in turns; the quickest one counts


def run(config: Config) -> dict[str, float]:
    """Milliseconds of an object's session each way, and how often at once goes into the others."""
    model = build(config.model)
    alone = dataclasses.replace(
        config, evaluation=dataclasses.replace(config.evaluation, objects_together=1)
    )
    together, single = (
        Interactive(Context(model, c), c.data.interactive_eval) for c in (config, alone)
    )
    params = together.context.place(_params(model, config))
    many, few = (range(min(count, together.count())) for count in (IMAGES, PLAIN_IMAGES))
    records, objects = PlainSessions(together, params), PlainSessions(single, params)
    ways = {
        "at_once": lambda: at_once(together, params, many),
        "record_by_record": lambda: records.play(few),
        "object_by_object": lambda: objects.play(few),
    }
    milliseconds = dict.fromkeys(ways, np.inf)
    counts = dict.fromkeys(ways, 0.0)
    for number in range(1 + TIMES):  # the first compiles
        for name, play in ways.items():
            begin = time.perf_counter()
            counts[name] = float(len(play()))
            each = 1000 * (time.perf_counter() - begin) / max(1, counts[name])
            if number:
                milliseconds[name] = min(milliseconds[name], each)
    figures = {f"interactive/milliseconds/{name}": value for name, value in milliseconds.items()}
    figures |= {f"interactive/objects/{name}": value for name, value in counts.items()}
    for name in ("record_by_record", "object_by_object"):
        faster = milliseconds[name] / milliseconds["at_once"]
        figures[f"interactive/times_faster_than/{name}"] = faster
    return figures


def _params(model, config: Config):
    if config.start_from:
        return checkpoint.restore_params(config.start_from)[0]
    return nn.unbox(jax.jit(functools.partial(initialise, model))(jax.random.key(0)))


def at_once(task: Interactive, params, samples) -> list[list[float]]:
    """The IoU curve of each object, played by the evaluation."""
    found = {
        answer.result["sample"]: answer.result["curves"]
        for unit in task.answers(params, task.grouped(samples))
        for answer in unit
    }
    return [list(curve) for sample in samples for curve in found[sample]]


class PlainSessions:
    """The same sessions with a loop over records and clicks on the host; official user only."""

    def __init__(self, task: Interactive, params):
        self.task, self.params, self.model = task, params, task.context.model
        self.encode = task.encode
        self.decode = jax.jit(self._decode)
        self.first, self.following = jax.jit(task.user.first), jax.jit(task.user.next)
        self.append = jax.jit(interaction.append_points)

    def _decode(self, params, features, prompts, memory: Memory, plan):
        variables, num = {"params": params}, memory.valid.shape[1]
        visual = self.model.apply(variables, features, prompts, num, method="encode_prompts")
        outputs = self.model.apply(
            variables, features, None, visual, memory, objects=False, method="decode"
        )
        memory = remember(outputs, visual)
        logits = mask_logits(memory.mask_embedding, features)
        mask = (postprocess.resize(logits, plan) > 0) & plan.inside[:, None]
        return memory, logits, mask

    def play(self, samples) -> list[list[float]]:
        """The IoU curve of each object."""
        curves = []
        for batch in self.task.context.batches(
            self.task.data, [[sample] for sample in samples], self.task.sizing
        ):
            features = jax.tree.map(
                lambda array: array[:1], self.encode(self.params, batch.image, batch.image_size)
            )
            for rows in self.task.records_of(batch):
                curves += self._session(features, jax.tree.map(lambda array: array[None], rows))
        return curves

    def _session(self, features, rows: sessions.Rows) -> list[list[float]]:
        clicks, num = self.task.max_clicks, rows.wanted.shape[1]
        points, positive, valid, marks = self.first(rows)
        first = interaction.as_prompts(points, positive, valid)
        first = first if rows.strokes is None else rows.strokes
        prompts = interaction.reserve(first, clicks - 1, num)
        memory = Memory(
            jnp.zeros((1, num, features.mask.shape[-1]), features.mask.dtype),
            jnp.zeros((1, num), bool),
        )
        truth, curves = rows.truth[0], np.zeros((num, clicks), np.float32)
        for click in range(clicks):
            memory, logits, mask = self.decode(self.params, features, prompts, memory, rows.plan)
            found = np.asarray(mask)[0]
            shared = ((truth == 1) & found).sum((1, 2))
            union = ((truth == 1) | (found & (truth >= 0))).sum((1, 2))
            iou = shared.astype(np.float32) / np.maximum(union, 1).astype(np.float32)
            curves[:, click:] = iou[:, None]
            if (iou > sessions.GOOD_ENOUGH)[rows.wanted[0]].all() or click == clicks - 1:
                break
            points, positive, valid, marks = self.following(rows, logits, mask, marks)
            row = first.valid.shape[1] + click * num * interaction.POINTS_PER_CLICK
            prompts = self.append(prompts, points, positive, valid, jnp.int32(row))
        return curves[rows.wanted[0]].tolist()
