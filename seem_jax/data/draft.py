"""An image with its truth in the training square: segments, other masks, and where each is stored.

Masks stay bytes: segments in the index map of plane 0, other masks (referred objects that are no
segment) as single bits of the planes after it.
"""

from __future__ import annotations

import collections
import dataclasses

import cv2
import numpy as np

from seem_jax import image as images
from seem_jax.config import DataConfig
from seem_jax.data import transforms
from seem_jax.data.schema import Record, decode_mask
from seem_jax.data.transforms import Placement

DROPPED = (
    "objects",  # segments beyond max_objects, smallest first
    "class_phrases",  # segments of a chosen class beyond max_phrases, smallest first
    "long_phrases",  # texts that fill all max_phrase_tokens, so were probably cut
    "hidden_objects",  # referred objects passed over because the cut of the image left them out
    "overlaps",  # segments that lost what others cover of them, for want of planes
)
Dropped = collections.Counter  # of the names above; what did not fit the static shapes

Ref = tuple[int, int, int]  # plane, select, value: one row of MaskRefs


@dataclasses.dataclass(frozen=True)
class Phrase:
    """A text and its mask. Phrases of one image with the same group mean the same."""

    text: str
    group: str
    ref: Ref


def num_texts(config: DataConfig) -> int:
    """How many different texts an image has at most; sentences need a bit of a plane each."""
    return min(config.max_texts, config.max_phrases)


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
        mask = decode_mask(self.record, self.record.object_rle[index], f"object {index}")
        return transforms.place_map(mask, self.placement)

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


def start(
    record: Record, sample_id: int, image: np.ndarray, placement: Placement, config: DataConfig
) -> Draft:
    """The image and the index map in their places."""
    planes = np.zeros((config.num_planes, config.image_size, config.image_size), np.uint8)
    placed = transforms.place_image(image, placement)
    dropped = Dropped(dict.fromkeys(DROPPED, 0))
    draft = Draft(record, sample_id, placement, placed, planes, [], dropped)
    if record.segment_map:
        place_segments(draft, config)
    return draft


def place_segments(draft: Draft, config: DataConfig) -> None:
    """Fills plane 0, the labels and the segments: the largest first, crowds not.

    Segments that are out of sight are gone, or empty with config.keep_hidden.
    """
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
    crowd = np.array(record.segment_crowd, bool)
    areas = np.where(crowd, 0, areas[1:])
    exact = {  # masks of segments that others cover in part
        i: draft.object_mask(number)
        for i, number in enumerate(record.segment_object)
        if number >= 0 and not record.segment_crowd[i]
    }
    for i, mask in exact.items():
        areas[i] = np.count_nonzero(mask)
    order = np.argsort(-areas, kind="stable")
    order = order[(~crowd if config.keep_hidden else areas > 0)[order]]
    draft.dropped["objects"] = max(0, len(order) - config.max_objects)
    order = order[: config.max_objects]
    number = np.zeros(max(256, len(areas) + 1), np.uint8)
    number[order + 1] = np.arange(1, len(order) + 1)
    draft.planes[0] = cv2.LUT(index, number) if index.dtype == np.uint8 else number[index]
    for place, i in enumerate(order.tolist()):
        ref = (0, 255, place + 1)
        if i in exact and not np.array_equal(draft.pixels(ref), exact[i]):
            # Phrases come later and need a bit each.
            if draft.bits + num_texts(config) < 8 * (config.num_planes - 1):
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


def decode(record: Record) -> np.ndarray:
    image = images.decode_image(record.image, name=record.file_name)
    if image.shape[:2] != (record.height, record.width):
        raise ValueError(
            f"{record.file_name} is {image.shape[:2]} (height, width), but its masks are "
            f"{(record.height, record.width)}; convert the data set from matching files."
        )
    return image


def check_truth(record: Record, num_classes: int) -> None:
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
