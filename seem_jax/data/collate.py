"""One record -> one example of static shapes: a `Batch` without its leading axis.

Masks stay bytes: segments in the index map of plane 0, other masks (referred objects that are no
segment) as single bits of the planes after it.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Sequence
from typing import Protocol

import cv2
import jax
import numpy as np
from pycocotools import mask as coco_mask

from seem_jax import image as images
from seem_jax.config import DataConfig
from seem_jax.data import strokes, transforms
from seem_jax.data.schema import Record, run_pixels
from seem_jax.data.transforms import Placement
from seem_jax.name_templates import spoken
from seem_jax.types import Batch, MaskRefs, Objects, Phrases, VisualPrompts

MIRRORED = {"left": "right", "right": "left", "leftmost": "rightmost", "rightmost": "leftmost"}
SIDES = re.compile(r"\b(leftmost|rightmost|left|right)\b")

DROPPED = (
    "objects",  # segments beyond max_objects, smallest first
    "class_phrases",  # segments of a chosen class beyond max_phrases, smallest first
    "long_phrases",  # texts that fill all max_phrase_tokens, so were probably cut
    "hidden_objects",  # referred objects passed over because the cut of the image left them out
    "overlaps",  # segments that lost what others cover of them, for want of planes
)
Dropped = collections.Counter  # of the names above; what did not fit the static shapes

Ref = tuple[int, int, int]  # plane, select, value: one row of MaskRefs


class Tokenizer(Protocol):
    """What the data pipeline needs of models.language.tokenizer.Tokenizer."""

    def encode(self, texts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]: ...


@dataclasses.dataclass(frozen=True)
class Phrase:
    """A text and its mask. Phrases of one image with the same group mean the same."""

    text: str
    group: str
    ref: Ref


@dataclasses.dataclass
class Draft:
    """An example in the making: everything of variable length."""

    record: Record
    sample_id: int
    placement: Placement
    image: np.ndarray  # uint8 [H, W, 3]
    planes: np.ndarray  # uint8 [R, H, W]
    labels: list[int]  # of the segments in plane 0, largest first
    dropped: Dropped
    segments: list[Ref] = dataclasses.field(default_factory=list)  # of the labels
    bits: int = 0  # used so far in the planes 1, 2, ...
    phrases: list[Phrase] = dataclasses.field(default_factory=list)
    is_class: bool = False
    phrase_prompt: list[int] = dataclasses.field(default_factory=list)
    prompts: list[Ref] = dataclasses.field(default_factory=list)
    drawings: list[np.ndarray] = dataclasses.field(default_factory=list)  # of the prompts

    def pixels(self, ref: Ref) -> np.ndarray:
        """The mask, bool [H, W]."""
        plane, select, value = ref
        if select == 255:
            return self.planes[plane] == value
        return (self.planes[plane] & np.uint8(select)) == value

    def object_mask(self, index: int) -> np.ndarray:
        """Object `index` of the record in its place, bool [H, W]."""
        record, code = self.record, self.record.object_rle[index]
        if run_pixels(code) != record.height * record.width:
            raise ValueError(
                f"object {index} of {record.file_name} covers {run_pixels(code)} pixels of "
                f"{record.height * record.width}; convert the data set again."
            )
        counts = {"size": [record.height, record.width], "counts": code}
        return transforms.place_map(coco_mask.decode(counts).view(bool), self.placement)

    def add_object(self, index: int) -> Ref | None:
        """Where object `index` of the record is; None when nothing of it can be seen."""
        mask = self.object_mask(index)
        return self.add(mask) if mask.any() else None

    def add(self, mask: np.ndarray) -> Ref:
        """Where a mask is: the segment that equals it, or a bit that is now its own."""
        number = int(self.planes[0].flat[mask.argmax()])
        if number and np.array_equal(self.pixels((0, 255, number)), mask):
            return 0, 255, number
        plane, bit = 1 + self.bits // 8, 1 << self.bits % 8
        if plane >= len(self.planes):
            raise ValueError(
                f"num_planes = {len(self.planes)} holds {self.bits} overlapping masks and there "
                "are more; raise config.data.num_planes (8 masks a plane, after the first)."
            )
        self.planes[plane] |= mask.view(np.uint8) * np.uint8(bit)
        self.bits += 1
        return plane, bit, bit


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

    1 to max_phrases sentences of distinct objects that are in sight; where there are none, the
    names of as many classes, in random templates, with all their segments. Then max_prompts
    drawings: first those that come with a phrase, then of random other segments. As the official
    mapper, but "left" and "right" change places in the sentences of a flipped image, and objects
    and segments that the cut left out are not asked for.
    """
    image = _decode(record)
    placement = transforms.jitter(
        image.shape[:2], config.image_size, config.min_scale, config.max_scale, config.flip, rng
    )
    draft = _start(record, sample_id, image, placement, config)
    _check_truth(record, len(class_names))
    count = int(rng.integers(1, config.max_phrases + 1))
    draft.phrases = _sentences(draft, count, rng)
    if not draft.phrases:
        draft.is_class = True
        draft.phrases = _class_phrases(draft, class_names, templates, count, rng)
        draft.dropped["class_phrases"] += max(0, len(draft.phrases) - config.max_phrases)
        del draft.phrases[config.max_phrases :]
    draw_prompts(draft, config, rng)
    points, owner = strokes.sample(draft.drawings, config.max_points, rng)
    return _finish(draft, points, owner, config, tokenizer), draft.dropped


def evaluation_example(
    record: Record, sample_id: int, config: DataConfig, tokenizer: Tokenizer
) -> Batch:
    """The whole image in the square, all its phrases in order, the max_prompts largest segments
    as prompts that nobody has drawn yet."""
    image = _decode(record)
    placement = transforms.fitted(image.shape[:2], config.image_size)
    draft = _start(record, sample_id, image, placement, config)
    refs: dict[int, Ref] = {}
    for text, index in zip(record.phrase_text, record.phrase_object, strict=True):
        if index not in refs:
            refs[index] = draft.add(draft.object_mask(index))
        draft.phrases.append(Phrase(text.lower(), text.lower(), refs[index]))
    draft.phrase_prompt = [-1] * len(draft.phrases)
    draft.prompts = draft.segments[: config.max_prompts]
    points, owner = strokes.sample([], config.max_points, np.random.default_rng(0))
    return _finish(draft, points, owner, config, tokenizer)


def blank_example(config: DataConfig) -> Batch:
    """An example in which nothing is valid, with sample_id -1; fills up a last batch."""
    side = config.image_size
    image = np.full((side, side, 3), transforms.PAD_VALUE, np.uint8)
    return _unfilled(config, image, np.zeros((config.num_planes, side, side), np.uint8))


def _unfilled(config: DataConfig, image: np.ndarray, planes: np.ndarray) -> Batch:
    """An image of which nothing else is said yet."""
    bound = config.max_phrases
    return Batch(
        sample_id=np.int32(-1),
        image=image,
        image_size=np.zeros(2, np.int32),
        planes=planes,
        objects=Objects(
            masks=_refs([], config.max_objects), label=np.zeros(config.max_objects, np.int32)
        ),
        phrases=Phrases(
            token_ids=np.zeros((bound, config.max_phrase_tokens), np.int32),
            token_valid=np.zeros((bound, config.max_phrase_tokens), bool),
            masks=_refs([], bound),
            group=np.zeros(bound, np.int32),
            is_class=np.bool_(False),
            prompt=np.full(bound, -1, np.int32),
        ),
        strokes=VisualPrompts(
            points=np.zeros((config.max_points, 2), np.float32),
            prompt=np.zeros(config.max_points, np.int32),
            positive=np.zeros(config.max_points, bool),
            valid=np.zeros(config.max_points, bool),
        ),
        prompt_masks=_refs([], config.max_prompts),
    )


def stack(examples: Sequence[Batch]) -> Batch:
    """One batch of several examples."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *examples)


def mirror(text: str) -> str:
    """The sentence for the mirrored image: "left of" becomes "right of", and so on."""
    return SIDES.sub(lambda match: MIRRORED[match[0]], text)


def _decode(record: Record) -> np.ndarray:
    image = images.decode_image(record.image, name=record.file_name)
    if image.shape[:2] != (record.height, record.width):
        raise ValueError(
            f"{record.file_name} is {image.shape[:2]} (height, width), but its masks are "
            f"{(record.height, record.width)}; convert the data set from matching files."
        )
    return image


def _check_truth(record: Record, num_classes: int) -> None:
    """Raises ValueError for classes that do not exist and for texts that say nothing."""
    categories = [*record.segment_category, *record.object_category]
    if categories and not 0 <= min(categories) <= max(categories) < num_classes:
        raise ValueError(
            f"{record.file_name} has classes from {min(categories)} to {max(categories)}, but there "
            f"are {num_classes}; convert the data set again."
        )
    for place, text in enumerate(record.phrase_text):
        if not text.strip():
            raise ValueError(
                f"sentence {place} of {record.file_name} is empty; correct the annotation and "
                "convert the data set again."
            )


def _start(
    record: Record, sample_id: int, image: np.ndarray, placement: Placement, config: DataConfig
) -> Draft:
    """The image and the index map in their places; segments that are out of sight are gone."""
    planes = np.zeros((config.num_planes, config.image_size, config.image_size), np.uint8)
    placed = transforms.place_image(image, placement)
    dropped = Dropped(dict.fromkeys(DROPPED, 0))
    draft = Draft(record, sample_id, placement, placed, planes, [], dropped)
    if record.segment_map:
        place_segments(draft, config)
    return draft


def place_segments(draft: Draft, config: DataConfig) -> None:
    """Fills plane 0, the labels and the segments: the largest first, crowds not."""
    record = draft.record
    stored = images.decode_index_png(record.segment_map, name=f"segments of {record.file_name}")
    index = transforms.place_map(stored, draft.placement)
    areas = _histogram(index)
    areas = np.pad(areas, (0, max(0, len(record.segment_id) + 1 - len(areas))))
    if len(areas) > len(record.segment_id) + 1:
        raise ValueError(
            f"the segment map of {record.file_name} holds segment {len(areas) - 1}, its table "
            f"only {len(record.segment_id)}; convert the data set again."
        )
    areas = np.where(record.segment_crowd, 0, areas[1:])
    exact = {  # masks of segments that others cover in part
        i: draft.object_mask(number)
        for i, number in enumerate(record.segment_object)
        if number >= 0 and not record.segment_crowd[i]
    }
    for i, mask in exact.items():
        areas[i] = np.count_nonzero(mask)
    order = np.argsort(-areas, kind="stable")[: np.count_nonzero(areas)]
    draft.dropped["objects"] = max(0, len(order) - config.max_objects)
    order = order[: config.max_objects]
    number = np.zeros(max(256, len(areas) + 1), np.uint8)
    number[order + 1] = np.arange(1, len(order) + 1)
    draft.planes[0] = cv2.LUT(index, number) if index.dtype == np.uint8 else number[index]
    for place, i in enumerate(order.tolist()):
        ref = (0, 255, place + 1)
        if i in exact and not np.array_equal(draft.pixels(ref), exact[i]):
            # Phrases come later and need a bit each.
            if draft.bits + config.max_phrases < 8 * (config.num_planes - 1):
                ref = draft.add(exact[i])
            else:
                draft.dropped["overlaps"] += 1
                if not np.count_nonzero(draft.planes[0] == place + 1):
                    continue
        draft.labels.append(record.segment_category[i])
        draft.segments.append(ref)


def _histogram(index: np.ndarray) -> np.ndarray:
    """int64 [n], how often each number up to the largest occurs in a map."""
    if index.dtype != np.uint8:
        return np.bincount(index.ravel())
    counts = cv2.calcHist([index], [0], None, [256], [0, 256]).ravel().astype(np.int64)
    return np.trim_zeros(counts, "b")


def _sentences(draft: Draft, count: int, rng: np.random.Generator) -> list[Phrase]:
    """One sentence each of up to `count` random objects that can be seen."""
    record = draft.record
    sentences: dict[int, list[str]] = {}
    for text, index in zip(record.phrase_text, record.phrase_object, strict=True):
        sentences.setdefault(index, []).append(text)
    phrases: list[Phrase] = []
    for index in rng.permutation(list(sentences)).tolist():
        text = sentences[index][int(rng.integers(len(sentences[index])))].lower()
        ref = draft.add_object(index)
        if ref is None:
            draft.dropped["hidden_objects"] += 1
            continue
        text = mirror(text) if draft.placement.flip else text
        phrases.append(Phrase(text, text, ref))
        if len(phrases) == count:
            break
    return phrases


def _class_phrases(
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


def _finish(
    draft: Draft, points: np.ndarray, owner: np.ndarray, config: DataConfig, tokenizer: Tokenizer
) -> Batch:
    """Everything as arrays of static shapes; no field of the blank example stays as it was."""
    example = _unfilled(config, draft.image, draft.planes)
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
    return example.replace(
        sample_id=np.int32(draft.sample_id),
        image_size=np.array(draft.placement.visible, np.int32),
        objects=example.objects.replace(masks=_refs(draft.segments, config.max_objects)),
        phrases=example.phrases.replace(
            masks=_refs([phrase.ref for phrase in draft.phrases], config.max_phrases),
            is_class=np.bool_(draft.is_class),
        ),
        prompt_masks=_refs(draft.prompts, config.max_prompts),
    )


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
