"""A run of the decoder beside the stored numbers of one, and what it claims each of them to be."""

from __future__ import annotations

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from seem_jax.models.seem import remember
from seem_jax.types import Memory, TextTokens, VisualPrompts
from tests.parity.decoding import MARGIN, Inputs, Run, run_decoder
from tests.parity.report import (
    Claim,
    Claims,
    Line,
    Stored,
    entries,
    exact,
    places,
    shape,
    unpack_bits,
)
from tests.parity.settle import flip_rows, settle
from tests.parity.subject import PRECISION, Subject


def follow(
    subject: Subject,
    stored: Stored,
    inputs: Inputs,
    num_prompts: int = 0,
    prefix: str = "",
    tolerance: float = 1e-3,
) -> tuple[Run, Claims]:
    """A run with the official attention masks of a file, where it has them, and its claims."""
    layers = subject.config.decoder.num_layers
    names = [f"{prefix}attn_mask/{i}" for i in range(layers)]
    blocked = None
    if all(f"{name}/bits" in stored for name in names):
        blocked = [jnp.asarray(unpack_bits(stored, name)) for name in names]
    features = subject.features(stored)
    flips = flip_rows([]) if blocked is None else None
    trace = run_decoder(subject, features, inputs, num_prompts, blocked, flips)
    found = Run(subject, features, trace, tolerance, blocked is not None, flips)
    if blocked is None and not found.joined:
        found = settle(found, stored, inputs, num_prompts, prefix)
    return found, claims(found, stored, prefix)


PREDICTED = re.compile(r"pred_([a-z]+)/(\w+)")
HIDDEN = re.compile(r"hidden/(cross|self|ffn)/(\d+)")
ATTENTION = re.compile(r"attn_mask/(\d+)")


def claims(run: Run, stored: Stored, prefix: str = "") -> Claims:
    """What the run says to each stored name of the decoder; those of other names are left out."""
    first = _first_flip(run, stored, prefix)
    found = {}
    for name in entries(stored):
        rest = name.removeprefix(prefix)
        if not name.startswith(prefix):
            continue
        if match := ATTENTION.fullmatch(rest):
            found[name] = _attention_claim(run, stored, prefix, int(match[1]))
        elif rest == "attn_margin":
            found[name] = Claim(
                partial(_margins, run, stored[name]), compare=partial(_compare_margins, run)
            )
        elif match := HIDDEN.fullmatch(rest):
            value = partial(_hidden, run, match[1], int(match[2]))
            found[name] = Claim(value, run.tolerance, run.note or _note(first, int(match[2]) + 1))
        elif match := PREDICTED.fullmatch(rest):
            index = run.prediction(match[2])
            value = partial(run.predicted, match[1], index)
            found[name] = Claim(value, run.tolerance, run.note or _note(first, index))
        elif rest == "prev_mask":
            note = run.note or _note(first, run.num_layers)
            found[name] = Claim(run.chosen, run.tolerance, note)
        elif rest == "mask_features":
            found[name] = Claim(partial(channels_first, run.features.mask), 1e-4)
    return found


def channels_first(x) -> np.ndarray:
    """[B, h, w, C] -> [B, C, h, w]."""
    return np.asarray(x).transpose(0, 3, 1, 2)


def _note(first: int | None, index: int) -> str:
    return "" if first is None or index <= first else f"official bits followed in layer {first}"


def _first_flip(run: Run, stored: Stored, prefix: str) -> int | None:
    """The first layer whose attention mask differs from the official one in a bit."""
    for i in range(run.num_layers if run.followed else 0):
        if _wrong_bits(run, stored, f"{prefix}attn_mask/{i}", i)[0].any():
            return i
    return None


def _wrong_bits(run: Run, stored: Stored, name: str, i: int):
    """(bool [B, N, S] where our mask is not the stored one, our logits there)."""
    logits = run.seen_logits(i)
    return (logits < 0) != unpack_bits(stored, name), logits


def _attention_claim(run: Run, stored: Stored, prefix: str, i: int) -> Claim:
    """Equal bits, except where our logit is within MARGIN of zero and the release had such logits."""
    margins = stored.get(f"{prefix}attn_margin")

    def compare(stored, name, ours, claim):
        wrong, logits = _wrong_bits(run, stored, name, i)
        line = exact(stored, name, ours, claim)
        if not wrong.any():
            return line
        worst = float(np.abs(logits[wrong]).max())
        close = margins is None or wrong.sum() <= margins[i][2]
        note = f"{int(wrong.sum())} bits differ, |logit| < {worst:.0e}"
        return dataclasses.replace(line, passed=bool(close and worst < MARGIN), note=note)

    return Claim(lambda: run.seen_logits(i) < 0, 0.0, compare=compare)


def _margins(run: Run, stored: np.ndarray) -> np.ndarray:
    """attn_margin float64 [L, 4]: min |logit|, count below 1e-4, count below 1e-3, elements."""
    rows = []
    for i in range(len(stored)):
        size = np.abs(run.attention_logits(i))
        rows.append([size.min(), (size < 1e-4).sum(), (size < 1e-3).sum(), size.size])
    return np.array(rows, np.float64)


def _compare_margins(run: Run, stored: Stored, name: str, ours: np.ndarray, claim: Claim) -> Line:
    """The smallest logits agree like other mask logits: relative to the rms of those of their layer.

    Counts near a threshold move by rounding.
    """
    want = stored[name]
    rms = [np.sqrt(np.square(run.attention_logits(i)).mean()) for i in range(len(want))]
    difference = np.abs(ours[:, 0] - want[:, 0])
    error, largest = (difference / rms).max(), difference.max()
    near = np.abs(ours[:, 2] - want[:, 2]) <= 2 + 0.5 * want[:, 2]
    passed = bool(error < claim.tolerance and near.all() and (ours[:, 3] == want[:, 3]).all())
    return Line(
        name, passed, float(error), float(largest), claim.tolerance, "counts of small logits"
    )


def _hidden(run: Run, kind: str, layer: int):
    values = {"cross": run.trace.cross, "self": run.trace.self_, "ffn": run.trace.ffn}[kind]
    return run.official_slots(values[layer]).transpose(1, 0, 2)


def all_remembered(run: Run) -> Memory:
    """The memory of a run. The release remembers prompts that pad the batch like real ones."""
    memory = remember(run.trace.outputs, run.trace.visual)
    return memory.replace(valid=jnp.ones_like(memory.valid))


def pack_text(subject: Subject, phrases: list[tuple[np.ndarray, np.ndarray]]) -> TextTokens:
    """The valid tokens of the phrases of each image in a row, zeros after them, as the release.

    phrases holds (ids, mask) [n, J] for each image.
    """
    rows = []
    for ids, mask in phrases:
        tokens, _ = subject.encode_text(ids, ids.argmax(-1))
        rows.append(tokens[mask.astype(bool)])
    width = subject.config.text.projection
    tokens = np.zeros((len(rows), max(map(len, rows)), width), np.float32)
    valid = np.zeros(tokens.shape[:2], bool)
    for b, row in enumerate(rows):
        tokens[b, : len(row)], valid[b, : len(row)] = row, True
    return TextTokens(jnp.asarray(tokens), jnp.asarray(valid), jnp.full(valid.shape, -1, jnp.int32))


def stroke_prompts(subject: Subject, stored: Stored, prefix: str = "") -> tuple[VisualPrompts, int]:
    """(the points of the stored strokes in the official order, number of prompts an image has).

    The release divides by the size of the masks that it is given. Masks stored without the padding of
    the image may have been given with it or without; the stored pooled prompts tell.
    """
    padded = subject.padded_size(stored)
    prompts, number = _strokes(subject, stored, prefix, padded)
    drawn = shape(stored, f"{prefix}pos_mask/0")[1:]
    pooled = [
        name
        for name in entries(stored)
        if re.fullmatch(rf"{prefix}(out/)?pred_pspatials/(0|final)", name)
    ]
    if drawn == padded or not pooled:
        return prompts, number
    name, features = pooled[0], subject.features(stored)

    def error(prompts):
        with jax.default_matmul_precision(PRECISION):
            ours = subject.model.apply(
                {"params": subject.params}, features, prompts, number, method="encode_prompts"
            ).pooled
        want = stored[f"{name}/values"]
        return np.abs(np.asarray(ours).reshape(-1)[places(ours.size, want.size)] - want).mean()

    other, _ = _strokes(subject, stored, prefix, drawn)
    return min(prompts, other, key=error), number


def _strokes(
    subject: Subject, stored: Stored, prefix: str, size: tuple[int, int]
) -> tuple[VisualPrompts, int]:
    """Points divided by `size` (height, width), and the number of prompts.

    Versions that copy all object queries for a prompt, or none, read all strokes of an image as one.
    """
    batch = int(stored["batch"])
    tall, wide = size
    one = is_single(subject)
    index, sign = [], []
    for b in range(batch):
        parts = []
        for kind, positive in (("pos", True), ("neg", False)):
            mask = unpack_bits(stored, f"{prefix}{kind}_mask/{b}")
            found = np.argwhere(mask)
            parts.append((found, np.full(len(found), positive)))
        index.append(np.concatenate([found for found, _ in parts]))
        sign.append(np.concatenate([positive for _, positive in parts]))
    count = max(1, *map(len, index))
    points = np.zeros((batch, count, 2), np.float32)
    prompt = np.zeros((batch, count), np.int32)
    positive, valid = np.zeros((batch, count), bool), np.zeros((batch, count), bool)
    for b, found in enumerate(index):
        n = len(found)
        points[b, :n] = (found[:, :0:-1] / np.array([wide, tall])).astype(np.float32)
        prompt[b, :n] = 0 if one else found[:, 0]
        positive[b, :n], valid[b, :n] = sign[b], True
    number = 1 if one else max(shape(stored, f"{prefix}pos_mask/{b}")[0] for b in range(batch))
    prompts = VisualPrompts(*(jnp.asarray(x) for x in (points, prompt, positive, valid)))
    return prompts, number


def is_single(subject: Subject) -> bool:
    """Whether an image has one prompt only, whatever is drawn (v0 and demo)."""
    decoder = subject.config.decoder
    return decoder.rules == "shared" or decoder.queries_per_prompt == decoder.num_object_queries


def query_index(subject: Subject, stored: Stored, name: str, num_prompts: int) -> jnp.ndarray:
    """int32 [B, P * queries_per_prompt], stored or, where all are copied, in order."""
    decoder = subject.config.decoder
    index = stored.get(name)
    if index is None:
        index = np.arange(num_prompts * decoder.queries_per_prompt) % decoder.num_object_queries
    return jnp.asarray(np.tile(index, (int(stored["batch"]), 1)), jnp.int32)


def memory_index(subject: Subject, stored: Stored, name: str) -> jnp.ndarray:
    """int32 [layers, B, num_memory], stored or, with one prompt, 0."""
    decoder = subject.config.decoder
    index = stored.get(name)
    if index is None:
        index = np.zeros((decoder.num_layers, decoder.num_memory), np.int32)
    return jnp.asarray(np.asarray(index)[:, None].repeat(int(stored["batch"]), 1), jnp.int32)
