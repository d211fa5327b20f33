"""Whole-image answers for any vocabulary, from the object queries of one image. NumPy only.

The rules are those of `postprocess`, which works on whole batches of one size on the device; here one
mask is enlarged at a time, so neither the size of the image nor the vocabulary compiles anything
and memory stays that of a few maps.
"""

from __future__ import annotations

import cv2
import numpy as np

from seem_jax import image as images
from seem_jax.data.transforms import Placement
from seem_jax.postprocess import PanopticSlots, Segment, panoptic_segments

TOP = 100  # best (slot, class) pairs that become instances, as officially


def enlarge(logits: np.ndarray, placement: Placement) -> np.ndarray:
    """float32 [H, W], one map [h, w] of the padded model image at the original size, without padding."""
    side = placement.side
    full = cv2.resize(logits, (side, side), interpolation=cv2.INTER_LINEAR)
    height, width = placement.resized
    return images.resize(np.ascontiguousarray(full[:height, :width]), placement.original)


def softmax(logits: np.ndarray) -> np.ndarray:
    """float32 [..., C]."""
    raised = np.exp(logits - logits.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """float32, without overflow."""
    return 0.5 * (np.tanh(0.5 * logits) + 1)


def panoptic(
    probability: np.ndarray,
    logits: np.ndarray,
    placement: Placement,
    num_things: int,
    threshold: float,
    overlap: float,
) -> tuple[np.ndarray, list[Segment]]:
    """(int32 [H, W] map of segment ids, segments) of probability [Q, C] (last: none) and logits [Q, h, w]."""
    label = probability.argmax(-1).astype(np.int32)
    score = probability.max(-1)
    kept = (label != probability.shape[-1] - 1) & (score > threshold)
    number = len(label)
    owner = np.full(placement.original, -1, np.int32)
    best = np.full(placement.original, -1.0, np.float32)
    owned = np.zeros(placement.original, bool)  # the owner's own mask holds the pixel
    full = np.zeros(number, np.int32)
    for slot in np.flatnonzero(kept):
        mask = sigmoid(enlarge(logits[slot], placement))
        weighted, own = score[slot] * mask, mask >= 0.5
        wins = weighted > best
        owner[wins], best[wins], owned[wins] = slot, weighted[wins], own[wins]
        full[slot] = own.sum()
    slots = PanopticSlots(
        owner=np.where(owned, owner, -1),
        label=label,
        score=score,
        kept=kept,
        won=np.bincount(owner[owner >= 0], minlength=number),
        full=full,
        written=np.bincount(owner[owned], minlength=number),
    )
    return panoptic_segments(slots, num_things, overlap)


def semantic(probability: np.ndarray, logits: np.ndarray, placement: Placement) -> np.ndarray:
    """int32 [H, W], the class of each pixel, of probability [Q, C] (last: none) and logits [Q, h, w].

    Class scores are summed at the size of the logits and enlarged one after the other.
    """
    slots = sigmoid(logits.reshape(len(logits), -1))
    scores = (probability[:, :-1].T @ slots).reshape(-1, *logits.shape[1:])  # [C - 1, h, w]
    best = np.full(placement.original, -np.inf, np.float32)
    labels = np.zeros(placement.original, np.int32)
    for number, score in enumerate(scores):
        score = enlarge(score, placement)
        wins = score > best
        labels[wins], best[wins] = number, score[wins]
    return labels


def pairs(probability: np.ndarray, num_things: int) -> tuple[np.ndarray, np.ndarray]:
    """(slot, class) int [n] each: the best pairs over slots and classes, those of stuff left out."""
    flat = probability[:, :-1].ravel()
    order = np.argsort(-flat, kind="stable")[:TOP]
    slot, label = np.divmod(order, probability.shape[-1] - 1)
    thing = label < num_things
    return slot[thing], label[thing]


def alike(masks: np.ndarray, others: np.ndarray) -> np.ndarray:
    """float32 [N, M], IoU of bool masks [N, h, w] and [M, h, w]; 0 for two empty ones."""
    one = masks.reshape(len(masks), -1).astype(np.float32)
    two = others.reshape(len(others), -1).astype(np.float32)
    both = one @ two.T
    either = one.sum(1)[:, None] + two.sum(1)[None] - both
    return both / np.maximum(either, 1)
