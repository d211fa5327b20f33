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
from seem_jax.types import Features, KeptTokens, Memory, VisualPrompts

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

    prompts: VisualPrompts  # [B, first drawing + clicks]
    tokens: KeptTokens  # of the prompts, each with room for all clicks
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

    def first(self, rows: Rows):
        """The first click on each object."""

    def next(self, rows: Rows, logits, mask, marks):
        """The click that corrects mask, bool [B, P, H, W], made of logits float32 [B, P, h, w]."""

    def satisfied(self, iou, exists):
        """bool [B], whether a session ends at these IoUs, [B, P]; exists: which P are objects."""


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
    """Begins the sessions of fresh (bool [B]) rows, then answers and clicks until no more than `leave`
    (float32 [], a share of the rows) of the sessions go on. rows and features are those of all sessions."""
    state = _renewed(fresh, begin(model, params, rows, features, user, max_clicks), state)
    variables = {"params": params}
    num = rows.wanted.shape[1]

    def answer(state: State) -> State:
        """One answer of all sessions that go on, and the click that corrects it."""
        tokens = state.tokens
        outputs = model.apply(
            variables, features, None, tokens, state.memory, objects=False, method="decode"
        )
        memory = remember(outputs, tokens)
        logits = mask_logits(memory.mask_embedding, features)  # [B, P, h, w]
        full = postprocess.resize(logits, rows.plan)
        mask = (full > user.threshold) & rows.plan.inside[:, None]
        iou = ritm.iou(mask, rows.truth)  # an empty union gives NaN, officially
        rounds = state.rounds + 1
        ended = user.satisfied(iou, rows.wanted) | (rounds >= max_clicks)
        points, positive, valid, marks = user.next(rows, logits, mask, state.marks)
        valid = valid & ~ended[:, None, None]
        click = interaction.as_prompts(points, positive, valid)
        read = model.apply(variables, features, click, num, method="keep_prompts")
        left = max_clicks - rounds  # clicks for which there is room, this one among them
        prompts = _write(state.prompts, click, left * (num * POINTS), 1)
        clicks = jnp.arange(max_clicks, dtype=jnp.int32)[None, None]
        after = state.replace(
            # After the last answer there is no room: the write moves back over the last click.
            prompts=_where(ended, state.prompts, prompts),
            marks=marks,
            memory=memory,
            iou=jnp.where(clicks >= state.rounds[:, None, None], iou[..., None], state.iou),
            first=jnp.where((rounds == 1)[:, None, None, None], mask, state.first),
            last=mask,
            rounds=rounds,
            ended=ended,
        )
        after = _where(~state.ended, after.replace(tokens=None), state.replace(tokens=None))
        # Nobody reads the tokens of a session that has ended, so they need no such choice.
        return after.replace(tokens=_append(tokens, read, left * POINTS))

    limit = (leave * len(fresh)).astype(jnp.int32)
    return jax.lax.while_loop(
        lambda state: (~state.ended).sum(dtype=jnp.int32) > limit, answer, state
    )


def begin(model, params, rows: Rows, features: Features, user: User, max_clicks: int) -> State:
    """The first drawing of every row, with no room for the tokens of clicks; a row without an object
    has ended."""
    batch, num = rows.wanted.shape
    points, positive, valid, marks = user.first(rows)
    click = interaction.as_prompts(points, positive, valid)
    first = click if rows.strokes is None else rows.strokes
    tokens = model.apply({"params": params}, features, first, num, method="keep_prompts")
    blank = jnp.zeros(rows.truth.shape, bool)
    return State(
        prompts=interaction.reserve(first, max_clicks - 1, num),
        tokens=tokens,
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


def idle(state: State, max_clicks: int) -> State:
    """A state in which no session goes on, with room for the tokens of all clicks; NumPy. state is what
    `begin` gives, or its shapes."""
    room = (max_clicks - 1) * POINTS

    def blank(leaf, axis=None):
        shape = [size + (room if k == axis else 0) for k, size in enumerate(leaf.shape)]
        return np.zeros(shape, leaf.dtype)

    tokens = state.tokens
    return jax.tree.map(blank, state).replace(
        tokens=jax.tree.map(blank, tokens).replace(
            keys=tuple(blank(array, 3) for array in tokens.keys),
            values=tuple(blank(array, 3) for array in tokens.values),
            valid=blank(tokens.valid, 2),
        ),
        ended=np.ones(state.ended.shape, bool),
    )


def _renewed(fresh, begun: State, state: State) -> State:
    """state with what has begun in the rows of fresh; of its tokens only those that are read again are
    written: what the valid ones are not is old, but finite."""
    old, new = state.tokens, begun.tokens

    def first(old, new):
        rows = old[:, :, :, : new.shape[3]]
        return jax.lax.dynamic_update_slice_in_dim(old, _where(fresh, new, rows), 0, axis=3)

    more = [(0, 0), (0, 0), (0, old.valid.shape[2] - new.valid.shape[2])]
    tokens = _where(
        fresh,
        new.replace(keys=(), values=(), valid=jnp.pad(new.valid, more)),
        old.replace(keys=(), values=()),
    ).replace(
        keys=tuple(map(first, old.keys, new.keys)), values=tuple(map(first, old.values, new.values))
    )
    kept = _where(fresh, begun.replace(tokens=None), state.replace(tokens=None))
    return kept.replace(tokens=tokens)


def _append(tokens: KeptTokens, click: KeptTokens, left) -> KeptTokens:
    """The tokens with those of a click written where `left` (int32 [B]) rows remain."""
    count = tokens.count + click.count
    both = (tokens.pooled * tokens.count + click.pooled * click.count) / jnp.maximum(count, 1.0)
    pooled = jnp.where(tokens.count > 0, both, click.pooled)
    return KeptTokens(
        keys=_write(tokens.keys, click.keys, left, 3),
        values=_write(tokens.values, click.values, left, 3),
        valid=_write(tokens.valid, click.valid, left, 2),
        pooled=jnp.where(click.count > 0, pooled, tokens.pooled),
        count=count,
        prompt_valid=tokens.prompt_valid | click.prompt_valid,
    )


def _where(chosen, new, old):
    """new in the rows where chosen, bool [B]; old in the others."""

    def pick(new, old):
        return jnp.where(chosen.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    return jax.tree.map(pick, new, old)


def _write(old, new, left, axis: int):
    """The arrays of old with those of new written along an axis where `left` (int32 [B]) rows remain."""

    def one(old, new, left):
        start = old.shape[axis - 1] - left
        return jax.lax.dynamic_update_slice_in_dim(old, new, start, axis=axis - 1)

    return jax.tree.map(lambda old, new: jax.vmap(one)(old, new, left), old, new)
