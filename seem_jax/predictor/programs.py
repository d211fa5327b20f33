"""The compiled programs of the predictor. Shapes depend on the configuration alone, never on a request.

    encode    an image -> features                       once per image
    objects   features -> what the object queries say     once per image, when asked for
    sentence  token ids -> a phrase in the text space     once per phrase
    read      features, points -> tokens                  once per reference image
    answer    features, one row per question -> masks     every request

A row holds every kind of prompt, padded: so each mix of prompts is the same program, save that rows
without a phrase (or without a reference) leave out what only a phrase (or a reference) needs, and
that few points are padded less than many: a click costs less than a painted region.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from seem_jax.losses.text import phrase_logits
from seem_jax.losses.visual import prompt_logits
from seem_jax.models.decoder.rules import TABLES
from seem_jax.models.seem import SEEM, mask_logits, text_tokens
from seem_jax.types import Array, Features, Memory, VisualPrompts, VisualTokens

MAX_POINTS = 512  # drawn on one image for one question (official: 512)
POINTS = (64, MAX_POINTS)  # a question's points are padded to the smallest that holds them
MAX_REFERENCE_POINTS = 512  # of one reference
MAX_ANSWERS = 16  # different masks for one question
SAME_MASK = 0.7  # IoU from which two slots say the same
MASK_STRIDE = 4  # pixels of the model image to one of the mask logits


@struct.dataclass
class Phrase:
    """One phrase, as `sentence` gives it."""

    tokens: Array  # float [J, V]
    valid: Array  # bool [J]
    sentence: Array  # float [V]


@struct.dataclass
class ReferenceTokens:
    """What was drawn on other images, as their features say it."""

    levels: tuple[Array, ...]  # float [R, D] per level, sign added
    valid: Array  # bool [R]
    pooled: Array  # float32 [D], mean mask feature of the positive points
    count: Array  # float32 [], number of positive points


@struct.dataclass
class Row:
    """One question about one image. Stacked to [n, ...] for `answer`."""

    points: Array  # float32 [K, 2] in [0, 1), K one of POINTS
    positive: Array  # bool [K]
    valid: Array  # bool [K]
    fitted: Array  # int32 [2], (height, width) of the image without padding, model pixels
    memory: Array  # float32 [D], mask embedding of an earlier answer
    remembers: Array  # bool [], whether there is one
    phrase: Phrase | None
    reference: ReferenceTokens | None


@struct.dataclass
class Answers:
    """Different masks for each of n questions, best first."""

    logits: Array  # float32 [n, A, h, w]
    embedding: Array  # float32 [n, A, D]
    score: Array  # float32 [n, A], share of the slots that give this mask; sums to at most 1
    quality: Array  # float32 [n, A], mean mask probability inside the mask
    valid: Array  # bool [n, A]


@struct.dataclass
class ObjectAnswers:
    """What the object queries of n images say, whatever the vocabulary; of one, without n."""

    logits: Array  # float32 [n, Q, h, w]
    embedding: Array  # float32 [n, Q, D]
    names: Array  # float32 [n, Q, V], in the text space


class Programs:
    """The programs of one model, jitted; compiled at their first use and kept."""

    def __init__(self, model: SEEM):
        self.model = model

        def apply(method: str, params, *arguments, **options):
            return model.apply({"params": params}, *arguments, method=method, **options)

        self.encode = jax.jit(functools.partial(apply, "encode_image"))
        self.sentence = jax.jit(functools.partial(apply, "encode_text"))
        self.objects = jax.jit(functools.partial(_objects, apply))
        self.read = jax.jit(functools.partial(_read, apply))
        has_memory = "memory" in TABLES[model.config.decoder.rules]
        self.answer = jax.jit(functools.partial(_answer, apply, has_memory))


def _objects(apply: Any, params, features: Features) -> ObjectAnswers:
    """The object queries of n images."""
    slots = apply("decode", params, features).object
    embedding = slots.mask_embedding[-1]
    return ObjectAnswers(
        logits=mask_logits(embedding, features),
        embedding=embedding.astype(jnp.float32),
        names=slots.class_embedding[-1].astype(jnp.float32),
    )


def _read(apply: Any, params, features: Features, drawn: VisualPrompts, located) -> VisualTokens:
    """Tokens of what was drawn on one image, [1, K]; located, bool [1, 1]: whether they say where."""
    return apply("encode_prompts", params, features, drawn, 1, located)


def _answer(
    apply: Any, has_memory: bool, params, features: tuple[Features, ...], rows: Row
) -> Answers:
    """The masks that answer n rows, row i about the image of features[i].

    Rules without memory slots (has_memory False) still keep the last round's object by its overlap.
    """
    features = jax.tree.map(lambda *parts: jnp.concatenate(parts), *features)
    nobody = jnp.zeros(rows.valid.shape, jnp.int32)  # all points belong to prompt 0
    drawn = VisualPrompts(rows.points, nobody, rows.positive, rows.valid)
    visual = apply("encode_prompts", params, features, drawn, 1)
    wanted = (rows.positive & rows.valid).sum(-1).astype(jnp.float32)  # [n]
    if rows.reference is not None:
        visual, wanted = _with_reference(visual, wanted, rows.reference)
    memory = None
    if has_memory:
        memory = Memory(rows.memory[:, None], rows.remembers[:, None])
    text, phrase = None, rows.phrase
    if phrase is not None:
        belongs = jnp.where(visual.prompt_valid, 0, -1)  # [n, 1]
        there = jnp.ones((rows.points.shape[0], 1), bool)
        text = text_tokens(phrase.tokens[:, None], phrase.valid[:, None], there, belongs)
    outputs = apply("decode", params, features, text, visual, memory, objects=False)
    slots = outputs.visual if phrase is None else outputs.text
    embedding = slots.mask_embedding[-1]  # [n, N, D]
    logits = mask_logits(embedding, features)  # [n, N, h, w]

    inside = _inside(rows.fitted, *logits.shape[-2:])[:, None]
    masks = _flat((logits > 0) & inside)
    remembered = mask_logits(rows.memory[:, None].astype(embedding.dtype), features)
    agreement = _iou(masks, _flat((remembered > 0) & inside))[..., 0]  # [n, N]
    scale = params["logit_scale"]
    found = (wanted > 0)[:, None]  # [n, 1]
    if phrase is None:
        fit = jnp.where(found, prompt_logits(visual.pooled, embedding)[:, 0], 0.0)
        by_memory = rows.remembers[:, None] & ~found
    else:
        own = jnp.where(found, 0, -1)
        fit = phrase_logits(
            slots.class_embedding[-1],
            embedding,
            phrase.sentence[:, None],
            own,
            visual.pooled,
            scale,
        )[..., 0]
        by_memory = rows.remembers[:, None]
    # Only drawn tokens steer the slots by themselves; otherwise the object of the last round is
    # kept by its overlap, on the scale of a cosine similarity.
    fit = fit + jnp.where(by_memory, jnp.exp(scale) * agreement, 0.0)

    pixels = masks.sum(-1)
    inner = (jax.nn.sigmoid(_flat(logits)) * masks).sum(-1)
    quality = jnp.where(pixels > 0, inner / jnp.maximum(pixels, 1.0), 0.0)
    chosen, score, valid = jax.vmap(_distinct)(jax.nn.softmax(fit, axis=-1), _iou(masks, masks))
    pick = jax.vmap(lambda values, index: values[index])
    return Answers(
        logits=pick(logits, chosen),
        embedding=pick(embedding, chosen).astype(jnp.float32),
        score=jnp.clip(score, 0.0, 1.0),
        quality=jnp.clip(pick(quality, chosen), 0.0, 1.0),
        valid=valid,
    )


def _with_reference(visual: VisualTokens, wanted, reference: ReferenceTokens):
    """The tokens of both images as one prompt, and the number of its positive points, [n]."""
    levels = tuple(
        jnp.concatenate([own, other.astype(own.dtype)], axis=1)
        for own, other in zip(visual.levels, reference.levels, strict=True)
    )
    valid = jnp.concatenate([visual.valid, reference.valid], axis=1)
    total = wanted + reference.count
    mean = (
        visual.pooled[:, 0] * wanted[:, None] + reference.pooled * reference.count[:, None]
    ) / jnp.maximum(total, 1.0)[:, None]
    tokens = VisualTokens(
        levels=levels,
        prompt=jnp.where(valid, 0, -1),
        valid=valid,
        pooled=jnp.where((total > 0)[:, None, None], mean[:, None], visual.pooled),
        prompt_valid=valid.any(-1)[:, None],
    )
    return tokens, total


def _inside(fitted, height: int, width: int):
    """bool [n, h, w], the pixels of the mask logits whose centre is no padding."""
    row = (jnp.arange(height, dtype=jnp.int32) * MASK_STRIDE + MASK_STRIDE // 2)[None]
    column = (jnp.arange(width, dtype=jnp.int32) * MASK_STRIDE + MASK_STRIDE // 2)[None]
    # A side of one or two pixels holds no centre; its first pixel counts.
    rows = (row < fitted[:, :1]) | (row == MASK_STRIDE // 2)
    columns = (column < fitted[:, 1:]) | (column == MASK_STRIDE // 2)
    return rows[:, :, None] & columns[:, None, :]


def _flat(maps):
    """float32 [n, N, h w]."""
    return maps.astype(jnp.float32).reshape(*maps.shape[:2], -1)


def _iou(one, other):
    """float32 [n, N, M], of masks as 0 and 1, [n, N, S] and [n, M, S]; 0 for two empty ones."""
    both = jnp.einsum("nis,njs->nij", one, other)
    either = one.sum(-1)[:, :, None] + other.sum(-1)[:, None, :] - both
    return both / jnp.maximum(either, 1.0)


def _distinct(share, iou):
    """Slots with different masks, those with the largest share first: (slot, share, valid), [A].

    share is [N], iou [N, N]. Slots that say the same are one answer: the slot with the largest
    share stands for them and has the sum of their shares.
    """
    num_slots = share.shape[0]

    def step(free, _):
        best = jnp.argmax(jnp.where(free, share, -1.0)).astype(jnp.int32)
        alike = (iou[best] >= SAME_MASK) | (jnp.arange(num_slots, dtype=jnp.int32) == best)
        alike = alike & free
        return free & ~alike, (best, jnp.where(alike, share, 0.0).sum(), free.any())

    count = min(MAX_ANSWERS, num_slots)
    _, (slot, total, valid) = jax.lax.scan(step, jnp.ones(num_slots, bool), length=count)
    order = jnp.argsort(-jnp.where(valid, total, -1.0))
    return slot[order], total[order], valid[order]
