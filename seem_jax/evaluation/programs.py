"""The compiled programs of the evaluation: batches in, answers out, no Python loop over images."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from seem_jax import interaction, postprocess
from seem_jax.kernels.bit_planes import count
from seem_jax.losses.text import phrase_logits
from seem_jax.models.seem import mask_logits, remember, text_tokens
from seem_jax.types import Features, VisualPrompts


@struct.dataclass
class Answers:
    """One mask for each of G phrases or P objects of an image, against the truth."""

    mask: jax.Array  # bool [B, G, H, W], original size
    intersection: jax.Array  # int32 [B, G], pixels
    union: jax.Array  # int32 [B, G]
    clicks: VisualPrompts | None  # what was drawn, [B, 9 G]


def answer_text(model, params, features, token_ids, token_valid, truth, clicked, plan) -> Answers:
    """The mask of each phrase from its text alone; arguments as of `answer_text_and_click`."""
    del clicked

    def one(phrase):
        ids, valid, truth = phrase
        mask = _by_text(model, params, features, ids, valid, None, plan)
        return _scored(mask, truth, None)

    return _each_phrase(one, token_ids, token_valid, truth)


def answer_text_and_click(
    model, params, features, token_ids, token_valid, truth, clicked, plan
) -> Answers:
    """The mask of each phrase, decoded alone so that it depends on no other phrase.

    token_ids and token_valid [B, G, J]; truth bool [B, G, H, W] at original size, clicked
    bool [B, G, h, w] the same at model size: the official first click on it comes with the phrase.
    """
    _check_model_size(features, clicked)

    def one(phrase):
        ids, valid, truth, object_mask = phrase
        click, visual = _one_click(model, params, features, object_mask)
        mask = _by_text(model, params, features, ids, valid, visual, plan)
        return _scored(mask, truth, click)

    return _each_phrase(one, token_ids, token_valid, truth, clicked)


def answer_click(model, params, features, token_ids, token_valid, truth, clicked, plan) -> Answers:
    """The mask of each phrase's object from the click alone; arguments as above."""
    del token_ids, token_valid
    _check_model_size(features, clicked)

    def one(phrase):
        truth, object_mask = phrase
        click, visual = _one_click(model, params, features, object_mask)
        outputs = model.apply(
            {"params": params}, features, None, visual, objects=False, method="decode"
        )
        chosen = remember(outputs, visual).mask_embedding  # [B, 1, D]
        mask = postprocess.resize(mask_logits(chosen, features), plan)[:, 0] > 0
        return _scored(mask, truth, click)

    return _each_phrase(one, truth, clicked)


def _each_phrase(one, *arrays) -> Answers:
    """`one` on phrase g of every image, for each g of arrays [B, G, ...]."""
    by_phrase = tuple(jnp.swapaxes(jnp.asarray(array), 0, 1) for array in arrays)
    return jax.tree.map(lambda array: jnp.swapaxes(array, 0, 1), jax.lax.map(one, by_phrase))


def _one_click(model, params, features, object_mask):
    """The official first click on bool [B, h, w], and its tokens."""
    points, positive, drawn, _ = interaction.first_clicks(object_mask[:, None])
    click = interaction.as_prompts(points, positive, drawn)
    visual = model.apply({"params": params}, features, click, 1, method="encode_prompts")
    return click, visual


def _by_text(model, params, features, ids, valid, visual, plan):
    """bool [B, H, W], the mask of one phrase an image, with or without drawn tokens."""
    variables = {"params": params}
    tokens, sentence = model.apply(variables, ids, valid, method="encode_text")
    asked, alone = valid.any(-1)[:, None], jnp.full((len(ids), 1), -1, jnp.int32)
    pooled = None
    if visual is not None:
        pooled, alone = visual.pooled, jnp.where(visual.prompt_valid, 0, -1)
    text = text_tokens(tokens[:, None], valid[:, None], asked, alone)
    outputs = model.apply(variables, features, text, visual, objects=False, method="decode")
    slots = outputs.text
    fit = phrase_logits(
        slots.class_embedding[-1],
        slots.mask_embedding[-1],
        sentence[:, None],
        alone,
        pooled,
        params["logit_scale"],
    )
    best = jnp.argmax(fit, axis=1)[..., None]  # [B, 1, 1], the slot of the phrase
    chosen = jnp.take_along_axis(slots.mask_embedding[-1], best, axis=1)
    return postprocess.resize(mask_logits(chosen, features), plan)[:, 0] > 0


def _scored(mask, truth, click) -> Answers:
    return Answers(
        mask=mask, intersection=count(mask & truth), union=count(mask | truth), clicks=click
    )


def _check_model_size(features: Features, clicked) -> None:
    size = tuple(4 * n for n in features.mask.shape[1:3])
    if clicked.shape[-2:] != size:
        raise ValueError(f"the truth at model size is {clicked.shape[-2:]}, not {size}.")


def filled_boxes(masks):
    """bool [..., H, W]: the box around each mask, filled; an empty mask stays empty."""
    rows, columns = masks.any(-1, keepdims=True), masks.any(-2, keepdims=True)

    def span(line, axis):
        # Between the first and the last one: some at or before, and some at or after.
        line = line.astype(jnp.int32)
        before = jnp.cumsum(line, axis=axis) > 0
        return before & (jnp.flip(jnp.cumsum(jnp.flip(line, axis), axis=axis), axis) > 0)

    axis = masks.ndim - 2, masks.ndim - 1
    return span(rows, axis[0]) & span(columns, axis[1])
