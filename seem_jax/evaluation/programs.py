"""The compiled programs of the evaluation: batches in, answers out, no Python loop over images."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from seem_jax import interaction, postprocess
from seem_jax.losses.text import phrase_logits
from seem_jax.models.seem import class_logits, mask_logits, remember, text_tokens
from seem_jax.types import Features, Memory, VisualPrompts

GOOD_ENOUGH = 0.9  # IoU above which all objects of a record stop its session (official)


def panoptic(model, params, features: Features, table, plan, threshold: float):
    """`postprocess.PanopticSlots` of each image, [B, ...]; object queries only."""
    outputs = model.apply({"params": params}, features, method="decode").object
    names = class_logits(outputs.class_embedding[-1], table, params["logit_scale"])
    masks = mask_logits(outputs.mask_embedding[-1], features)  # [B, Q, h, w]

    def one(image):  # one at a time: Q full-size maps of a whole batch would not fit
        names, masks, plan = image
        alone = jax.tree.map(lambda array: array[None], plan)
        full = postprocess.resize(masks[None], alone)[0]
        return postprocess.panoptic_slots(names, full, plan.inside, threshold)

    return jax.lax.map(one, (names, masks, plan))


@struct.dataclass
class Answers:
    """One mask for each of G phrases or P objects of an image, against the truth."""

    mask: jax.Array  # bool [B, G, H, W], original size
    intersection: jax.Array  # int32 [B, G], pixels
    union: jax.Array  # int32 [B, G]
    clicks: VisualPrompts | None  # what was drawn, [B, 9 G]


def answer_phrases(
    model, params, features, token_ids, token_valid, truth, clicked, plan
) -> Answers:
    """The mask of each phrase, decoded alone so that it depends on no other phrase.

    token_ids and token_valid [B, G, J]; truth bool [B, G, H, W] at original size. With clicked
    (bool [B, G, h, w], the truth at model size) each phrase comes with the official first click on
    its object; None is text alone.
    """
    variables = {"params": params}
    height, width = (4 * size for size in features.mask.shape[1:3])

    def one(phrase):  # one phrase of every image
        ids, valid, truth, object_mask = phrase  # [B, J], [B, J], [B, H, W], [B, h, w] or None
        tokens, sentence = model.apply(variables, ids, valid, method="encode_text")
        asked, alone = valid.any(-1)[:, None], jnp.full((len(ids), 1), -1, jnp.int32)
        visual, pooled, click = None, None, None
        if object_mask is not None:
            points, positive, drawn, _ = interaction.first_clicks(object_mask[:, None])
            click = interaction.as_prompts(points, positive, drawn)
            visual = model.apply(variables, features, click, 1, method="encode_prompts")
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
        mask = postprocess.resize(mask_logits(chosen, features), plan)[:, 0] > 0
        return mask, _pixels(mask & truth), _pixels(mask | truth), click

    if clicked is not None and clicked.shape[-2:] != (height, width):
        raise ValueError(f"the truth at model size is {clicked.shape[-2:]}, not {(height, width)}.")
    by_phrase = jax.tree.map(
        lambda array: jnp.swapaxes(jnp.asarray(array), 0, 1),
        (token_ids, token_valid, truth, clicked),
    )
    mask, intersection, union, clicks = jax.tree.map(
        lambda array: jnp.swapaxes(array, 0, 1), jax.lax.map(one, by_phrase)
    )
    return Answers(mask=mask, intersection=intersection, union=union, clicks=clicks)


@struct.dataclass
class Session:
    """Clicks on P objects of each image until all are good or the clicks are used up."""

    iou: jax.Array  # float32 [B, P, clicks]; repeats the last value after a stop
    first: jax.Array  # bool [B, P, H, W], the answer to the first click
    last: jax.Array  # bool [B, P, H, W]
    prompts: VisualPrompts  # all clicks; those of the first come first
    num_clicks: jax.Array  # int32 [B], decoded rounds


def click_session(
    model, params, features, model_map, original_map, wanted, plan, max_clicks: int
) -> Session:
    """The official simulated user (seem_model_v1.py, evaluate_interactive), all images at once.

    model_map int32 [B, h, w] and original_map int32 [B, H, W] are the segments at model and original
    size; wanted int32 [B, P] names those to click, 0 for none. The objects of an image are prompts
    of one decoding, as officially; an image stops when all of them have IoU above 0.9, and its IoUs
    then stay.
    """
    variables = {"params": params}
    batch, num = wanted.shape
    exists = wanted > 0
    truth = (model_map[:, None] == wanted[..., None, None]) & exists[..., None, None]
    final = (original_map[:, None] == wanted[..., None, None]) & exists[..., None, None]
    points, positive, drawn, prompted = interaction.first_clicks(truth)
    first = interaction.as_prompts(points, positive, drawn)
    prompts = interaction.reserve(first, max_clicks - 1, num)
    width = features.mask.shape[-1]
    memory = Memory(
        mask_embedding=jnp.zeros((batch, num, width), features.mask.dtype),
        valid=jnp.zeros((batch, num), bool),
    )

    def click(carry):
        number, prompts, prompted, memory, session, stopped = carry
        visual = model.apply(variables, features, prompts, num, method="encode_prompts")
        outputs = model.apply(
            variables, features, None, visual, memory, objects=False, method="decode"
        )
        memory = remember(outputs, visual)
        logits = mask_logits(memory.mask_embedding, features)  # [B, P, h, w]
        mask = postprocess.resize(logits, plan) > 0
        union = _pixels(mask | final).astype(jnp.float32)
        iou = (
            _pixels(mask & final).astype(jnp.float32) / union
        )  # an empty union gives NaN, officially
        from_here = jnp.arange(max_clicks, dtype=jnp.int32)[None, None] >= number
        going = ~stopped
        session = Session(
            iou=jnp.where(from_here & going[:, None, None], iou[..., None], session.iou),
            first=jnp.where(number == 0, mask, session.first),
            last=jnp.where(going[:, None, None, None], mask, session.last),
            prompts=session.prompts,
            num_clicks=session.num_clicks + going.astype(jnp.int32),
        )
        stopped = stopped | ((iou > GOOD_ENOUGH) | ~exists).all(-1)
        points, positive, drawn, prompted = interaction.next_clicks(logits, truth, prompted)
        drawn = drawn & ~stopped[:, None, None]
        row = (number + 1) * (num * interaction.POINTS_PER_CLICK)
        more = interaction.append_points(prompts, points, positive, drawn, row)
        # After the last answer there is no row left to write to.
        prompts = jax.tree.map(
            lambda new, old: jnp.where(number + 1 < max_clicks, new, old), more, prompts
        )
        return number + 1, prompts, prompted, memory, session, stopped

    blank = jnp.zeros(final.shape, bool)
    session = Session(
        iou=jnp.zeros((batch, num, max_clicks), jnp.float32),
        first=blank,
        last=blank,
        prompts=first,
        num_clicks=jnp.zeros(batch, jnp.int32),
    )
    start = (jnp.int32(0), prompts, prompted, memory, session, ~exists.any(-1))
    _, prompts, _, _, session, _ = jax.lax.while_loop(
        lambda carry: (carry[0] < max_clicks) & ~carry[-1].all(), click, start
    )
    return session.replace(prompts=prompts)


def _pixels(mask):
    return mask.sum((-2, -1), dtype=jnp.int32)
