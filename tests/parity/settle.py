"""Attention masks that a file does not hold, found again from the predictions that follow from them.

A mask logit at rounding distance of zero may fall on either side, in the release as in our decoder.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from seem_jax.config import NUM_LEVELS
from tests.parity.decoding import MARGIN, Inputs, Run, run_decoder
from tests.parity.report import Stored, places, shape
from tests.parity.subject import PRECISION

MAX_TRIALS = 40
LIKELY = 4.0  # largest Doubt.distance that is tried
WORSE = 2.0  # times the median error of a slot: what makes one suspect
# One bit of a remembered mask counts for every slot and layer that sees it.
MAX_ROWS = 512
GROUPS = {  # the stored final predictions that show what a group of slots has seen
    "object": ("masks", "captions", "logits"),
    "text": ("gmasks", "gtexts"),
    "visual": ("smasks", "stexts", "smaskembs"),
}
RESIZED = ("resize/enlarged", "resize/reduced")  # masks of the objects, in a file of results


@dataclasses.dataclass(frozen=True)
class Doubt:
    """A bit of an attention mask that rounding may have put on either side."""

    distance: float  # |logit| over the error that rounding brings to logits of this layer
    logit: float  # |logit|
    rows: tuple[tuple[int, int, int, int], ...]  # (layer, image, slot, pixel) that it sets
    group: str  # the slots that would show it: of this group,
    image: int
    slots: tuple[int, ...]  # counted within the group


def settle(run: Run, stored: Stored, inputs: Inputs, num_prompts: int, prefix: str) -> Run:
    """The run, with those bits turned over that the release must have had the other way round.

    Without stored attention masks a mask logit at rounding distance of zero may fall on either side,
    and what follows then differs by more than rounding. Bits near zero are tried one by one, the
    likeliest first, where the final predictions of a slot are worse than those of most slots. One is
    kept that takes a third of the error of its slots away and helps its group.
    """
    turned: list[Doubt] = []
    tried: set[tuple] = set()
    errors = _slot_errors(run, stored, prefix)
    while len(tried) < MAX_TRIALS:
        doubt = next(iter(_doubts(run, inputs, errors, tried)), None)
        if doubt is None:
            break
        tried.add(doubt.rows)
        flips = flip_rows([*turned, doubt])
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
                _add_errors(stored, name, run.predicted(kind, run.num_layers), wrong, count)
        if f"{prefix}prev_mask/shape" in stored and group == _groups(run)[-1]:
            choice = np.asarray(run.trace.outputs.visual_choice)  # [B, P]
            chosen = np.zeros((2, *choice.shape))
            _add_errors(stored, f"{prefix}prev_mask", run.chosen(), *chosen)
            for total, part in zip((wrong, count), chosen):
                np.add.at(total, (np.arange(len(choice))[:, None], choice), part)
        for name in RESIZED if group == "object" else ():
            if f"{name}/shape" in stored:  # of the first image
                ours = run.resized(stored["image_size"], shape(stored, name)[-2:])
                _add_errors(stored, name, ours[None], wrong[:1], count[:1])
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
        and doubt.distance < LIKELY
        and _error(errors, (doubt.group, doubt.image, doubt.slots)) > WORSE * usual[doubt.group]
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
            if rows:
                found.append(Doubt(size / rounding, size, rows, "visual", b, slots))
    return found


def flip_rows(turned: list[Doubt]) -> jax.Array | None:
    """int32 [MAX_ROWS, 4] of bits (layer, image, slot, pixel), filled up with layer -1; None: too many."""
    places = [row for doubt in turned for row in doubt.rows]
    if len(places) > MAX_ROWS:
        return None
    rows = np.zeros((MAX_ROWS, 4), np.int32)
    rows[:, 0] = -1
    if places:
        rows[: len(places)] = places
    return jnp.asarray(rows)
