"""What each kind of golden file holds: stage -> (claims about its arrays, names of its inputs)."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from seem_jax import postprocess
from seem_jax.interaction import next_clicks
from seem_jax.losses.text import phrase_logits
from tests.parity.decoding import Inputs, Run
from tests.parity.following import (
    all_remembered,
    channels_first,
    follow,
    memory_index,
    pack_text,
    query_index,
    stroke_prompts,
)
from tests.parity.losses import losses_stage
from tests.parity.report import (
    Claim,
    Claims,
    Line,
    Stored,
    entries,
    equal,
    exact,
    shape,
    unpack_bits,
)
from tests.parity.subject import PRECISION, Subject, unit

Stage = Callable[[Subject, Stored], tuple[Claims, set[str]]]
ENCODER_TOLERANCE = 1e-4  # relative rms of features and text
NUM_THINGS = 80  # classes of COCO below this are things


def stored_like(stored: Stored, pattern: str) -> set[str]:
    """The names of a file that match a pattern."""
    return {name for name in entries(stored) if re.fullmatch(pattern, name)}


def features_stage(subject: Subject, stored: Stored) -> tuple[Claims, set[str]]:
    """The image, the maps of the backbone and of the pixel decoder."""
    maps, encoded, features = subject.maps(stored)
    embedding = subject.params["decoder"]["level_embedding"]
    arrays = {f"backbone/res{i + 2}": x for i, x in enumerate(maps)}
    arrays["pixel_decoder/mask_features"] = features.mask
    arrays["pixel_decoder/transformer_encoder"] = encoded
    for i, level in enumerate(features.levels):
        arrays[f"pixel_decoder/multi_scale/{i}"] = level - embedding[i][None, None, None]
    claims = {
        name: Claim(partial(channels_first, x), ENCODER_TOLERANCE) for name, x in arrays.items()
    }
    images = subject.images(stored)
    if "image/shape" in stored:  # with or without the padding
        tall, wide = shape(stored, "image")[-2:]
        images = images[:, :tall, :wide]
    claims["image"] = Claim(partial(channels_first, images), 1e-6)
    return claims, set()


def text_stage(subject: Subject, stored: Stored) -> tuple[Claims, set[str]]:
    """Class table, phrases and templates."""

    @cache
    def phrases():
        ids = stored["phrases/ids"]
        return subject.encode_text(ids, ids.argmax(-1))

    def templates():
        ids = stored["templates/ids"]
        sentences = unit(subject.sentences(ids.reshape(-1, ids.shape[-1])))
        mean = sentences.reshape(*ids.shape[:2], -1).mean(1)
        return mean / np.linalg.norm(mean, axis=-1, keepdims=True)

    values = {
        "classes/embeddings": lambda: unit(subject.sentences(stored["classes/ids"])),
        "phrases/token_emb_norm0": lambda: phrases()[0],
        "phrases/class_emb_norm0": lambda: phrases()[1],
        "phrases/token_emb_norm1": lambda: unit(phrases()[0]),
        "phrases/class_emb_norm1": lambda: unit(phrases()[1]),
        "templates/class_embeddings": templates,
    }
    claims = {name: Claim(value, ENCODER_TOLERANCE) for name, value in values.items()}
    return claims, stored_like(stored, r".*/(ids|mask|count)")


def seg_stage(subject: Subject, stored: Stored) -> tuple[Claims, set[str]]:
    """Panoptic decoding: the object queries alone."""
    return follow(subject, stored, Inputs())[1], set()


def grounding_stage(subject: Subject, stored: Stored) -> tuple[Claims, set[str]]:
    """Phrases: their tokens, the decoding, and which query answers each phrase."""
    batch = range(int(stored["batch"]))
    phrases = [(stored[f"tokens/{b}/ids"], stored[f"tokens/{b}/mask"]) for b in batch]
    text = pack_text(subject, phrases)
    run, claims = follow(subject, stored, Inputs(text=text))
    claims["grounding_tokens"] = Claim(lambda: text.tokens.transpose(1, 0, 2), ENCODER_TOLERANCE)
    claims["grounding_nonzero_mask"] = equal(lambda: ~text.valid)
    for b in batch:
        sentence = subject.sentences(phrases[b][0])
        similarity = partial(_similarity, subject, run, b, sentence)
        claims[f"match/{b}/class_emb"] = Claim(partial(np.asarray, sentence), ENCODER_TOLERANCE)
        claims[f"match/{b}/similarity"] = Claim(similarity)
        claims[f"match/{b}/query"] = equal(lambda similarity=similarity: similarity().argmax(0))
    return claims, stored_like(stored, r"tokens/.*")


def _similarity(subject: Subject, run: Run, b: int, sentence: np.ndarray) -> np.ndarray:
    """float32 [Q, n], how well each text slot of image b answers each phrase."""
    slots = run.trace.outputs.text
    if run.joined:
        slots = jax.tree.map(lambda x: x[:, :, :-1], slots)
    none = jnp.full(len(sentence), -1, jnp.int32)
    with jax.default_matmul_precision(PRECISION):
        logits = phrase_logits(
            slots.class_embedding[-1, b],
            slots.mask_embedding[-1, b],
            jnp.asarray(sentence),
            none,
            None,
            subject.params["logit_scale"],
        )
    return np.asarray(logits)


def spatial_stage(subject: Subject, stored: Stored) -> tuple[Claims, set[str]]:
    """Strokes on the image itself."""
    prompts, number = stroke_prompts(subject, stored)
    index = query_index(subject, stored, "query_index", number)
    _, claims = follow(subject, stored, Inputs(prompts=prompts, query_index=index), number)
    kinds = [prompts.positive & prompts.valid, ~prompts.positive & prompts.valid]
    for name in stored_like(stored, r"points/\d+"):
        b = int(name.rpartition("/")[2])
        claims[name] = equal(lambda b=b: np.array([kind[b].sum() for kind in kinds]))
    return claims, stored_like(stored, r"(pos|neg)_mask/\d+|query_index")


def iterative_stage(subject: Subject, stored: Stored) -> tuple[Claims, set[str]]:
    """Rounds of strokes, answers, memory and the clicks that follow from them."""
    claims, memory, previous = {}, None, None
    rounds = len(stored_like(stored, r"round\d+/pos_mask/0"))
    for number in range(rounds):
        prefix = f"round{number}/"
        if previous is not None:
            claims |= _clicks(subject, stored, previous, f"round{number - 1}/", prefix)
        if not stored_like(stored, rf"{prefix}pred_.*"):
            continue  # only the clicks after the last round
        prompts, count = stroke_prompts(subject, stored, prefix)
        index = query_index(subject, stored, f"{prefix}query_index", count)
        inputs = Inputs(prompts=prompts, query_index=index)
        if memory is not None:
            owner = memory_index(subject, stored, f"{prefix}memory_index")
            inputs = inputs.replace(memory=memory, memory_index=owner)
        run, found = follow(subject, stored, inputs, count, prefix)
        claims |= found
        memory = all_remembered(run)
        previous = np.asarray(run.chosen())
    first = {
        f"round0/{sign}_mask/{b}" for sign in ("pos", "neg") for b in range(int(stored["batch"]))
    }
    return claims, first | stored_like(stored, r"gt_mask/\d+|round\d+/(query|memory)_index")


def _clicks(subject: Subject, stored: Stored, previous, before: str, after: str) -> Claims:
    """The strokes after a round: those before it and one click at the worst place."""
    batch = range(int(stored["batch"]))
    tall, wide = subject.padded_size(stored)
    truth = padded_masks([unpack_bits(stored, f"gt_mask/{b}") for b in batch], (tall, wide))
    positive, negative = (
        padded_masks([unpack_bits(stored, f"{before}{sign}_mask/{b}") for b in batch], (tall, wide))
        for sign in ("pos", "neg")
    )
    drawn = positive.astype(np.uint8) + 2 * negative.astype(np.uint8)
    *_, drawn = next_clicks(jnp.asarray(previous), jnp.asarray(truth), jnp.asarray(drawn))
    drawn = np.asarray(drawn)

    def marks(bit, b, name):
        count, height, width = shape(stored, name)
        return (drawn[b, :count, :height, :width] & bit) > 0

    return {
        name: equal(partial(marks, bit, b, name))
        for bit, sign in ((1, "pos"), (2, "neg"))
        for b in batch
        for name in [f"{after}{sign}_mask/{b}"]
    }


def padded_masks(masks: list[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """bool [B, M, H, W] of the masks [n, h, w] of each image."""
    out = np.zeros((len(masks), max(len(m) for m in masks), *size), bool)
    for b, mask in enumerate(masks):
        out[b, : len(mask), : mask.shape[1], : mask.shape[2]] = mask
    return out


def postprocess_stage(
    subject: Subject, stored: Stored, seg: Stored | None = None
) -> tuple[Claims, set[str]]:
    """Resizing and the results for the first image of `seg`, and for synthetic predictions.

    With the seg file of the same model and images, the decoder follows its attention masks.
    """
    claims = {}
    if "image_size" in stored:
        claims |= _results(subject, stored, stored if seg is None else seg)
    if stored_like(stored, "synthetic/.*"):
        claims |= _synthetic(subject, stored)
    inputs = {"image_size", "output_size"} | stored_like(stored, r".*/thresholds")
    return claims, inputs


def _results(subject: Subject, stored: Stored, seg: Stored) -> Claims:
    run, _ = follow(subject, seg, Inputs())
    outputs = run.trace.outputs.object
    classes = run.classes(outputs.class_embedding[-1])[0]
    resized = partial(run.resized, stored["image_size"])
    claims = {
        name: Claim(partial(resized, shape(stored, name)[-2:]), note=run.note)
        for name in stored_like(stored, "resize/.*")
    }
    full = cache(lambda: resized(stored["output_size"]))
    claims |= _class_results(stored, "model/", classes, full, 1e-3)
    return claims


def _class_results(stored: Stored, prefix: str, classes, masks, tolerance: float) -> Claims:
    """Semantic and instance results of class logits [Q, C] and mask logits masks() [Q, H, W]."""

    def best():
        found = postprocess.instances(classes, masks(), NUM_THINGS)
        score, label, mask, valid = (
            np.asarray(x) for x in (found.score, found.label, found.mask, found.valid)
        )
        keep = np.flatnonzero(valid)
        keep = keep[np.argsort(-score[keep], kind="stable")]
        return score[keep], label[keep], mask[keep].sum((1, 2))

    best = cache(best)

    def among_equals(stored, name, ours, claim):
        """Instances of the same score may stand in any order."""
        scores = stored[f"{prefix}instance_scores/values"]
        got, want = ours.astype(float), stored[f"{name}/values"].astype(float)
        group = np.cumsum(np.diff(scores, prepend=scores[0]) < -1e-5 * scores.max())
        order = np.lexsort((got, group)), np.lexsort((want, group))
        difference = np.abs(got[order[0]] - want[order[1]])
        error = float(difference.sum() / max(np.abs(want).sum(), 1))
        return Line(name, error <= claim.tolerance, error, difference.max(), claim.tolerance)

    return {
        f"{prefix}semantic": Claim(
            lambda: postprocess.semantic_scores(classes, masks()), tolerance
        ),
        f"{prefix}instance_scores": Claim(lambda: best()[0], tolerance),
        f"{prefix}instance_classes": Claim(lambda: best()[1], 0.0, compare=among_equals),
        f"{prefix}instance_areas": Claim(lambda: best()[2], tolerance, compare=among_equals),
    }


def _synthetic(subject: Subject, stored: Stored) -> Claims:
    q, height, width = shape(stored, "synthetic/masks")
    classes, masks = synthetic_predictions(
        subject, q, shape(stored, "synthetic/logits")[1], height, width
    )
    claims = {
        "synthetic/logits": Claim(lambda: classes, 1e-5),
        "synthetic/masks": Claim(lambda: masks, 1e-5),
    }
    claims |= _class_results(
        stored, "synthetic/", jnp.asarray(classes), lambda: jnp.asarray(masks), 1e-4
    )
    inside = np.ones((height, width), bool)
    for name in stored_like(stored, r"synthetic/panoptic_\w+/map"):
        base = name.removesuffix("/map")
        threshold, overlap = stored[f"{base}/thresholds"].tolist()

        @cache
        def panoptic(threshold=threshold, overlap=overlap):
            slots = postprocess.panoptic_slots(classes, masks, inside, threshold)
            slots = jax.tree.map(np.asarray, slots)
            ids, segments = postprocess.panoptic_segments(slots, NUM_THINGS, overlap)
            return ids, np.array([(s.id, s.is_thing, s.category) for s in segments])

        claims[name] = Claim(lambda panoptic=panoptic: panoptic()[0], 1e-3, compare=exact)
        claims[f"{base}/segments"] = equal(lambda panoptic=panoptic: panoptic()[1].reshape(-1, 3))
    return claims


def synthetic_predictions(subject: Subject, q: int, num_classes: int, h: int, w: int):
    """(class logits [Q, C], mask logits [Q, h, w]), float32, by the formula of the README."""
    recipe, seed = subject.recipe, subject.seed
    logits = np.float32(1.5) * recipe.normal(seed, "post/logits", (q, num_classes))
    top = recipe.integers(seed, "post/top", num_classes - 1, (q,))
    top[:16] = 74 + np.arange(16) % 11
    boost = np.full(q, 2.0, np.float32)
    boost[:16], boost[16:20] = 14, 9
    logits[np.arange(q), top] += boost
    logits[80:90, num_classes - 1] += 30
    field = recipe.smooth(seed, "post/masks", q, h, w, 5)  # float64
    masks = 6 * field - 4
    for i in range(16):
        other = np.delete(field[:16], i, axis=0).max(0)
        masks[i] = 8 * (field[i] - other + 0.012 * (i - 4))
    masks[16:20] -= 7
    return logits, masks.astype(np.float32)


STAGES: dict[str, Stage] = {
    "features": features_stage,
    "text": text_stage,
    "seg": seg_stage,
    "grounding": grounding_stage,
    "spatial": spatial_stage,
    "iterative": iterative_stage,
    "losses": losses_stage,
    "postprocess": postprocess_stage,
}
