"""The training loss: object, text and visual slots after every layer, and a dense auxiliary loss.

Layers run from the prediction before the first decoder layer (0) to the final one (-1); the official
names count backwards from the final one: ``loss_mask_ce_<L - 1 - layer>``.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from seem_jax.config import LossConfig
from seem_jax.kernels.mask_planes import dense as dense_masks
from seem_jax.kernels.mask_planes import sample_masks
from seem_jax.kernels.point_sample import sample
from seem_jax.losses import dense, masks, matcher, object, text, visual
from seem_jax.types import Array, Batch, Features, MaskRefs, Outputs, SlotOutputs, VisualTokens


@struct.dataclass
class PointDraws:
    """Points to use instead of random ones, float32 in [0, 1]; None draws them.

    L may be 1 in the `match_*` fields: the same points for all layers, as when they are drawn here.
    With K points, candidates are ``int(oversample * K)`` and rest ``K - int(importance * K)``.
    """

    match_object: Array | None = None  # [L, B, K, 2], shared by the masks of an image
    match_text: Array | None = None
    match_visual: Array | None = None
    candidates_object: Array | None = None  # [L, B, M, candidates, 2]
    candidates_text: Array | None = None  # [L, B, G, candidates, 2]
    candidates_visual: Array | None = None  # [L, B, P, candidates, 2]
    rest_object: Array | None = None  # [L, B, M, rest, 2]
    rest_text: Array | None = None
    rest_visual: Array | None = None


@struct.dataclass
class Terms:
    """The unweighted losses of each layer, and the choices behind them."""

    values: dict[str, Array]  # "object/class" and so on -> float32 [L]; "dense/class" -> [1]
    matched: dict[str, Array]  # "object", "text", "visual" -> int32 [L, B, targets], slot or -1
    points: dict[str, Array]  # float32 [L, B, targets, K, 2], where the mask losses were read


def total_loss(
    outputs: Outputs,
    visual_tokens: VisualTokens | None,
    features: Features,
    batch: Batch,
    table: Array,
    phrase_embedding: Array,
    logit_scale: Array,
    config: LossConfig,
    key: Array,
    draws: PointDraws | None = None,
    mesh: Mesh | None = None,
    num_things: int = 0,
) -> tuple[Array, dict[str, Array]]:
    """(weighted loss, metrics): the sum over terms and layers, and each term's unweighted layer mean.

    table is float32 [C, V], normalised, the last row "no object"; phrase_embedding [B, G, V]. Groups
    of slots that `outputs` lacks have no terms. All means are over the whole batch, however it is
    split over the mesh. num_things is read by the dense loss only.
    """
    result = terms(
        outputs,
        visual_tokens,
        features,
        batch,
        table,
        phrase_embedding,
        logit_scale,
        config,
        key,
        draws,
        mesh,
        num_things,
    )
    loss = jnp.float32(0)
    for name, value in result.values.items():
        loss += getattr(config, name.replace("/", "_")) * value.sum()
    metrics = {name: value.mean() for name, value in result.values.items()}
    counts = {
        "num_objects": batch.objects.masks.valid,
        "num_phrases": batch.phrases.masks.valid,
        "num_prompts": batch.prompt_masks.valid,
    }
    metrics |= {name: valid.sum(dtype=jnp.float32) for name, valid in counts.items()}
    return loss, metrics


def terms(
    outputs: Outputs,
    visual_tokens: VisualTokens | None,
    features: Features,
    batch: Batch,
    table: Array,
    phrase_embedding: Array,
    logit_scale: Array,
    config: LossConfig,
    key: Array,
    draws: PointDraws | None = None,
    mesh: Mesh | None = None,
    num_things: int = 0,
) -> Terms:
    """Every term before weighting, per layer (the final one only, without deep supervision).

    Arguments as in `total_loss`. The softmax of a visual prompt runs over the slots of the prompts in
    ``visual_tokens.prompt_valid``; officially it also holds those that pad the batch.
    """
    batch = jax.tree.map(jnp.asarray, batch)
    draws = PointDraws() if draws is None else draws
    if not config.deep_supervision:
        outputs = jax.tree.map(lambda x: x[-1:], outputs.replace(visual_choice=None))
    slots = {"object": outputs.object, "text": outputs.text, "visual": outputs.visual}
    slots = {name: group for name, group in slots.items() if group is not None}
    pooled = None if visual_tokens is None else visual_tokens.pooled
    refs = {
        "object": batch.objects.masks,
        "text": batch.phrases.masks,
        "visual": _with_truth(batch.planes, batch.prompt_masks),
    }

    logits = {}  # what each slot says of names: classes, phrases or prompts
    if "object" in slots:
        logits["object"] = object.class_logits(slots["object"].class_embedding, table, logit_scale)
    if "text" in slots:
        logits["text"] = jax.vmap(text.phrase_logits, in_axes=(0, 0, None, None, None, None))(
            slots["text"].class_embedding,
            slots["text"].mask_embedding,
            phrase_embedding,
            batch.phrases.prompt,
            pooled,
            logit_scale,
        )
    if "visual" in slots:
        logits["visual"] = jax.vmap(visual.prompt_logits, in_axes=(0, None))(
            slots["visual"].mask_embedding, pooled
        )

    for_match, for_points = jax.random.split(key)
    matched = _match(for_match, slots, logits, features, batch, refs, config, draws, mesh)
    class_loss = {
        "object": lambda said, slot: object.class_loss(
            said, batch.objects.label, slot, config.no_object
        ),
        "text": lambda said, slot: text.class_loss(said, slot, batch.phrases, config),
        "visual": lambda said, slot: visual.class_loss(said, slot, visual_tokens.prompt_valid),
    }
    number = {
        "object": refs["object"].valid.sum(dtype=jnp.float32),
        "text": (matched["text"][0] >= 0).sum(dtype=jnp.float32) if "text" in slots else None,
        "visual": refs["visual"].valid.sum(dtype=jnp.float32),
    }
    values, points = {}, {}
    for index, name in enumerate(slots):
        values[f"{name}/class"] = jax.vmap(class_loss[name])(logits[name], matched[name])
        bce, dice, points[name] = _mask_losses(
            jax.random.fold_in(for_points, index),
            slots[name],
            matched[name],
            features.mask,
            batch.planes,
            refs[name],
            config,
            getattr(draws, f"candidates_{name}"),
            getattr(draws, f"rest_{name}"),
        )
        values[f"{name}/bce"] = bce / jnp.maximum(number[name], 1.0)
        values[f"{name}/dice"] = dice / jnp.maximum(number[name], 1.0)
    if config.dense_class > 0:
        values["dense/class"] = dense.class_loss(
            features.mask,
            batch.planes,
            batch.objects,
            table,
            logit_scale,
            num_things,
            config.dense_thing_weight,
        )[None]
    return Terms(values=values, matched=matched, points=points)


def _with_truth(planes: Array, refs: MaskRefs) -> MaskRefs:
    """The prompts that have something to find: valid only where the mask has a pixel."""
    return refs.replace(valid=dense_masks(planes, refs).any((2, 3)))


def _match(
    key: Array,
    slots: dict[str, SlotOutputs],
    logits: dict[str, Array],
    features: Features,
    batch: Batch,
    refs: dict[str, MaskRefs],
    config: LossConfig,
    draws: PointDraws,
    mesh: Mesh | None,
) -> dict[str, Array]:
    """int32 [L, B, targets] for each group: the slot that answers each target, or -1.

    All masks are compared at points shared by the slots and targets of an image. Reading is linear,
    so the features are read there once, not the mask logits of every slot.
    """
    slots, logits, features = jax.lax.stop_gradient((slots, logits, features))

    def read(points):  # [L or 1, B, K, D]
        return jax.lax.map(lambda at: sample(features.mask, at), points)

    shared = jax.random.uniform(key, (1, len(batch.planes), config.num_points, 2))
    shared_features = read(shared)
    layer_costs = {
        "object": lambda said, drawn, truth: (
            config.cost_class * object.class_cost(said, batch.objects.label)
            + matcher.mask_cost(drawn, truth, config)
        ),
        "text": lambda said, drawn, truth: (
            config.cost_class * text.class_cost(said) + matcher.mask_cost(drawn, truth, config)
        ),
        "visual": lambda said, drawn, truth: visual.match(said, drawn, truth, config),
    }
    found = {}  # costs [L, B, M, Q]; of the visual slots the matching itself
    for name, group in slots.items():
        points, at = getattr(draws, f"match_{name}"), None
        points, at = (shared, shared_features) if points is None else (points, read(points))
        truth = jax.lax.map(lambda p, r=refs[name]: sample_masks(batch.planes, r, p), points)

        def layer(number, said, embedding, at=at, truth=truth, cost=layer_costs[name]):
            row = jnp.minimum(number, len(at) - 1)  # all layers may share one set of points
            drawn = jnp.einsum(
                "bqd,bkd->bqk", embedding, at[row], preferred_element_type=jnp.float32
            )
            return cost(said, drawn, truth[row])
