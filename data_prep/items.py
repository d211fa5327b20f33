"""What a record is made of, whatever the format it comes from, and how it is made."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from data_prep.annotations import Object, encode_index, image_header, read_image, rle_counts
from data_prep.writer import MissingInputError
from seem_jax.data.schema import Record

NEVER = -1  # segment_object of a segment whose mask the map tells


@dataclasses.dataclass(frozen=True)
class Segment:
    """One segment of an index map."""

    id: int  # in the source
    category: int  # contiguous
    crowd: bool = False


@dataclasses.dataclass(frozen=True)
class Ref:
    """The sentences about one object, in file order."""

    ref_id: int
    ann_id: int
    image_id: int
    split: str
    sentences: tuple[str, ...]  # the field `raw`, as officially used


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
    """One image and what its annotation files say. Paths stay out of the repr; see writer.Plan."""

    image_id: int
    file_name: str  # as it will stand in the record
    image_path: Path = dataclasses.field(repr=False)
    height: int = 0  # as annotated; 0 where no file says it
    width: int = 0
    map_path: Path | None = dataclasses.field(default=None, repr=False)  # what read_map reads
    segments: tuple[Segment, ...] = ()  # where a file lists them
    objects: tuple[Object, ...] = ()
    refs: tuple[Ref, ...] = ()
    captions: tuple[str, ...] = ()
    sequence: str = ""
    frame: int = -1


@dataclasses.dataclass(frozen=True)
class Map:
    """The segments of an image. Pixels: 0 no segment, i + 1 the segment i."""

    pixels: np.ndarray  # int [H, W]
    segments: tuple[Segment, ...]
    ignore: np.ndarray | None = None  # bool [H, W], pixels that no score counts
    exact: tuple[np.ndarray | int, ...] = ()  # segment_object, or a mask to become an object


ReadMap = Callable[[Item, Sequence[bytes]], Map]  # from the item and the masks of its objects


def make_record(item: Item, read_map: ReadMap | None = None) -> Record:
    """The record of an image with its segments, objects, sentences and captions.

    Raises ValueError naming the file that is missing, damaged or of another size than annotated.
    """
    height, width = item.height, item.width
    if not height:
        height, width = image_header(item.image_path)
        item = dataclasses.replace(item, height=height, width=width)
    place = {entry.id: number for number, entry in enumerate(item.objects)}
    texts = [(text, place[ref.ann_id]) for ref in item.refs for text in ref.sentences]
    record = Record(
        image_id=item.image_id,
        file_name=item.file_name,
        image=read_image(item.image_path, height, width),
        height=height,
        width=width,
        object_rle=[rle_counts(entry, height, width) for entry in item.objects],
        object_category=[entry.category for entry in item.objects],
        phrase_text=[text for text, _ in texts],
        phrase_object=[number for _, number in texts],
        sequence=item.sequence,
        frame=item.frame,
        caption=list(item.captions),
    )
    if read_map:
        _add_map(record, read_map(item, record.object_rle))
    return record


def _add_map(record: Record, found: Map) -> None:
    record.segment_map = encode_index(found.pixels)
    record.segment_id = [segment.id for segment in found.segments]
    record.segment_category = [segment.category for segment in found.segments]
    record.segment_crowd = [segment.crowd for segment in found.segments]
    if found.ignore is not None and found.ignore.any():
        record.ignore_rle = [encode_mask(found.ignore)]
    for segment, exact in zip(found.segments, found.exact):
        if not isinstance(exact, int):
            record.object_rle.append(encode_mask(exact))
            record.object_category.append(segment.category)
            exact = len(record.object_rle) - 1
        record.segment_object.append(exact)
    if set(record.segment_object) <= {NEVER}:
        record.segment_object = []


def listed_items(path: Path, images: Path, maps: Path, map_suffix: str) -> list[Item]:
    """An item for each name in a text file: `<images>/<name>.jpg` and its map in the folder `maps`."""
    if not path.is_file():
        raise MissingInputError(f"{path} does not exist.")
    return [
        Item(
            image_id=number,
            file_name=f"{name}.jpg",
            image_path=images / f"{name}.jpg",
            map_path=maps / f"{name}{map_suffix}",
        )
        for number, name in enumerate(path.read_text().split())
    ]


def paint(masks: Sequence[np.ndarray]) -> np.ndarray:
    """int64 [H, W], i + 1 where mask i is; of overlapping masks the smaller lies on top."""
    pixels = np.zeros(masks[0].shape, np.int64)
    for number in np.argsort([-int(mask.sum()) for mask in masks], kind="stable"):
        pixels[masks[number]] = number + 1
    return pixels


def instance_map(item: Item, masks: Sequence[bytes]) -> Map:
    """The objects of an image as its segments, for sets that annotate nothing else."""
    size = [item.height, item.width]
    decoded = [coco_mask.decode({"size": size, "counts": counts}).astype(bool) for counts in masks]
    pixels = paint(decoded) if decoded else np.zeros(size, np.int64)
    return Map(
        pixels=pixels,
        segments=tuple(Segment(entry.id, entry.category) for entry in item.objects),
        exact=tuple(
            NEVER if np.array_equal(pixels == number + 1, mask) else number
            for number, mask in enumerate(decoded)
        ),
    )


def encode_mask(mask: np.ndarray) -> bytes:
    """A boolean mask [H, W] as compressed COCO counts."""
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
