"""One run of the product's decoder with everything that the release can tell about its own.

The decoder is watched from outside (flax method interceptors), so that what is compared is the code
that users run. Where the file holds the release's attention masks, each layer is given those: a mask
logit at rounding distance of zero then changes nothing downstream, and the masks that our decoder
made by itself are compared bit by bit.
"""

from __future__ import annotations

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct

from seem_jax.models.decoder.decoder import NUM_LEVELS, Decoder, DecoderLayer
from seem_jax.models.seem import class_logits, mask_logits, remember
from seem_jax.types import Features, Memory, Outputs, TextTokens, VisualPrompts, VisualTokens
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
from tests.parity.subject import PRECISION, Subject
from tests.parity.xdecoder import class_query

MARGIN = 1e-3  # mask logits nearer to zero than this may fall on either side (README: attn_margin)


@struct.dataclass
class Inputs:
    """What a run is given besides the image."""

    text: TextTokens | None = None
    prompts: VisualPrompts | None = None
    memory: Memory | None = None
    query_index: jax.Array | None = None  # int32 [B, P * queries_per_prompt]
    memory_index: jax.Array | None = None  # int32 [layers, B, num_memory]


@struct.dataclass
class Trace:
    """A run: its outputs and what happened inside, lists over layers."""

    outputs: Outputs
    visual: VisualTokens | None
    negative: jax.Array | None  # [B, P, D], pooled like `visual.pooled`, at the negative points
    embedding: list  # [B, N, D], mask embeddings of all slots that look, before and after layers
    cross: list  # [B, N, D]
    self_: list  # [B, N + tokens, D], in the official order
    ffn: list


def run_decoder(
    subject: Subject,
    features: Features,
    inputs: Inputs,
    num_prompts: int = 0,
    blocked: list | None = None,
    flips: jax.Array | None = None,
) -> Trace:
    """The trace of a run; `blocked` are official attention masks bool [B, N, S] of each layer.

    `flips` are those of `replaced_masks`.
    """
    key = ("decoder", num_prompts)
    if key not in subject.jitted:
        rules = class_query if subject.is_xdecoder else _as_it_is
        subject.jitted[key] = jax.jit(partial(_traced, subject.model, num_prompts, rules))
    with jax.default_matmul_precision(PRECISION):
        return subject.jitted[key](subject.params, features, inputs, blocked, flips)


def _as_it_is(call, args, kwargs, context):
    """The interceptor that changes nothing."""
    return call(*args, **kwargs)


def _traced(model, num_prompts, rules, params, features, inputs, blocked, flips) -> Trace:
    variables = {"params": params}
    encode = partial(model.apply, variables, features, method="encode_prompts")
    visual = negative = None
    if inputs.prompts is not None:
        visual = encode(inputs.prompts, num_prompts)
        swapped = inputs.prompts.replace(positive=~inputs.prompts.positive)
        negative = encode(swapped, num_prompts).pooled
    seen = {name: [] for name in ("embedding", "cross", "self", "ffn")}

    def watch(call, args, kwargs, context):
        module, method = context.module, context.method_name
        result = call(*args, **kwargs)
        if isinstance(module, DecoderLayer) and method in ("look", "read"):
            seen["cross" if method == "look" else "ffn"].append(result)
        elif isinstance(module, Decoder) and method == "predict":
            seen["embedding"].append(result[0])
        elif module.name == "self_norm" and method == "__call__":
            seen["self"].append(result)
        return result

    changed = replaced_masks(blocked, flips)
    with (
        nn.intercept_methods(watch),
        nn.intercept_methods(changed),
        nn.intercept_methods(rules),
    ):
        outputs = model.apply(
            variables,
            features,
            inputs.text,
            visual,
            inputs.memory,
            every_layer=True,
            query_index=inputs.query_index,
            memory_index=inputs.memory_index,
            method="decode",
        )
    num_memory = 0 if inputs.memory is None else model.config.decoder.num_memory
    num_looking = seen["cross"][0].shape[1]

    def official_order(x, tokens):
        """Ours: object, text_query, visual_query, memory, text_token. Memory comes last there."""
        slots, memory = (
            x[:, : num_looking - num_memory],
            x[:, num_looking - num_memory : num_looking],
        )
        parts = [slots, x[:, num_looking:], *tokens, memory]
        return jnp.concatenate(parts, axis=1)

    own, ffn = [], []
    for i, (read, result) in enumerate(zip(seen["self"], seen["ffn"], strict=True)):
        tokens = ([], [])
        if visual is not None:
            tokens = _visual_tokens(model, params, visual, inputs.prompts, i)
        own.append(official_order(read, tokens[0]))
        ffn.append(official_order(result, tokens[1]))
    return Trace(outputs, visual, negative, seen["embedding"], seen["cross"], own, ffn)


def replaced_masks(blocked: list | None, flips: jax.Array | None):
    """An interceptor under which each decoder layer sees other pixels than it would by itself.

    blocked are official attention masks, bool [B, N, S] of each layer, without the rows of memory, which
    sees the masks of the last round. flips, int32 [F, 4], are (layer, image, slot, pixel) of bits of
    our own masks to turn over; layer -1 is none.
    """
    layers = iter(range(10**6))

    def change(call, args, kwargs, context):
        if not (isinstance(context.module, DecoderLayer) and context.method_name == "look"):
            return call(*args, **kwargs)
        *given, sees = args
        i = next(layers)
        if blocked is not None:
            official = ~blocked[i][:, : sees.shape[1]]
            sees = jnp.concatenate([official, sees[:, official.shape[1] :]], axis=1)
        if flips is not None:
            here, places = flips[:, 0] == i, tuple(flips[:, 1:].T)
            sees = sees ^ jnp.zeros(sees.shape, bool).at[places].max(here, mode="drop")
        return call(*given, sees, **kwargs)

    return change


def _visual_tokens(model, params, visual, prompts, i):
    """What the visual tokens become in layer i, ([B, K, D],) after reading and after the layer.

    Nothing depends on it, so the decoder leaves it out. In v1 the padding reads itself.
    """
    tokens = visual.levels[i % NUM_LEVELS]
    nothing = params["decoder"]["sign_embedding"][1][None, None]
    tokens = tokens - jnp.where(visual.valid[..., None], 0.0, nothing)  # padding has no sign there
    reads = visual.prompt[:, :, None] == visual.prompt[:, None, :]
    if model.config.decoder.empty_pooled == 0:  # v0 and demo
        reads = reads & visual.valid[:, :, None]
    read = []

    def watch(call, args, kwargs, context):
        result = call(*args, **kwargs)
        if context.module.name == "self_norm":
            read.append(result)
        return result

    with nn.intercept_methods(watch):
        layer = model.bind({"params": params}).decoder.layers[i]
        result = layer.read(tokens, tokens, tokens, tokens, reads)
    return read, [result]


@dataclasses.dataclass(frozen=True)
class Run:
    """A run and what of its surroundings the comparison needs."""

    subject: Subject
    features: Features
    trace: Trace
    tolerance: float
    followed: bool  # the official attention masks
    flips: jax.Array | None = None  # bits turned over, where the file has no masks
    note: str = ""

    @property
    def num_layers(self) -> int:
        return self.subject.config.decoder.num_layers

    def prediction(self, name: str) -> int:
        """The index of prediction "0" ... "final"."""
        return self.num_layers if name == "final" else int(name)

    def masks(self, embedding):
        """Mask logits float32 [B, N, h, w] of embeddings [B, N, D]."""
        with jax.default_matmul_precision(PRECISION):
            return mask_logits(embedding, self.features)

    def classes(self, embedding):
        """Class logits float32 [B, N, C] of class embeddings [B, N, V]."""
        with jax.default_matmul_precision(PRECISION):
            scale = self.subject.params["logit_scale"]
            return class_logits(embedding, self.subject.table, scale)

    def attention_logits(self, i: int) -> np.ndarray:
        """The mask logits [B, N, S] that prediction i gives at the level of layer i."""
        with jax.default_matmul_precision(PRECISION):
            small = self.features.mask_levels[i % NUM_LEVELS]
            return np.asarray(jnp.einsum("bnd,bsd->bns", self.trace.embedding[i], small))

    def chosen(self):
        """Mask logits [B, P, h, w] of the slot that answers each prompt."""
        slots, choice = (
            self.trace.outputs.visual.mask_embedding[-1],
            self.trace.outputs.visual_choice,
        )
        return self.masks(jnp.take_along_axis(slots, choice[:, :, None], axis=1))


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
    flips = _flip_rows([]) if blocked is None else None
    trace = run_decoder(subject, features, inputs, num_prompts, blocked, flips)
    found = Run(subject, features, trace, tolerance, blocked is not None, flips)
    if blocked is None:
        found = _settle(found, stored, inputs, num_prompts, prefix)
    return found, claims(found, stored, prefix)


MAX_TRIALS = 60
MAX_ROWS = (
    512  # of flips: one bit of a remembered mask counts for every slot and layer that sees it
)
GROUPS = {  # the stored final predictions that show what a group of slots has seen
    "object": ("masks", "captions", "logits"),
    "text": ("gmasks", "gtexts"),
    "visual": ("smasks", "stexts", "smaskembs"),
}


@dataclasses.dataclass(frozen=True)
class Doubt:
    """A bit of an attention mask that rounding may have put on either side."""

    distance: float  # |logit| over the error that rounding brings to logits of this layer
    logit: float  # |logit|
    rows: tuple[tuple[int, int, int, int], ...]  # (layer, image, slot, pixel) that it sets
    group: str  # the slots that would show it: of this group,
    image: int
    slots: tuple[int, ...]  # counted within the group


def _settle(run: Run, stored: Stored, inputs: Inputs, num_prompts: int, prefix: str) -> Run:
    """The run, with those bits turned over that the release must have had the other way round.

    Without stored attention masks a mask logit at rounding distance of zero may fall on either side,
    and what follows then differs by more than rounding. Bits within MARGIN of zero are tried one by
    one, the likeliest first, where the final predictions of a slot are worse than those of most
    slots. One is kept that takes a third of the error of its slots away and helps its group.
    """
    turned: list[Doubt] = []
    tried: set[tuple] = set()
    errors = _slot_errors(run, stored, prefix)
    while len(tried) < MAX_TRIALS:
        doubt = next(iter(_doubts(run, inputs, errors, tried)), None)
        if doubt is None:
            break
        tried.add(doubt.rows)
        flips = _flip_rows([*turned, doubt])
        if flips is None:
            continue
        trace = run_decoder(run.subject, run.features, inputs, num_prompts, None, flips)
        other = dataclasses.replace(run, trace=trace, flips=flips)
        found = _slot_errors(other, stored, prefix)
        own, whole = (doubt.group, doubt.image, doubt.slots), (doubt.group, doubt.image, ())
        if _error(found, own) < 0.67 * _error(errors, own) and _error(found, whole) <= _error(
            errors, whole
        ):
            turned.append(doubt)
            run, errors = other, found
    if not turned:
        return run
    largest = max(doubt.logit for doubt in turned)
    note = f"as the release at {len(turned)} mask bits, |logit| < {largest:.0e}"
    return dataclasses.replace(run, note=note)


def _slot_errors(run: Run, stored: Stored, prefix: str) -> dict[tuple[str, int], np.ndarray]:
    """Relative rms error of the final predictions of each slot, (group, image) -> [N], NaN: unknown."""
    errors = {}
    for group in _groups(run):
        outputs = getattr(run.trace.outputs, group).mask_embedding
        wrong, count = np.zeros((2, *outputs.shape[1:3]))  # [B, N]
        for kind in GROUPS[group]:
            name = f"{prefix}pred_{kind}/final"
            if f"{name}/shape" in stored:
                _add_errors(stored, name, _predicted(run, kind, run.num_layers), wrong, count)
        if f"{prefix}prev_mask/shape" in stored and group == _groups(run)[-1]:
            choice = np.asarray(run.trace.outputs.visual_choice)  # [B, P]
            chosen = np.zeros((2, *choice.shape))
            _add_errors(stored, f"{prefix}prev_mask", run.chosen(), *chosen)
            for total, part in zip((wrong, count), chosen):
                np.add.at(total, (np.arange(len(choice))[:, None], choice), part)
        with np.errstate(invalid="ignore"):
            errors |= {(group, b): row for b, row in enumerate(np.sqrt(wrong / count))}
    return errors


def _add_errors(stored: Stored, name: str, ours, wrong: np.ndarray, count: np.ndarray) -> None:
    """Adds the squared relative errors of an array [B, N, ...] to wrong [B, N], their number to count."""
    ours = np.asarray(ours)
    want = stored[f"{name}/values"].astype(np.float64)
    at = places(ours.size, want.size)
    slot = at // (ours.size // wrong.size)
    difference = np.square(ours.reshape(-1)[at] - want) / np.square(want).mean()
    wrong += np.bincount(slot, difference, wrong.size).reshape(wrong.shape)
    count += np.bincount(slot, minlength=wrong.size).reshape(wrong.shape)


def _error(errors: dict, where: tuple[str, int, tuple[int, ...]]) -> float:
    """The rms error of some slots of an image, of all known ones without slots; 0 if unknown."""
    group, image, slots = where
    row = errors[group, image][list(slots) if slots else slice(None)]
    return float(np.sqrt(np.square(row[~np.isnan(row)]).mean())) if not np.isnan(row).all() else 0.0


def _groups(run: Run) -> list[str]:
    """The groups of slots that look at the image, memory left out, in order."""
    if run.subject.config.decoder.rules == "shared":
        return ["object"]
    return [group for group in GROUPS if getattr(run.trace.outputs, group) is not None]


def _doubts(run: Run, inputs: Inputs, errors: dict, tried: set) -> list[Doubt]:
    """Bits that may be the other way round and were not tried yet, the likeliest first."""
    usual = {}
    for group in _groups(run):
        known = np.concatenate([row for (name, _), row in errors.items() if name == group])
        known = known[~np.isnan(known)]
        usual[group] = np.median(known) if len(known) else np.inf
    found = [*_looking_doubts(run), *_memory_doubts(run, inputs)]
    found = [
        doubt
        for doubt in found
        if doubt.rows not in tried
        and _error(errors, (doubt.group, doubt.image, doubt.slots)) > usual[doubt.group]
    ]
    return sorted(found, key=lambda doubt: doubt.distance)


def _rounding(layer: int, logits: np.ndarray) -> float:
    """What rounding does to the mask logits that layer sees: grows from layer to layer (README)."""
    return float((2e-6 + 4e-6 * layer) * np.sqrt(np.square(logits).mean()))


def _looking_doubts(run: Run) -> list[Doubt]:
    """Of the slots' own masks."""
    owner = []  # (group, slot within it) of each slot that looks, memory left out
    for group in _groups(run):
        number = getattr(run.trace.outputs, group).mask_embedding.shape[2]
        owner += [(group, n) for n in range(number)]
    found = []
    for i in range(run.num_layers):
        logits = run.attention_logits(i)[:, : len(owner)]
        rounding = _rounding(i, logits)
        for b, n, s in np.argwhere(np.abs(logits) < MARGIN).tolist():
            size, (group, slot) = float(abs(logits[b, n, s])), owner[n]
            found.append(Doubt(size / rounding, size, ((i, b, n, s),), group, b, (slot,)))
    return found


def _memory_doubts(run: Run, inputs: Inputs) -> list[Doubt]:
    """Of the masks of the last round, which memory slots see and the slots of their prompt read."""
    if inputs.memory is None:
        return []
    memory_index = np.asarray(inputs.memory_index)  # [layers, B, memory]
    decoder = run.subject.config.decoder
    first = run.trace.cross[0].shape[1] - decoder.num_memory
    found = []
    for level in range(NUM_LEVELS):
        with jax.default_matmul_precision(PRECISION):
            said = inputs.memory.mask_embedding.astype(jnp.float32)
            logits = jnp.einsum("bpd,bsd->bps", said, run.features.mask_levels[level])
        logits = np.asarray(logits)
        rounding = _rounding(run.num_layers, logits)
        for b, p, s in np.argwhere(np.abs(logits) < MARGIN).tolist():
            rows = tuple(
                (i, b, first + m, s)
                for i in range(level, run.num_layers, NUM_LEVELS)
                for m in np.flatnonzero(memory_index[i, b] == p).tolist()
            )
            per = decoder.queries_per_prompt
            size = float(abs(logits[b, p, s]))
            slots = tuple(range(p * per, (p + 1) * per))
            found.append(Doubt(size / rounding, size, rows, "visual", b, slots))
    return found


def _flip_rows(turned: list[Doubt]) -> jax.Array | None:
    """int32 [MAX_ROWS, 4] of bits (layer, image, slot, pixel), filled up with layer -1; None: too many."""
    places = [row for doubt in turned for row in doubt.rows]
    if len(places) > MAX_ROWS:
        return None
    rows = np.zeros((MAX_ROWS, 4), np.int32)
    rows[:, 0] = -1
    if places:
        rows[: len(places)] = places
    return jnp.asarray(rows)


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
            found[name] = Claim(partial(_margins, run, stored[name]), compare=_compare_margins)
        elif match := HIDDEN.fullmatch(rest):
            value = partial(_hidden, run, match[1], int(match[2]))
            found[name] = Claim(value, run.tolerance, run.note or _note(first, int(match[2]) + 1))
        elif match := PREDICTED.fullmatch(rest):
            index = run.prediction(match[2])
            value = partial(_predicted, run, match[1], index)
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
    logits = run.attention_logits(i)
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

    return Claim(lambda: run.attention_logits(i) < 0, 0.0, compare=compare)


def _margins(run: Run, stored: np.ndarray) -> np.ndarray:
    """attn_margin float64 [L, 4]: min |logit|, count below 1e-4, count below 1e-3, elements."""
    rows = []
    for i in range(len(stored)):
        size = np.abs(run.attention_logits(i))
        rows.append([size.min(), (size < 1e-4).sum(), (size < 1e-3).sum(), size.size])
    return np.array(rows, np.float64)


def _compare_margins(stored: Stored, name: str, ours: np.ndarray, claim: Claim) -> Line:
    """Counts near a threshold move by rounding: the smallest logit must agree within MARGIN."""
    want = stored[name]
    error = np.abs(ours[:, 0] - want[:, 0]).max()
    near = np.abs(ours[:, 2] - want[:, 2]) <= 2 + 0.5 * want[:, 2]
    passed = bool(error < MARGIN and near.all() and (ours[:, 3] == want[:, 3]).all())
    return Line(name, passed, float(error), float(error), MARGIN, "counts of small logits")


def _hidden(run: Run, kind: str, layer: int):
    values = {"cross": run.trace.cross, "self": run.trace.self_, "ffn": run.trace.ffn}[kind]
    return values[layer].transpose(1, 0, 2)


def _predicted(run: Run, kind: str, index: int):
    """Prediction `index` under its official name."""
    outputs, visual = run.trace.outputs, run.trace.visual
    match kind:
        case "logits":
            return run.classes(outputs.object.class_embedding[index])
        case "captions":
            return outputs.object.class_embedding[index]
        case "masks":
            return run.masks(outputs.object.mask_embedding[index])
        case "maskembs":
            return outputs.object.mask_embedding[index]
        case "gmasks":
            return run.masks(outputs.text.mask_embedding[index])
        case "gtexts":
            return outputs.text.class_embedding[index]
        case "smasks":
            return run.masks(outputs.visual.mask_embedding[index])
        case "stexts":
            return outputs.visual.class_embedding[index]
        case "smaskembs":
            return outputs.visual.mask_embedding[index]
        case "pspatials":
            return visual.pooled
        case "nspatials":
            return run.trace.negative
    raise ValueError(f"no prediction is called pred_{kind}")


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
