"""The training loss of the object, text and visual slots after every layer.

Layers run from the prediction before the first decoder layer (0) to the final one (-1); the official
names count backwards from the final one: ``loss_mask_ce_<L - 1 - layer>``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from seem_jax.config import LossConfig
from seem_jax.kernels.mask_planes import dense as dense_masks
from seem_jax.kernels.mask_planes import sample_masks
from seem_jax.kernels.point_sample import sample
from seem_jax.losses import masks, matcher, object, text, visual
from seem_jax.types import Array, Batch, Features, MaskRefs, Outputs, VisualTokens


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

    values: dict[str, Array]  # "object/class" and so on -> float32 [L]
    matched: dict[str, Array]  # "object", "text", "visual" -> int32 [L, B, targets], slot or -1
    points: dict[str, Array]  # float32 [L, B, targets, K, 2], where the mask losses were read


def total_loss(
    outputs: Outputs,
    visual: VisualTokens | None,
    features: Features,
    batch: Batch,
    table: Array,
    phrase_embedding: Array,
    logit_scale: Array,
    config: LossConfig,
    key: Array,
    draws: PointDraws | None = None,
    mesh: Mesh | None = None,
) -> tuple[Array, dict[str, Array]]:
    """(weighted loss, metrics): the sum over terms and layers, and each term's unweighted layer mean.

    table is float32 [C, V], normalised, the last row "no object"; phrase_embedding [B, G, V]. Groups
    of slots that `outputs` lacks have no terms. All means are over the whole batch, however it is
    split over the mesh.
    """
    result = terms(
        outputs,
        visual,
        features,
        batch,
        table,
        phrase_embedding,
        logit_scale,
        config,
        key,
        draws,
        mesh,
    )
    metrics = {name: value.mean() for name, value in result.values.items()}
    counts = {
        "num_objects": batch.objects.masks.valid,
        "num_phrases": batch.phrases.masks.valid,
        "num_prompts": batch.prompt_masks.valid,
    }
    metrics |= {name: valid.sum(dtype=jnp.float32) for name, valid in counts.items()}
    return weighted(result.values, config), metrics


def terms(
    outputs: Outputs,
    visual: VisualTokens | None,
    features: Features,
    batch: Batch,
    table: Array,
    phrase_embedding: Array,
    logit_scale: Array,
    config: LossConfig,
    key: Array,
    draws: PointDraws | None = None,
    mesh: Mesh | None = None,
) -> Terms:
    """Every term before weighting, per layer (the final one only, without deep supervision).

    Arguments as in `total_loss`. The softmax of a visual prompt runs over the slots of the prompts in
    ``visual.prompt_valid``; officially it also holds those that pad the batch.
    """
    batch = jax.tree.map(jnp.asarray, batch)
    draws = PointDraws() if draws is None else draws
    if not config.deep_supervision:
        outputs = jax.tree.map(lambda x: x[-1:], outputs.replace(visual_choice=None))
    branches = _branches(outputs, visual, batch, table, phrase_embedding, logit_scale, config)
    for_match, for_points = jax.random.split(key)
    matched = _match(for_match, branches, features.mask, batch.planes, config, draws, mesh)
    values, points = {}, {}
    for index, (name, branch) in enumerate(branches.items()):
        values[f"{name}/class"] = jax.vmap(branch.class_loss)(branch.said, matched[name])
        mask_losses, points[name] = _mask_losses(
            jax.random.fold_in(for_points, index),
            branch,
            matched[name],
            features.mask,
            batch.planes,
            config,
            getattr(draws, f"candidates_{name}"),
            getattr(draws, f"rest_{name}"),
        )
        values |= {f"{name}/{kind}": value for kind, value in mask_losses.items()}
    return Terms(values=values, matched=matched, points=points)


def weighted(values: dict[str, Array], config: LossConfig) -> Array:
    """The sum over terms and their layers (or maps), each by the weight of its name."""
    return sum(
        (getattr(config, name.replace("/", "_")) * value.sum() for name, value in values.items()),
        start=jnp.float32(0),
    )


@dataclasses.dataclass(frozen=True)
class _Branch:
    """A group of slots and what it shall find. Slots and what they say have a leading layer axis."""

    mask_embedding: Array  # [L, B, N, D]
    said: Array  # [L, ...], similarity of the slots with the names of their targets
    truth: MaskRefs  # [B, targets]
    class_cost: Callable[[Array], Array]  # said of a layer -> [B, targets, N]
    class_loss: Callable[
        [Array, Array], Array
    ]  # said and matched [B, targets] of a layer -> scalar


def _branches(
    outputs: Outputs,
    visual_tokens: VisualTokens | None,
    batch: Batch,
    table: Array,
    phrase_embedding: Array,
    logit_scale: Array,
    config: LossConfig,
) -> dict[str, _Branch]:
    """The groups of slots that are there, by the names that metrics and `PointDraws` use."""
    branches, phrases = {}, batch.phrases
    pooled = None if visual_tokens is None else visual_tokens.pooled
    if outputs.object is not None:
        label = batch.objects.label
        branches["object"] = _Branch(
            mask_embedding=outputs.object.mask_embedding,
            said=object.class_logits(outputs.object.class_embedding, table, logit_scale),
            truth=batch.objects.masks,
            class_cost=lambda said: object.class_cost(said, label),
            class_loss=lambda said, slot: object.class_loss(said, label, slot, config.no_object),
        )
    if outputs.text is not None:
        said = jax.vmap(
            lambda slots: text.phrase_logits(
                slots.class_embedding,
                slots.mask_embedding,
                phrase_embedding,
                phrases.prompt,
                pooled,
                logit_scale,
            )
        )
        branches["text"] = _Branch(
            mask_embedding=outputs.text.mask_embedding,
            said=said(outputs.text),
            truth=phrases.masks,
            class_cost=text.class_cost,
            class_loss=lambda said, slot: text.class_loss(said, slot, phrases, config),
        )
    if outputs.visual is not None:
        drawn, prompts = visual_tokens.prompt_valid, batch.prompt_masks
        counted = dense_masks(batch.planes, prompts).any((2, 3))  # an empty mask teaches nothing
        branches["visual"] = _Branch(
            mask_embedding=outputs.visual.mask_embedding,
            said=jax.vmap(partial(visual.prompt_logits, pooled))(outputs.visual.mask_embedding),
            truth=prompts.replace(valid=counted & drawn),
            class_cost=visual.class_cost,
            class_loss=lambda said, slot: visual.class_loss(said, slot, drawn),
        )
    return branches


def _match(
    key: Array,
    branches: dict[str, _Branch],
    mask_features: Array,
    planes: Array,
    config: LossConfig,
    draws: PointDraws,
    mesh: Mesh | None,
) -> dict[str, Array]:
    """int32 [L, B, targets] for each branch: the slot that answers each target, or -1.

    Masks are compared at points shared by all slots and targets of an image. Reading is linear, so
    the features are read there once, not the mask logits of every slot. Layers come one by one:
    the logits of all of them at 12,544 points would need 10 times the memory.
    """
    mask_features = jax.lax.stop_gradient(mask_features)
    shared = jax.random.uniform(key, (1, len(planes), config.num_points, 2))

    def read(points):  # [L or 1, B, K, D]
        return jax.lax.map(lambda at: sample(mask_features, at), points)

    shared_read, costs = read(shared), {}
    for name, branch in branches.items():
        points = getattr(draws, f"match_{name}")
        points, at = (shared, shared_read) if points is None else (points, read(points))
        truth = jax.lax.map(partial(sample_masks, planes, branch.truth), points)

        def cost(layer, class_cost=branch.class_cost, at=at, truth=truth):
            number, embedding, said = layer
            row = jnp.minimum(number, len(at) - 1)  # all layers may share one set of points
            logits = jnp.einsum(
                "bnd,bkd->bnk", embedding, at[row], preferred_element_type=jnp.float32
            )
            by_mask = matcher.mask_cost(logits, truth[row], config)
            return by_mask + config.cost_class * class_cost(said)

        slots = jax.lax.stop_gradient((branch.mask_embedding, branch.said))
        costs[name] = jax.lax.map(cost, (jnp.arange(len(slots[0])), *slots))
    return matcher.match(
        costs, {name: branch.truth.valid for name, branch in branches.items()}, mesh
    )


def _mask_losses(
    key: Array,
    branch: _Branch,
    matched: Array,
    mask_features: Array,
    planes: Array,
    config: LossConfig,
    candidates: Array | None,
    rest: Array | None,
) -> tuple[dict[str, Array], Array]:
    """("bce" and "dice" of each layer [L], the points they were read at [L, B, targets, K, 2]).

    Sums over the matched targets, divided by the number of valid ones in the batch.
    """
    number = jnp.maximum(branch.truth.valid.sum(dtype=jnp.float32), 1.0)

    def layer(args):
        key, embedding, slot, candidates, rest = args
        embedding = jnp.take_along_axis(embedding, jnp.maximum(slot, 0)[..., None], axis=1)
        *losses, points = masks.matched_losses(
            key, embedding, mask_features, planes, branch.truth, config, candidates, rest
        )
        bce, dice = (jnp.where(slot >= 0, loss, 0.0).sum() / number for loss in losses)
        return {"bce": bce, "dice": dice}, points

    keys = jax.random.split(key, len(matched))
    return jax.lax.map(layer, (keys, branch.mask_embedding, matched, candidates, rest))
