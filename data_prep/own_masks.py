"""Your own images with masks: a PNG of class numbers for each image, and the names in classes.txt."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from data_prep.items import Item, Map, Segment, make_record
from data_prep.own_files import NO_CLASS, Found, folder_pairs, matched, read_lines, upright
from data_prep.writer import Classes
from seem_jax.data.schema import Record

VOID = 255  # of an index mask, unless classes.txt has so many lines


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskItem(Item):
    """An item with an index mask."""

    class_of_pixel: tuple[int, ...]  # contiguous class of each pixel value; -1 for none
    num_things: int


def find_masks(source: Path, things: Sequence[str]) -> Found | None:
    """Images and index masks."""
    pairs = {split: (images, masks) for split, images, masks in folder_pairs(source, "masks")}
    if not pairs:
        return None
    names = read_lines(source / "classes.txt")
    listed = [name for name in names if name.lower() not in NO_CLASS]
    missing = sorted(set(things) - set(listed))
    if missing:
        raise ValueError(
            f"--things {missing}: not in {source / 'classes.txt'}, which has {listed}."
        )
    ordered = [name for name in listed if name in things]
    ordered += [name for name in listed if name not in things]
    of_pixel = [ordered.index(name) if name in ordered else -1 for name in names]
    classes = Classes(tuple(ordered), len(things), tuple(names.index(name) for name in ordered))
    items: dict[str, list[Item]] = {}
    for split, (images, masks) in pairs.items():
        items[split] = [
            MaskItem(
                image_id=number,
                file_name=image.name,
                image_path=image,
                map_path=mask,
                class_of_pixel=tuple(of_pixel),
                num_things=len(things),
            )
            for number, (image, mask) in enumerate(matched(images, masks, ".png"))
        ]
    return Found(classes, items, make_masks)


def make_masks(item: MaskItem) -> Record:
    """A record with the segments of an index mask."""
    return make_record(upright(item), read_index_mask)


def read_index_mask(item: MaskItem, masks: Sequence[bytes]) -> Map:
    """A segment for each class of stuff, and for each connected part of a class of things."""
    labels = read_mask(item.map_path)
    if labels.shape != (item.height, item.width):
        raise ValueError(
            f"{item.map_path} is {labels.shape} pixels, its image {(item.height, item.width)}."
        )
    values = np.unique(labels).tolist()
    void = VOID if len(item.class_of_pixel) <= VOID else -1
    values = [value for value in values if value != void]
    unknown = [value for value in values if not 0 <= value < len(item.class_of_pixel)]
    if unknown:
        raise ValueError(
            f"{item.map_path} has the pixel values {unknown}, for which classes.txt has no line "
            f"({len(item.class_of_pixel)} values are known)."
        )
    pixels = np.zeros(labels.shape, np.int64)
    segments: list[Segment] = []
    for value in values:
        category = item.class_of_pixel[value]
        if category < 0:
            continue
        mask = (labels == value).astype(np.uint8)
        count, parts = 1, mask
        if category < item.num_things:
            total, parts = cv2.connectedComponents(mask, connectivity=8)
            count = total - 1
        for part in range(1, count + 1):
            segments.append(Segment(len(segments) + 1, category))
            pixels[parts == part] = len(segments)
    return Map(pixels, tuple(segments))


def read_mask(path: Path) -> np.ndarray:
    """The numbers of a one-channel PNG [H, W], as they are stored."""
    try:
        with Image.open(path) as image:
            labels = np.array(image)
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} is missing or no readable PNG.") from error
    if labels.ndim != 2 or labels.dtype not in (np.uint8, np.uint16, np.int32, bool):
        raise ValueError(
            f"{path}: expected a mask with one channel of class numbers, found {labels.dtype} "
            f"{labels.shape}; colours must be turned into numbers first."
        )
    return labels.astype(np.int64)
