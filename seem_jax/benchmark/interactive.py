"""Interactive evaluation at once on the device, against loops at batch 1; suite `interactive`.

    python -m seem_jax.benchmark --suite=interactive --config=configs/shapes.py

All play official sessions on the same images of config.data.interactive_eval with the model of the
configuration: the weights of config.start_from, or random ones, with which no object is ever good and
every session takes all clicks. The ways:

    at_once               the evaluation: many sessions together, clicks on the device
    at_batch_one          the same programs with one session at a time: what batching alone is worth
    loop/device_clicks    a loop on the host over images, records of up to 5 objects, and clicks, as
                          officially; a call decodes a round from all points anew, another one clicks
    loop/host_clicks      the same loop; clicks on the host, with the distance transform of SciPy
    loop/official_clicks  the same, with the distance transform computed as officially: shell by shell
    loop/one_object       the loop with clicks on the host and records of one object, as RITM evaluates

The loops are the definition of a session; tests/test_interactive_speed.py compares all IoUs.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from scipy import ndimage

from seem_jax import checkpoint, interaction, postprocess
from seem_jax.config import Config
from seem_jax.evaluation import sessions
from seem_jax.evaluation.tasks.base import Context
from seem_jax.evaluation.tasks.clicks import Interactive
from seem_jax.kernels.distance_transform import DIAGONAL, KORNIA_H, STRAIGHT
from seem_jax.models.seem import build, initialise, mask_logits, remember
from seem_jax.types import Memory

IMAGES = 32
TIMES = 2  # each is timed so often, in turns; the quickest one counts


def run(config: Config) -> dict[str, float]:
    """Milliseconds of an object's session each way, and how often at once goes into the others."""
    model = build(config.model)
    tasks = []
    for options in ({}, {"batch_size": 1}, {"batch_size": 1, "objects_together": 1}):
        evaluation = dataclasses.replace(config.evaluation, **options)
        context = Context(model, dataclasses.replace(config, evaluation=evaluation))
        tasks.append(Interactive(context, config.data.interactive_eval))
    together, alone, single = tasks
    params = together.context.place(_params(model, config))
    samples = range(min(IMAGES, together.count()))
    records, objects = PlainSessions(alone, params), PlainSessions(single, params)
    ways = {
        "at_once": lambda: at_once(together, params, samples),
        "at_batch_one": lambda: at_once(alone, params, samples),
        "loop/device_clicks": lambda: records.play(samples, DeviceUser(alone)),
        "loop/host_clicks": lambda: records.play(samples, HostUser(chamfered)),
        "loop/official_clicks": lambda: records.play(samples, HostUser(peeled)),
        "loop/one_object": lambda: objects.play(samples, HostUser(chamfered)),
    }
    milliseconds = dict.fromkeys(ways, np.inf)
    for number in range(1 + TIMES):  # the first compiles
        for name, play in ways.items():
            begin = time.perf_counter()
            count = len(play())
            if number:
                each = 1000 * (time.perf_counter() - begin) / max(1, count)
                milliseconds[name] = min(milliseconds[name], each)
    figures = {f"interactive/milliseconds/{name}": value for name, value in milliseconds.items()}
    figures["interactive/objects"] = float(count)
    for name in list(ways)[1:]:
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


class DeviceUser:
    """The user of the evaluation, one compiled call a click."""

    def __init__(self, task: Interactive):
        self.first, self.next = _user_programs(task.user)


@functools.cache
def _user_programs(user):
    return jax.jit(user.first), jax.jit(user.next)


class HostUser:
    """The official user of `interaction` on NumPy arrays of one record, [1, P, ...]; begins with a
    click. distance gives the official distance transform float [H, W] of bool [H, W]."""

    def __init__(self, distance: Callable[[np.ndarray], np.ndarray]):
        self.distance = distance

    def first(self, rows: sessions.Rows):
        truth = np.asarray(rows.objects)
        marks = np.zeros(truth.shape, np.uint8)
        return self._clicks(truth, np.ones(truth.shape[:2], bool), truth.any((2, 3)), marks)

    def next(self, rows: sessions.Rows, logits, mask, marks):
        del mask
        truth = np.asarray(rows.objects)
        size = truth.shape[:1:-1]  # width, height
        shown = [cv2.resize(m, size, interpolation=cv2.INTER_LINEAR) for m in np.asarray(logits)[0]]
        found = np.stack(shown)[None] > 0
        missing, wrong = truth & ~found & (marks == 0), ~truth & found & (marks == 0)
        positive = missing.sum((2, 3)) > wrong.sum((2, 3))
        iou = (truth & found).sum((2, 3)) / np.maximum((truth | found).sum((2, 3)), 1)
        wanted = (iou < interaction.STOP_IOU) & truth.any((2, 3))
        region = np.where(positive[..., None, None], missing, wrong)
        return self._clicks(region, positive, wanted, marks)

    def _clicks(self, region, positive, wanted, marks):
        _, num, height, width = region.shape
        points = np.zeros((1, num, interaction.POINTS_PER_CLICK, 2), np.float32)
        valid, marks = np.zeros(points.shape[:3], bool), marks.copy()
        for p in np.flatnonzero(wanted[0]):
            row, column = np.unravel_index(self.distance(region[0, p]).argmax(), (height, width))
            bit = interaction.POSITIVE if positive[0, p] else interaction.NEGATIVE
            square = np.stack(np.mgrid[row - 1 : row + 2, column - 1 : column + 2], -1).reshape(
                -1, 2
            )
            for k, (y, x) in enumerate(square.tolist()):
                if 0 <= y < height and 0 <= x < width and not marks[0, p, y, x] & bit:
                    points[0, p, k], valid[0, p, k] = (x / width, y / height), True
                    marks[0, p, y, x] |= bit
        return points, positive, valid, marks


def peeled(region: np.ndarray) -> np.ndarray:
    """The official distance transform of bool [H, W] as kornia 0.7.0 computes it, a convolution for every
    shell of pixels; rounded, so that equal neighbourhoods tie."""
    offset = np.hypot(*np.mgrid[-1:2, -1:2])
    outside = np.pad(~region, 1, constant_values=True).astype(np.float64)
    result, step = np.zeros(outside.shape), 0
    while True:
        near = ndimage.correlate(outside, np.exp(-offset / KORNIA_H), mode="nearest")
        depth = np.where(near > 0, -KORNIA_H * np.log(np.where(near > 0, near, 1.0)), 0.0)
        shell = depth > 0
        if not shell.any():
            return np.round(result[1:-1, 1:-1], 6)
        result[shell] += (3 * step // 2) + depth[shell]
        outside[shell] = 1.0
        step += 1


def chamfered(region: np.ndarray) -> np.ndarray:
    """The same in closed form (kernels/distance_transform.py), by SciPy's distance of a chess king."""
    around = ndimage.distance_transform_cdt(np.pad(region, 1), "chessboard")
    distance = around[1:-1, 1:-1]
    height, width = region.shape
    spread = np.zeros(region.shape, np.float32)
    for row in range(3):
        for column in range(3):
            weight = STRAIGHT if (row - 1) * (column - 1) == 0 else DIAGONAL
            spread += weight * (around[row : row + height, column : column + width] < distance)
    depth = (3 * (distance - 1) // 2) - np.float32(KORNIA_H) * np.log(np.where(region, spread, 1))
    return np.where(region, depth, 0)


class PlainSessions:
    """The definition of an official session: a loop over records and clicks on the host; of a task
    with a batch of one."""

    def __init__(self, task: Interactive, params):
        self.task, self.params = task, params
        self.model, self.encode = task.context.model, task.encode
        self.decode = jax.jit(self._decode)
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

    def play(self, samples, user: DeviceUser | HostUser) -> list[list[float]]:
        """The IoU curve of each object."""
        curves = []
        for batch in self.task.context.batches(
            self.task.data, [[sample] for sample in samples], self.task.sizing
        ):
            features = self.encode(self.params, batch.image, batch.image_size)
            for rows in self.task.records_of(batch):
                rows = jax.tree.map(lambda array: array[None], rows)
                curves += self._session(features, rows, user)
        return curves

    def _session(self, features, rows: sessions.Rows, user) -> list[list[float]]:
        clicks, num = self.task.max_clicks, rows.wanted.shape[1]
        points, positive, valid, marks = user.first(rows)
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
            points, positive, valid, marks = user.next(rows, logits, mask, marks)
            row = first.valid.shape[1] + click * num * interaction.POINTS_PER_CLICK
            prompts = self.append(prompts, points, positive, valid, jnp.int32(row))
        return curves[rows.wanted[0]].tolist()
