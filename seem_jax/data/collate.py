"""One record -> one example of static shapes: a `Batch` without its leading axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import jax
import numpy as np

from seem_jax.config import DataConfig
from seem_jax.data import draft as drafts
from seem_jax.data import questions, strokes, transforms
from seem_jax.data.draft import Draft, Dropped, Ref
from seem_jax.data.schema import Record
from seem_jax.types import Batch, MaskRefs, Objects, Phrases, VisualPrompts


class Tokenizer(Protocol):
    """What the data pipeline needs of models.language.tokenizer.Tokenizer."""

    def encode(self, texts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]: ...


def training_example(
    record: Record,
    sample_id: int,
    class_names: Sequence[str],
    templates: Sequence[str],
    config: DataConfig,
    tokenizer: Tokenizer,
    rng: np.random.Generator,
) -> tuple[Batch, Dropped]:
    """A randomly placed image with random phrases and drawn prompts, and what did not fit.

    1 to max_texts sentences of distinct objects; where there are none, the names of as many classes,
    in random templates, with all their segments. Then max_prompts drawings: first those that come
    with a phrase, then of random other segments. As the official mapper
    (coco_panoptic_interactive_dataset_mapper.py) where config.keep_hidden, not config.mirror_text and
    phrase_prompt_probability is 0, but for LVIS masks, which were chosen on the whole image
    (data_prep/lvis_masks.py), and segments of fewer than 10 pixels, for which others are drawn on.
    """
    image = drafts.decode(record)
    placement = transforms.jitter(
        image.shape[:2], config.image_size, config.min_scale, config.max_scale, config.flip, rng
    )
    draft = drafts.start(record, sample_id, image, placement, config)
    drafts.check_truth(record, len(class_names))
    count = int(rng.integers(1, drafts.num_texts(config) + 1))
    draft.phrases = questions.sentences(draft, count, config, rng)
    if not draft.phrases:
        draft.is_class = True
        draft.phrases = questions.class_phrases(draft, class_names, templates, count, rng)
        draft.dropped["class_phrases"] += max(0, len(draft.phrases) - config.max_phrases)
        del draft.phrases[config.max_phrases :]
    questions.draw_prompts(draft, config, rng)
    points, owner = strokes.sample(draft.drawings, config.max_points, rng)
    return _finish(draft, points, owner, config, tokenizer), draft.dropped


def _unfilled(draft: Draft, config: DataConfig) -> Batch:
    """The image and the segments of a draft; no phrase has its tokens yet, no prompt its points."""
    bound = config.max_phrases
    return Batch(
        sample_id=np.int32(draft.sample_id),
        image=draft.image,
        image_size=np.array(draft.placement.visible, np.int32),
        planes=draft.planes,
        objects=Objects(
            masks=_refs(draft.segments, config.max_objects),
            label=np.zeros(config.max_objects, np.int32),
        ),
        phrases=Phrases(
            token_ids=np.zeros((bound, config.max_phrase_tokens), np.int32),
            token_valid=np.zeros((bound, config.max_phrase_tokens), bool),
            masks=_refs([phrase.ref for phrase in draft.phrases], bound),
            group=np.zeros(bound, np.int32),
            is_class=np.bool_(draft.is_class),
            prompt=np.full(bound, -1, np.int32),
        ),
        strokes=VisualPrompts(
            points=np.zeros((config.max_points, 2), np.float32),
            prompt=np.zeros(config.max_points, np.int32),
            positive=np.zeros(config.max_points, bool),
            valid=np.zeros(config.max_points, bool),
        ),
        prompt_masks=_refs(draft.prompts, config.max_prompts),
    )


def stack(examples: Sequence[Batch]) -> Batch:
    """One batch of several examples."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *examples)


def batch_shapes(config: DataConfig, number: int) -> Batch:
    """The ShapeDtypeStructs of a batch of `number` examples; reads no data."""
    side = config.image_size
    blank = Record(image_id=0, file_name="", image=b"", height=side, width=side)
    image, placement = np.zeros((side, side, 3), np.uint8), transforms.fitted((side, side), side)
    example = _unfilled(drafts.start(blank, 0, image, placement, config), config)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((number, *x.shape), x.dtype), example)


def _finish(
    draft: Draft, points: np.ndarray, owner: np.ndarray, config: DataConfig, tokenizer: Tokenizer
) -> Batch:
    """Everything as arrays of static shapes."""
    example = _unfilled(draft, config)
    count = len(draft.phrases)
    if count:
        texts = [phrase.text for phrase in draft.phrases]
        ids, valid = tokenizer.encode(texts, config.max_phrase_tokens)
        example.phrases.token_ids[:count] = ids
        example.phrases.token_valid[:count] = valid
        draft.dropped["long_phrases"] += int(valid.all(axis=1).sum())
    groups = list(dict.fromkeys(phrase.group for phrase in draft.phrases))
    example.phrases.group[:count] = [groups.index(phrase.group) for phrase in draft.phrases]
    example.phrases.prompt[:count] = draft.phrase_prompt
    example.objects.label[: len(draft.labels)] = draft.labels
    side = config.image_size
    example.strokes.points[: len(points)] = points / side
    example.strokes.prompt[: len(points)] = owner
    example.strokes.positive[: len(points)] = True
    example.strokes.valid[: len(points)] = True
    return example


def _refs(refs: Sequence[Ref], bound: int) -> MaskRefs:
    """Mask references padded to `bound` rows."""
    rows = np.zeros((bound, 3), np.int32)
    rows[: len(refs)] = np.array(refs, np.int32).reshape(-1, 3)
    return MaskRefs(
        plane=rows[:, 0],
        select=rows[:, 1].astype(np.uint8),
        value=rows[:, 2].astype(np.uint8),
        valid=np.arange(bound) < len(refs),
    )
