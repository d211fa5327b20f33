"""The training forward and the criterion, with the random draws of the release."""

from __future__ import annotations

import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from seem_jax import losses
from seem_jax.config import LossConfig
from seem_jax.convert.rules import official_state
from seem_jax.types import Batch, MaskRefs, Objects, Phrases
from tests.parity.decoding import Inputs, Run, replaced_masks
from tests.parity.following import (
    all_remembered,
    follow,
    memory_index,
    pack_text,
    query_index,
    stroke_prompts,
)
from tests.parity.report import Claim, Claims, Line, Stored, entries, equal, shape, unpack_bits
from tests.parity.subject import PRECISION, Subject

BRANCHES = {  # ours -> the release's words for its losses, its matching, its points
    "object": ("mask", "default", "masks"),
    "text": ("grounding", "grounding", "groundings"),
    "visual": ("spatial", "spatial", "spatials"),
}
KINDS = {"class": "ce", "bce": "bce", "dice": "dice"}
HEAD = "sem_seg_head.predictor."


def losses_stage(subject: Subject, stored: Stored) -> tuple[Claims, set[str]]:
    """A training forward after one round without gradient, and every loss of it."""
    batch_size = int(stored["batch"])
    prompts, number = stroke_prompts(subject, stored)
    before, _ = follow(
        subject,
        stored,
        Inputs(
            prompts=prompts, query_index=query_index(subject, stored, "round0/query_index", number)
        ),
        number,
    )
    memory = all_remembered(before)
    phrases = [
        (stored[f"target/{b}/grounding_ids"], stored[f"target/{b}/grounding_mask"])
        for b in range(batch_size)
    ]
    sentences = [subject.sentences(ids) for ids, _ in phrases]
    first = [_first_of_equals(stored[f"target/{b}/grounding_hash"]) for b in range(batch_size)]
    text = pack_text(
        subject, [(ids[keep], mask[keep]) for (ids, mask), keep in zip(phrases, first)]
    )
    inputs = Inputs(
        text=text,
        prompts=prompts,
        memory=memory,
        query_index=query_index(subject, stored, "query_index", number),
        memory_index=memory_index(subject, stored, "memory_index"),
    )
    main, claims = follow(subject, stored, inputs, number, "out/")
    claims["prev_mask"] = Claim(before.chosen)
    claims["grounding_tokens"] = Claim(lambda: text.tokens.transpose(1, 0, 2), 1e-4)
    claims["grounding_nonzero_mask"] = equal(lambda: ~text.valid)
    for b, sentence in enumerate(sentences):
        claims[f"target/{b}/grounding_class_embs"] = Claim(partial(np.asarray, sentence), 1e-4)
    batch = target_batch(subject, stored, prompts, number)
    for prefix in sorted({m[1] for name in stored if (m := re.match(r"(n\d+)/names$", name))}):
        claims |= _criterion(main, stored, prefix, inputs, number, batch, sentences)
    claims["weights/values"] = Claim(partial(_weights, stored["weights/names"]), 1e-6)
    read = {
        name
        for name in entries(stored)
        if name not in claims
        and re.fullmatch(
            r"target/\d+/.*|(pos|neg)_mask/\d+|(round0/)?query_index|memory_index|.*names|loss_order"
            r"|n\d+/draws",
            name,
        )
    }
    return claims, read


def _first_of_equals(group: np.ndarray) -> np.ndarray:
    """bool [n]: the first phrase of each group; the release reads equal phrases once."""
    keep = np.zeros(len(group), bool)
    keep[np.unique(group, return_index=True)[1]] = True
    return keep


def target_batch(subject: Subject, stored: Stored, strokes, num_prompts: int) -> Batch:
    """The stored targets as a Batch: the masks of each kind are bits of byte planes."""
    batch = int(stored["batch"])
    tall, wide = subject.padded_size(stored)
    planes: list[np.ndarray] = []  # [B, H, W]

    def refs(kind, size):
        start = len(planes)
        planes.extend(np.zeros((batch, tall, wide), np.uint8) for _ in range(-(-size // 8)))
        valid = np.zeros((batch, size), bool)
        for b in range(batch):
            masks = unpack_bits(stored, f"target/{b}/{kind}")
            height, width = masks.shape[1:]
            for m, mask in enumerate(masks):
                planes[start + m // 8][b, :height, :width] |= mask.astype(np.uint8) << (m % 8)
            valid[b, : len(masks)] = True
        m = np.arange(size)
        bit = np.tile((1 << (m % 8)).astype(np.uint8), (batch, 1))
        plane = np.tile((start + m // 8).astype(np.int32), (batch, 1))
        return MaskRefs(plane, bit, bit, valid)

    def most(kind):
        return max(shape(stored, f"target/{b}/{kind}")[0] for b in range(batch))

    def padded(kind, size):
        out = np.zeros((batch, size, *stored[f"target/0/{kind}"].shape[1:]), np.int64)
        for b in range(batch):
            values = stored[f"target/{b}/{kind}"]
            out[b, : len(values)] = values
        return out

    num_phrases = most("grounding_masks")
    objects = Objects(
        refs("masks", most("masks")), padded("labels", most("masks")).astype(np.int32)
    )
    group = padded("grounding_hash", num_phrases)
    phrases = Phrases(
        token_ids=padded("grounding_ids", num_phrases).astype(np.int32),
        token_valid=padded("grounding_mask", num_phrases).astype(bool),
        masks=refs("grounding_masks", num_phrases),
        group=np.unique(group, return_inverse=True)[1].reshape(group.shape).astype(np.int32),
        is_class=np.array(
            [str(stored[f"target/{b}/grounding_mode"]) == "class" for b in range(batch)]
        ),
        prompt=np.full((batch, num_phrases), -1, np.int32),
    )
    prompt_masks = refs("spatial_masks", num_prompts)
    made = Batch(
        sample_id=np.arange(batch, dtype=np.int32),
        image=np.zeros((batch, tall, wide, 3), np.uint8),
        image_size=np.full((batch, 2), (tall, wide), np.int32),
        planes=np.stack(planes, axis=1),
        objects=objects,
        phrases=phrases,
        strokes=strokes,
        prompt_masks=prompt_masks,
    )
    return jax.tree.map(jnp.asarray, made)


def point_draws(
    subject: Subject, stored: Stored, prefix: str, batch: Batch, config: LossConfig
) -> losses.PointDraws:
    """The release's random points. Its rows follow the matched queries, ours the targets."""
    layers, points = subject.config.decoder.num_layers + 1, config.num_points
    count = int(points * config.oversample), points - int(config.importance * points)
    fields = {}
    for branch, (_, mode, drawn) in BRANCHES.items():
        refs = {
            "object": batch.objects.masks,
            "text": batch.phrases.masks,
            "visual": batch.prompt_masks,
        }[branch]
        batch_size, size = refs.valid.shape
        shared = np.zeros((layers, batch_size, points, 2), np.float32)
        rows = [np.zeros((layers, batch_size, size, n, 2), np.float32) for n in count]
        for ours in range(layers):
            key = f"points/layer{layers - 1 - ours}/"
            matched = _rows(stored, prefix, layers - 1 - ours, branch, batch_size)
            for i, n in enumerate(count):
                made = subject.recipe.uniform(
                    subject.seed, f"{key}{drawn}/{i}", (len(matched), n, 2)
                )
                for row, (b, target) in zip(made, matched):
                    rows[i][ours, b, target] = row
            for b in range(batch_size):
                name = f"{key}match_{mode}/{b}"
                shared[ours, b] = subject.recipe.uniform(subject.seed, name, (1, points, 2))[0]
        fields[f"match_{branch}"] = jnp.asarray(shared)
        fields[f"candidates_{branch}"], fields[f"rest_{branch}"] = map(jnp.asarray, rows)
    return losses.PointDraws(**fields)


def _rows(stored: Stored, prefix: str, layer: int, branch: str, batch_size: int):
    """[(image, target)] in the order in which the release samples the points of a branch."""
    rows = []
    for b in range(batch_size):
        for target in stored[f"{prefix}/layer{layer}/match_{BRANCHES[branch][1]}/{b}"][1]:
            empty = (
                branch == "visual"
                and not unpack_bits(stored, f"target/{b}/spatial_masks")[target].any()
            )
            if not empty:
                rows.append((b, int(target)))
    return rows


def _criterion(run: Run, stored, prefix, inputs, number, batch, sentences) -> Claims:
    """Claims about one number of points: values, matching, points and gradients.

    `run` is the forward pass; the losses are taken with its attention bits.
    """
    subject, layers = run.subject, run.num_layers + 1
    config = LossConfig(num_points=int(prefix[1:]))
    with_gradient = f"{prefix}/grad_norms" in stored

    @cache
    def free():
        draws = point_draws(subject, stored, prefix, batch, config)
        return draws, evaluate(run, draws)

    @cache
    def result():
        draws, found = free()
        official = official_points(stored, prefix, batch, found[1], draws, config)
        return found if official is None else evaluate(run, official)

    def evaluate(run, draws):
        return _evaluate(run, inputs, number, batch, sentences, config, draws, with_gradient)

    def values():
        found = {}
        for name, value in result()[1].values.items():
            branch, kind = name.split("/")
            for ours in range(layers):
                official = f"loss_{BRANCHES[branch][0]}_{KINDS[kind]}_{layers - 1 - ours}"
                found[official] = value[ours]
        return np.array([found[str(name)] for name in stored[f"{prefix}/names"]])

    claims = {
        f"{prefix}/values": Claim(values, compare=worst),
        f"{prefix}/total": Claim(lambda: np.asarray(result()[0]), compare=worst),
    }
    for branch, (_, mode, drawn) in BRANCHES.items():
        for layer in range(layers):
            ours = layers - 1 - layer
            for b in range(int(stored["batch"])):
                name = f"{prefix}/layer{layer}/match_{mode}/{b}"
                if name in stored:
                    claims[name] = equal(
                        lambda branch=branch, ours=ours, b=b, name=name: _pairs(
                            result()[1].matched[branch][ours, b], stored[name]
                        )
                    )
            name = f"{prefix}/layer{layer}/{drawn}/coords"
            if name in stored or f"{name}/shape" in stored:
                rows = _rows(stored, prefix, layer, branch, int(stored["batch"]))
                claims[name] = Claim(
                    lambda branch=branch, ours=ours, rows=rows: np.stack(
                        [free()[1][1].points[branch][ours, b, target] for b, target in rows]
                    ),
                    5e-3,
                    compare=same_points,
                )
    if with_gradient:
        gradient = cache(lambda: official_state({"decoder": jax.device_get(result()[2])}))
        names = [HEAD + str(name) for name in stored[f"{prefix}/grad_names"]]
        claims[f"{prefix}/grad_norms"] = Claim(
            lambda: np.array([np.linalg.norm(gradient()[name]) for name in names]), compare=norms
        )
        for name in entries(stored):
            if name.startswith(f"{prefix}/grad/"):
                official = HEAD + name.removeprefix(f"{prefix}/grad/")
                claims[name] = Claim(lambda official=official: gradient()[official])
    return claims


def _pairs(slots: np.ndarray, stored: np.ndarray) -> np.ndarray:
    """int [2, n]: our (slot; target) pairs in the release's order of growing slots."""
    targets = np.flatnonzero(np.asarray(slots) >= 0)
    pairs = np.stack([np.asarray(slots)[targets], targets])
    return pairs[:, np.argsort(pairs[0], kind="stable")]


def official_points(
    stored: Stored,
    prefix: str,
    batch: Batch,
    terms: losses.Terms,
    draws: losses.PointDraws,
    config: LossConfig,
) -> losses.PointDraws | None:
    """Draws with which we choose the points of the release; None where we do already.

    Two candidates of nearly the same |logit| at the end of the choice may change places by
    rounding. The one that we chose and the release did not becomes a copy of the one it chose.
    """
    layers, changed = len(next(iter(terms.matched.values()))), False
    number = int(config.importance * config.num_points)
    fields = {}
    for branch, (_, _, drawn) in BRANCHES.items():
        candidates = np.array(getattr(draws, f"candidates_{branch}"))
        for ours in range(layers):
            name = f"{prefix}/layer{layers - 1 - ours}/{drawn}/coords"
            if name not in stored:
                continue
            rows = _rows(stored, prefix, layers - 1 - ours, branch, len(batch.planes))
            for want, (b, target) in zip(stored[name], rows):
                chosen = terms.points[branch][ours, b, target, :number]
                official = set(map(tuple, want[:number].tolist()))
                mine = set(map(tuple, chosen.tolist()))
                if len(mine - official) > 0.01 * number:
                    continue  # more than rounding: left as it is, so that it shows
                for wrong, right in zip(sorted(mine - official), sorted(official - mine)):
                    row = candidates[ours, b, target]
                    row[(row == np.float32(wrong)[None]).all(-1)] = right
                    changed = True
        fields[f"candidates_{branch}"] = jnp.asarray(candidates)
    return draws.replace(**fields) if changed else None


def _evaluate(run: Run, inputs, number, batch, sentences, config, draws, with_gradient):
    """(weighted loss, terms, gradient of the decoder's parameters or None).

    Every layer sees what it saw in the run: this is another program, and its rounding could put a
    bit on the other side.
    """
    subject, features = run.subject, run.features
    model, params = subject.model, subject.params
    raw = [
        level - params["decoder"]["level_embedding"][i][None, None, None]
        for i, level in enumerate(features.levels)
    ]
    width = subject.config.text.projection
    phrases = np.zeros((*batch.phrases.masks.valid.shape, width), np.float32)
    for b, rows in enumerate(sentences):
        phrases[b, : len(rows)] = rows

    def forward(decoder, mask, raw, inputs, batch, phrases, table, draws, blocked):
        variables = {"params": {**params, "decoder": decoder}}
        image = model.bind(variables).decoder.prepare(mask, raw)
        visual = model.apply(variables, image, inputs.prompts, number, method="encode_prompts")
        with nn.intercept_methods(replaced_masks(blocked, None)):
            outputs = model.apply(
                variables,
                image,
                inputs.text,
                visual,
                inputs.memory,
                every_layer=True,
                query_index=inputs.query_index,
                memory_index=inputs.memory_index,
                method="decode",
            )
        everyone = visual.replace(prompt_valid=jnp.ones_like(visual.prompt_valid))
        arguments = (outputs, everyone, image, batch, table, phrases, params["logit_scale"], config)
        terms = losses.terms(*arguments, jax.random.key(0), draws)
        loss, _ = losses.total_loss(*arguments, jax.random.key(0), draws)
        return loss, terms

    function = jax.value_and_grad(forward, has_aux=True) if with_gradient else forward
    key = ("losses", number, config.num_points, with_gradient)
    compiled = subject.jitted.setdefault(key, jax.jit(function))
    with jax.default_matmul_precision(PRECISION):
        found = compiled(
            params["decoder"],
            features.mask,
            raw,
            inputs,
            batch,
            jnp.asarray(phrases),
            subject.table,
            draws,
            [~sees for sees in run.trace.sees],
        )
    (loss, terms), gradient = found if with_gradient else (found, None)
    return loss, jax.device_get(terms), gradient


def _weights(names: np.ndarray) -> np.ndarray:
    """The weight of each official loss name in our configuration."""
    config = LossConfig()
    ours = {official: branch for branch, (official, _, _) in BRANCHES.items()}
    kinds = {official: kind for kind, official in KINDS.items()}
    parts = [str(name).split("_") for name in names]
    return np.array([getattr(config, f"{ours[p[1]]}_{kinds[p[2]]}") for p in parts])


def worst(stored: Stored, name: str, ours: np.ndarray, claim: Claim) -> Line:
    """The largest relative error of any element; those below 1e-2 are held against 1e-2."""
    want = stored[name].astype(np.float64)
    difference = np.abs(ours.astype(np.float64) - want)
    error = float((difference / np.maximum(np.abs(want), 1e-2)).max(initial=0.0))
    return Line(name, error < claim.tolerance, error, float(difference.max()), claim.tolerance)


def norms(stored: Stored, name: str, ours: np.ndarray, claim: Claim) -> Line:
    """`worst` over the parameters that have a gradient in the release (-1: none)."""
    known = stored[name] >= 0
    line = worst({name: stored[name][known]}, name, ours[known], claim)
    return line


def same_points(stored: Stored, name: str, ours: np.ndarray, claim: Claim) -> Line:
    """Share of the points of each mask that the release did not use; their order is free."""
    want = stored[name]
    missed = [
        len(set(map(tuple, a.tolist())) ^ set(map(tuple, b.tolist()))) / 2
        for a, b in zip(ours, want)
    ]
    share = float(np.sum(missed) / max(want[..., 0].size, 1))
    largest = float(max(missed, default=0))
    return Line(name, share <= claim.tolerance, share, largest, claim.tolerance, "as sets")
