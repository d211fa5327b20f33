"""Simulated users who click until a mask is good: many sessions at once, on the device.

A program holds some sessions and runs until a share of them has ended; the host then puts waiting
ones in their rows. So an object that is done costs little, whatever its neighbours need.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from seem_jax import interaction, postprocess
from seem_jax.evaluation import ritm
from seem_jax.evaluation.programs import filled_boxes
from seem_jax.models.seem import mask_logits, remember
from seem_jax.types import Features, Memory, VisualPrompts

GOOD_ENOUGH = 0.9  # IoU above which all objects of an official session are done
POINTS = interaction.POINTS_PER_CLICK
CELL = np.arange(-1, 2, dtype=np.int32)


@struct.dataclass
class Rows:
    """What the sessions are about; one image and up to P of its objects each."""

    objects: jax.Array  # bool [B, P, h, w], the objects at model size; none where nothing is wanted
    truth: jax.Array  # int8 [B, P, H, W] at original size: 1 object, 0 not, -1 where nothing counts
    wanted: jax.Array  # bool [B, P], whether there is an object
    visible: jax.Array  # int32 [B, 2], (height, width) of the image at model size
    original: jax.Array  # int32 [B, 2], (height, width) as stored
    plan: postprocess.ResizePlan
    strokes: VisualPrompts | None  # [B, P S], first drawings; None: the user begins with a click


@struct.dataclass
class State:
    """Where the sessions stand."""

    features: Features
    prompts: VisualPrompts  # [B, first drawing + clicks]
    marks: jax.Array  # what the user remembers of its clicks, [B, P, ...]
    memory: Memory
    iou: jax.Array  # float32 [B, P, clicks]; repeats the last value after the end
    first: jax.Array  # bool [B, P, H, W], the answer to the first prompt
    last: jax.Array  # bool [B, P, H, W]
    rounds: jax.Array  # int32 [B], answers so far
    ended: jax.Array  # bool [B]


class User(Protocol):
    """Who clicks. A click is (points [B, P, 9, 2], positive [B, P], valid [B, P, 9], marks)."""

    threshold: float  # logit above which a pixel is the object

    def first(self, rows: Rows): ...

    def next(self, rows: Rows, logits, mask, marks): ...

    def satisfied(self, iou, exists): ...


@dataclasses.dataclass(frozen=True)
class SeemUser:
    """The official user (seem_model_v1.py, evaluate_interactive): clicks at model size.

    boxes: objects are shown as their filled boxes, which then also stand for them in the later
    clicks, as officially; the IoU keeps the true mask. only_first: just the first click sees the box.
    """

    boxes: bool = False
    only_first: bool = False
    threshold: float = 0.0

    def first(self, rows: Rows):
        if rows.strokes is None:
            return interaction.first_clicks(
                filled_boxes(rows.objects) if self.boxes else rows.objects
            )
        batch, num = rows.wanted.shape
        nothing = jnp.zeros((batch, num, POINTS), bool)
        marks = interaction.prompted_mask(rows.strokes, num, *rows.objects.shape[-2:])
        points = jnp.zeros((batch, num, POINTS, 2), jnp.float32)
        return points, jnp.ones((batch, num), bool), nothing, marks

    def next(self, rows: Rows, logits, mask, marks):
        del mask
        boxes = self.boxes and not self.only_first
        truth = filled_boxes(rows.objects) if boxes else rows.objects
        return interaction.next_clicks(logits, truth, marks)

    def satisfied(self, iou, exists):
        return ((iou > GOOD_ENOUGH) | ~exists).all(-1)


@dataclasses.dataclass(frozen=True)
class RitmUser:
    """The user of RITM and SimpleClick: original pixels, one object a session."""

    threshold: float = float(np.log(ritm.THRESHOLD / (1 - ritm.THRESHOLD)))

    def first(self, rows: Rows):
        nothing = jnp.zeros(rows.truth.shape, bool)
        return self.next(rows, None, nothing, nothing)

    def next(self, rows: Rows, logits, mask, marks):
        del logits
        row, column, positive = ritm.next_click(mask, rows.truth, marks)  # [B, P]
        place = jax.lax.broadcasted_iota(jnp.int32, mask.shape, mask.ndim - 2)
        across = jax.lax.broadcasted_iota(jnp.int32, mask.shape, mask.ndim - 1)
        here = (place == row[..., None, None]) & (across == column[..., None, None])
        pixel = jnp.stack([row, column], -1)  # [B, P, 2]
        scale = rows.visible.astype(jnp.float32) / rows.original.astype(jnp.float32)
        pixel = jnp.floor((pixel.astype(jnp.float32) + 0.5) * scale[:, None]).astype(jnp.int32)
        square = jnp.stack(jnp.meshgrid(CELL, CELL, indexing="ij"), -1).reshape(POINTS, 2)
        pixel = pixel[:, :, None] + square[None, None]  # [B, P, 9, 2]
        limit = rows.visible[:, None, None]
        valid = ((pixel >= 0) & (pixel < limit)).all(-1) & rows.wanted[..., None]
        pixel = jnp.clip(pixel, 0, limit - 1)
        size = jnp.array(rows.objects.shape[2:], jnp.float32)[None, None, None]
        return (pixel.astype(jnp.float32) / size)[..., ::-1], positive, valid, marks | here

    def satisfied(self, iou, exists):
        return ((iou >= ritm.TARGET_IOU) | ~exists).all(-1)


def advance(
    model, params, leave, fresh, rows: Rows, features, state: State, *, user: User, max_clicks: int
) -> State:
    """Begins the sessions of fresh (bool [B]) rows with features [B, ...], then answers and clicks
    until no more than `leave` (float32 [], a share of the rows) of the sessions go on."""
    state = _where(fresh, begin(rows, features, user, max_clicks), state)
    variables = {"params": params}
    num = rows.wanted.shape[1]

    def answer(state: State) -> State:
        going = ~state.ended
        visual = model.apply(variables, state.features, state.prompts, num, method="encode_prompts")
        outputs = model.apply(
            variables, state.features, None, visual, state.memory, objects=False, method="decode"
        )
        memory = remember(outputs, visual)
        logits = mask_logits(memory.mask_embedding, state.features)  # [B, P, h, w]
        full = postprocess.resize(logits, rows.plan)
        mask = (full > user.threshold) & rows.plan.inside[:, None]
        iou = ritm.iou(mask, rows.truth)  # an empty union gives NaN, officially
        rounds = state.rounds + 1
        ended = user.satisfied(iou, rows.wanted) | (rounds >= max_clicks)
        points, positive, valid, marks = user.next(rows, logits, mask, state.marks)
        valid = valid & ~ended[:, None, None]
        click = interaction.as_prompts(points, positive, valid)
        row = state.prompts.valid.shape[1] - (max_clicks - rounds) * (num * POINTS)
        clicks = jnp.arange(max_clicks, dtype=jnp.int32)[None, None]
        after = State(
            features=state.features,
            prompts=_write(state.prompts, click, row),
            marks=marks,
            memory=memory,
            iou=jnp.where(clicks >= state.rounds[:, None, None], iou[..., None], state.iou),
            first=jnp.where((rounds == 1)[:, None, None, None], mask, state.first),
            last=mask,
            rounds=rounds,
            ended=ended,
        )
        # After the last answer there is no row left to write a click to.
        kept = _where(ended, state.prompts, after.prompts)
        return _where(going, after.replace(prompts=kept), state)

    limit = (leave * len(fresh)).astype(jnp.int32)
    return jax.lax.while_loop(
        lambda state: (~state.ended).sum(dtype=jnp.int32) > limit, answer, state
    )


def begin(rows: Rows, features: Features, user: User, max_clicks: int) -> State:
    """The first drawing of every row; a row without an object has ended."""
    batch, num = rows.wanted.shape
    points, positive, valid, marks = user.first(rows)
    click = interaction.as_prompts(points, positive, valid)
    first = click if rows.strokes is None else rows.strokes
    blank = jnp.zeros(rows.truth.shape, bool)
    return State(
        features=features,
        prompts=interaction.reserve(first, max_clicks - 1, num),
        marks=marks,
        memory=Memory(
            mask_embedding=jnp.zeros((batch, num, features.mask.shape[-1]), features.mask.dtype),
            valid=jnp.zeros((batch, num), bool),
        ),
        iou=jnp.zeros((batch, num, max_clicks), jnp.float32),
        first=blank,
        last=blank,
        rounds=jnp.zeros(batch, jnp.int32),
        ended=~rows.wanted.any(-1),
    )


def _where(chosen, new, old):
    """new in the rows where chosen, bool [B]; old in the others."""

    def pick(new, old):
        return jnp.where(chosen.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    return jax.tree.map(pick, new, old)


def _write(prompts: VisualPrompts, click: VisualPrompts, row) -> VisualPrompts:
    """The prompts with a click written from row (int32 [B]) on."""

    def one(old, new, row):
        return jax.tree.map(
            lambda a, b: jax.lax.dynamic_update_slice_in_dim(a, b, row, axis=0), old, new
        )

    return jax.vmap(one)(prompts, click, row)
