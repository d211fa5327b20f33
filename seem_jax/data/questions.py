"""What an example asks for: phrases and drawn prompts, chosen at random from the truth in sight."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from seem_jax.config import DataConfig
from seem_jax.data import strokes
from seem_jax.data.draft import Draft, Phrase, Ref
from seem_jax.name_templates import spoken

MIRRORED = {"left": "right", "right": "left", "leftmost": "rightmost", "rightmost": "leftmost"}
SIDES = re.compile(r"\b(leftmost|rightmost|left|right)\b")


def sentences(
    draft: Draft, count: int, config: DataConfig, rng: np.random.Generator
) -> list[Phrase]:
    """One sentence each of up to `count` random objects, of those that can be seen.

    With config.keep_hidden the others count too, and have empty masks. In a flipped image "left" and
    "right" change places, unless not config.mirror_text.
    """
    record = draft.record
    texts: dict[int, list[str]] = {}
    for text, index in zip(record.phrase_text, record.phrase_object, strict=True):
        texts.setdefault(index, []).append(text)
    phrases: list[Phrase] = []
    for index in rng.permutation(list(texts)).tolist():
        text = texts[index][int(rng.integers(len(texts[index])))].lower()
        mask = draft.object_mask(index)
        if not config.keep_hidden and not mask.any():
            draft.dropped["hidden_objects"] += 1
            continue
        text = mirror(text) if draft.placement.flip and config.mirror_text else text
        phrases.append(Phrase(text, text, draft.add(mask)))
        if len(phrases) == count:
            break
    return phrases


def class_phrases(
    draft: Draft,
    class_names: Sequence[str],
    templates: Sequence[str],
    count: int,
    rng: np.random.Generator,
) -> list[Phrase]:
    """All segments of up to `count` random classes, a template for each, in order of size."""
    chosen = rng.permutation(np.unique(draft.labels))[:count].tolist()
    phrases = []
    for label, ref in zip(draft.labels, draft.segments, strict=True):
        if label in chosen:
            name = spoken(class_names[label]).lower()
            template = templates[int(rng.integers(len(templates)))]
            phrases.append(Phrase(template.format(name), name, ref))
    return phrases


def draw_prompts(draft: Draft, config: DataConfig, rng: np.random.Generator) -> None:
    """Fills the prompts: some with their phrases, then other segments, until there are enough."""

    def drawn(ref: Ref) -> bool:
        if len(draft.prompts) == config.max_prompts or ref in draft.prompts:
            return False
        kind = config.prompt_kinds[int(rng.integers(len(config.prompt_kinds)))]
        drawing = strokes.draw(kind, draft.pixels(ref), rng)
        if len(drawing):
            draft.prompts.append(ref)
            draft.drawings.append(drawing)
        return len(drawing) > 0

    for phrase in draft.phrases:
        asked = rng.random() < config.phrase_prompt_probability
        draft.phrase_prompt.append(len(draft.prompts) - 1 if asked and drawn(phrase.ref) else -1)
    segments = draft.segments
    for number in rng.permutation(len(segments)).tolist():
        drawn(segments[number])


def mirror(text: str) -> str:
    """The sentence for the mirrored image: "left of" becomes "right of", and so on."""
    return SIDES.sub(lambda match: MIRRORED[match[0]], text)
