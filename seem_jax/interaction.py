"""Where a mask is most wrong, and the next click there. Training and evaluation share it.

A click is the 3x3 square about a pixel, clipped at the image border: nine points. `prompted`
arrays remember what was drawn, uint8 [B, P, H, W]: bit 1 "this object", bit 2 "not this".
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from seem_jax.config import Config
from seem_jax.kernels import bit_planes
from seem_jax.kernels.distance_transform import deepest
from seem_jax.kernels.resize import upsample
from seem_jax.types import VisualPrompts

POINTS_PER_CLICK = 9
POSITIVE, NEGATIVE = np.uint8(1), np.uint8(2)
STOP_IOU = Config.round_stop_iou  # officially no click from here on


def next_clicks(logits, truth, prompted, stop_iou: float = STOP_IOU):
    """The click that corrects each mask: (points, positive, valid, prompted after the click).

    logits is float [B, P, h, w], H a whole multiple of h; truth bool [B, P, H, W]; prompted uint8
    [B, P, H, W] (`prompted_mask`). points is float32 [B, P, 9, 2], positive bool [B, P], valid bool
    [B, P, 9]: a point outside the image or already drawn with the same sign adds nothing.

    The pixel is deepest (`kornia_distance`, first in row-major order) in the missing pixels, if
    these are more than the wrong ones, else in the wrong ones; pixels already prompted are no
    candidates, and an empty region gives pixel (0, 0). No click from stop_iou on, and none for a
    prompt without truth (padding). Source: seem_model_v1.py, prepare_next_spaital_mask.
    """
    height, width = truth.shape[-2:]
    factor = height // logits.shape[-2]
    if (logits.shape[-2] * factor, logits.shape[-1] * factor) != (height, width):
        raise ValueError(
            f"mask logits of {logits.shape[-2:]} do not enlarge by a whole factor to the "
            f"{(height, width)} of the truth; give both at the padded model size."
        )
    number = truth.shape[1]
    predicted, true, seen = (
        bit_planes.pack(masks)
        for masks in (upsample(logits.astype(jnp.float32), factor) > 0, truth, prompted != 0)
    )
    count = lambda words: bit_planes.count(bit_planes.unpack(words, number))  # noqa: E731 - [B, P]
    missing, wrong = true & ~predicted & ~seen, predicted & ~true & ~seen
    positive = count(missing) > count(wrong)
    row, column = deepest(bit_planes.choose(positive, missing, wrong), number)
    overlap = count(true & predicted).astype(jnp.float32)
    union = count(true | predicted).astype(jnp.float32)
    wanted = (overlap / (union + 1e-8) < stop_iou) & (count(true) > 0)
    bit = jnp.where(positive, POSITIVE, NEGATIVE)  # [B, P]
    return _draw(row, column, positive, wanted, bit, prompted)


def first_clicks(truth):
    """One positive click in the middle of each object: (points, positive, valid, prompted).

    truth is bool [B, P, H, W]; results as of `next_clicks`. An object without pixels gets none.
    Source: the "Point" rule of the official evaluation, simpleclick_sampler.py.
    """
    row, column = deepest(bit_planes.pack(truth), truth.shape[1])
    positive = jnp.ones(truth.shape[:2], bool)
    bit = jnp.full(truth.shape[:2], POSITIVE)
    nothing = jnp.zeros(truth.shape, jnp.uint8)
    return _draw(row, column, positive, truth.any((-2, -1)), bit, nothing)


def _draw(row, column, positive, wanted, bit, prompted):
    height, width = prompted.shape[-2:]
    near = jnp.arange(-1, 2, dtype=jnp.int32)
    square = jnp.stack(jnp.meshgrid(near, near, indexing="ij"), -1).reshape(POINTS_PER_CLICK, 2)
    rows = row[..., None] + square[None, None, :, 0]  # [B, P, 9]
    columns = column[..., None] + square[None, None, :, 1]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    rows, columns = jnp.clip(rows, 0, height - 1), jnp.clip(columns, 0, width - 1)

    def one(marks, rows, columns, bit, allowed):  # [H, W], [9], [9], [], [9]
        old = marks[rows, columns]
        new = allowed & ((old & bit) == 0)
        # Clipped points may repeat a pixel; max keeps the bit that a valid one of them sets.
        return new, marks.at[rows, columns].max(jnp.where(new, old | bit, old))

    allowed = inside & wanted[..., None]
    valid, prompted = jax.vmap(jax.vmap(one))(prompted, rows, columns, bit, allowed)
    size = jnp.array([width, height], jnp.float32)
    points = jnp.stack([columns, rows], -1).astype(jnp.float32) / size[None, None, None]
    return points, positive, valid, prompted


def prompted_mask(prompts: VisualPrompts, num_prompts: int, height: int, width: int):
    """What the points mark, uint8 [B, P, H, W]: bit 1 positive, bit 2 negative."""

    def one(points, prompt, positive, valid):  # [K, 2], [K], [K], [K]
        size = jnp.array([width, height], jnp.float32)
        pixel = jnp.round(points * size[None]).astype(jnp.int32)  # points are pixel / size
        column = jnp.clip(pixel[:, 0], 0, width - 1)
        row = jnp.clip(pixel[:, 1], 0, height - 1)
        blank = jnp.zeros((num_prompts, height, width), jnp.uint8)
        place = blank.at[prompt, row, column]
        wanted = place.max(jnp.where(valid & positive, POSITIVE, np.uint8(0)))
        unwanted = place.max(jnp.where(valid & ~positive, NEGATIVE, np.uint8(0)))
        return wanted | unwanted

    return jax.vmap(one)(prompts.points, prompts.prompt, prompts.positive, prompts.valid)


def reserve(prompts: VisualPrompts, num_clicks: int, num_prompts: int) -> VisualPrompts:
    """The prompts with room for num_clicks further clicks on each of num_prompts prompts."""
    rows = num_clicks * num_prompts * POINTS_PER_CLICK

    def pad(array):
        return jnp.pad(array, [(0, 0), (0, rows)] + [(0, 0)] * (array.ndim - 2))

    return jax.tree.map(pad, prompts)


def as_prompts(points, positive, valid) -> VisualPrompts:
    """One click per prompt as drawn points: rows 9 p ... 9 p + 8 belong to prompt p.

    points [B, P, 9, 2], positive [B, P] and valid [B, P, 9] are those of `next_clicks`.
    """
    batch, num_prompts, _ = valid.shape
    owner = jnp.arange(num_prompts, dtype=jnp.int32)[None, :, None]
    return VisualPrompts(
        points=points.reshape(batch, -1, 2),
        prompt=jnp.broadcast_to(owner, valid.shape).reshape(batch, -1),
        positive=jnp.broadcast_to(positive[..., None], valid.shape).reshape(batch, -1),
        valid=valid.reshape(batch, -1),
    )


def append_points(prompts: VisualPrompts, points, positive, valid, offset) -> VisualPrompts:
    """The prompts with one click per prompt written to rows offset ... offset + 9 P - 1.

    The click is that of `next_clicks`; offset may be traced. The rows must have been reserved
    (`reserve`): a write beyond the end would move back over earlier rows.
    """
    return jax.tree.map(
        lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, offset, axis=1),
        prompts,
        as_prompts(points, positive, valid),
    )
