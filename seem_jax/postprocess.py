"""Logits of slots -> panoptic map, instances, semantic scores, at the size of the original image.

Decoder masks are enlarged to the padded model size (bilinear), cut to the image and resized to the
original (antialiased bicubic; plain bilinear for interactive masks). All steps are linear and act on
rows and columns alone, so the chain is two small matrices made on the host: one compiled program
serves every image size. Source of the rules: seem_model_v1.py, *_inference.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from seem_jax.kernels.resize import bicubic_matrix, bilinear_matrix

# Originals are padded to a multiple of this many pixels, large ones to one of four times as many: so
# few sizes compile.
BUCKET, LARGE = 32, 256


@struct.dataclass
class ResizePlan:
    """How the masks of a batch reach their original sizes; zero beyond them."""

    rows: np.ndarray  # float32 [B, H, h]
    columns: np.ndarray  # float32 [B, W, w]
    inside: np.ndarray  # bool [B, H, W], the pixels of the original image


def chain_matrix(
    feature: int, padded: int, cropped: int, original: int, *, antialias: bool
) -> np.ndarray:
    """float32 [original, feature]: feature -> padded -> cut to cropped -> original, along one axis.

    With antialias the last step is the antialiased bicubic of the panoptic and referring
    evaluation, without it the plain bilinear of the interactive one.
    """
    if not 0 < cropped <= padded:
        raise ValueError(f"an image of {cropped} pixels does not lie in {padded} padded ones.")
    enlarged = bilinear_matrix(padded, feature)[:cropped]
    last = bicubic_matrix if antialias else bilinear_matrix
    return last(original, cropped) @ enlarged


def plan_resize(
    image_sizes: np.ndarray,
    originals: list[tuple[int, int]],
    feature_size: tuple[int, int],
    padded_size: tuple[int, int],
    *,
    antialias: bool = True,
) -> ResizePlan:
    """The plan of a batch. image_sizes int [B, 2] (height, width) of the unpadded part at model size,
    originals (height, width) of the images as stored; images beyond len(originals) are padding."""
    sizes = np.array(originals)
    height, width = (_bucket(int(size)) for size in sizes.max(0))
    batch = len(image_sizes)
    rows = np.zeros((batch, height, feature_size[0]), np.float32)
    columns = np.zeros((batch, width, feature_size[1]), np.float32)
    inside = np.zeros((batch, height, width), bool)
    for b, (h, w) in enumerate(originals):
        for out, size, axis in ((rows, h, 0), (columns, w, 1)):
            out[b, :size] = chain_matrix(
                feature_size[axis],
                padded_size[axis],
                int(image_sizes[b][axis]),
                size,
                antialias=antialias,
            )
        inside[b, :h, :w] = True
    return ResizePlan(rows=rows, columns=columns, inside=inside)


def _bucket(size: int) -> int:
    step = BUCKET if size <= LARGE else 4 * BUCKET
    return -(-size // step) * step


def resize(logits: jax.Array, plan: ResizePlan) -> jax.Array:
    """float32 [B, N, H, W], mask logits [B, N, h, w] at the original sizes; zero beyond them."""
    high = jax.lax.Precision.HIGHEST
    tall = jnp.einsum("byh,bnhw->bnyw", plan.rows, logits.astype(jnp.float32), precision=high)
    return jnp.einsum("bxw,bnyw->bnyx", plan.columns, tall, precision=high)


@struct.dataclass
class PanopticSlots:
    """Which slot owns which pixel, and how much of its own mask each slot won; one image."""

    owner: jax.Array  # int32 [H, W], slot of the pixel, -1 for void
    label: jax.Array  # int32 [Q], best class
    score: jax.Array  # float32 [Q], its probability
    kept: jax.Array  # bool [Q], a class above the threshold
    won: jax.Array  # int32 [Q], pixels where the slot is the best one
    full: jax.Array  # int32 [Q], pixels of the slot's own mask
    written: jax.Array  # int32 [Q], pixels of both


def panoptic_slots(class_logits, mask_logits, inside, threshold: float) -> PanopticSlots:
    """The pixel contest of one image: class_logits [Q, C] (last: no object), mask_logits [Q, H, W].

    Each pixel inside (bool [H, W]) goes to the slot with the largest class score times mask
    probability; it is written only where that probability is at least one half.
    """
    probability = jax.nn.softmax(class_logits.astype(jnp.float32), axis=-1)
    label = jnp.argmax(probability, axis=-1).astype(jnp.int32)
    score = probability.max(-1)
    kept = (label != class_logits.shape[-1] - 1) & (score > threshold)
    mask = jax.nn.sigmoid(mask_logits.astype(jnp.float32))
    weighted = jnp.where(kept[:, None, None], score[:, None, None] * mask, -1.0)
    best = jnp.where(kept.any() & inside, jnp.argmax(weighted, axis=0).astype(jnp.int32), -1)
    slot = jnp.arange(len(label), dtype=jnp.int32)
    wins = best[None] == slot[:, None, None]  # [Q, H, W]
    own = (mask >= 0.5) & inside[None]
    count = lambda pixels: pixels.sum((-2, -1), dtype=jnp.int32)  # noqa: E731
    return PanopticSlots(
        owner=jnp.where((wins & own).any(0), best, -1),
        label=label,
        score=score,
        kept=kept,
        won=count(wins),
        full=count(own),
        written=count(wins & own),
    )


@dataclasses.dataclass(frozen=True)
class Segment:
    """A segment of a panoptic map."""

    id: int  # its value in the map, from 1
    category: int  # contiguous class
    is_thing: bool
    score: float


def panoptic_segments(
    slots: PanopticSlots, num_things: int, overlap: float
) -> tuple[np.ndarray, list[Segment]]:
    """(int32 [H, W] map of segment ids with 0 for void, segments in id order) of one image.

    slots holds NumPy arrays. A slot is dropped when it won less than `overlap` of its own mask, or
    nothing is left of it; the stuff slots of a class share one id.
    """
    ids = np.zeros(len(slots.label) + 1, np.int32)  # the last entry serves owner -1
    segments: list[Segment] = []
    stuff: dict[int, int] = {}
    for slot in np.flatnonzero(slots.kept):
        won, full, written = (int(a[slot]) for a in (slots.won, slots.full, slots.written))
        if min(won, full, written) == 0 or won / full < overlap:
            continue
        category = int(slots.label[slot])
        if category in stuff:
            ids[slot] = stuff[category]
            continue
        is_thing = category < num_things
        number = len(segments) + 1
        if not is_thing:
            stuff[category] = number
        ids[slot] = number
        segments.append(Segment(number, category, is_thing, float(slots.score[slot])))
    return ids[slots.owner], segments


def semantic_scores(class_logits, mask_logits):
    """float32 [C - 1, H, W]: sum over slots of class probability times mask probability."""
    probability = jax.nn.softmax(class_logits.astype(jnp.float32), axis=-1)[:, :-1]
    return jnp.einsum("qc,qhw->chw", probability, jax.nn.sigmoid(mask_logits.astype(jnp.float32)))


@struct.dataclass
class Instances:
    """The best (slot, class) pairs of one image, best class score first."""

    score: jax.Array  # float32 [top], class score times mean mask probability inside the mask
    label: jax.Array  # int32 [top]
    mask: jax.Array  # bool [top, H, W]
    valid: jax.Array  # bool [top]; False for stuff classes, which take part in the top only


def instances(class_logits, mask_logits, num_things: int, top: int = 100) -> Instances:
    """The `top` best pairs over slots and classes without no-object (official instance_inference)."""
    probability = jax.nn.softmax(class_logits.astype(jnp.float32), axis=-1)[:, :-1]
    num_classes = probability.shape[-1]
    score, pair = jax.lax.top_k(probability.reshape(-1), min(top, probability.size))
    label = (pair % num_classes).astype(jnp.int32)
    logits = mask_logits[pair // num_classes].astype(jnp.float32)  # [top, H, W]
    mask = logits > 0
    total = jnp.where(mask, jax.nn.sigmoid(logits), 0.0).sum((-2, -1))
    mean = total / (mask.sum((-2, -1), dtype=jnp.int32).astype(jnp.float32) + 1e-6)
    return Instances(score=score * mean, label=label, mask=mask, valid=label < num_things)
