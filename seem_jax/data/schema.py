"""One image (or video frame) with its truth, as it is stored in a record of a data set.

Stored as `tf.train.Example`, so TFDS and tf.data users read the same files; nothing here needs
TensorFlow.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from pycocotools import mask as coco_mask
from tensorflow_datasets.proto import tf_example_pb2


@dataclasses.dataclass
class Record:
    """An image as it came, its segments, its (possibly overlapping) objects and its sentences."""

    image_id: int
    file_name: str
    image: bytes  # JPEG or PNG, as stored by the source
    height: int  # pixels
    width: int
    segment_map: bytes = b""  # index PNG [height, width]: 0 void, i + 1 segment i; b"" absent
    segment_id: list[int] = dataclasses.field(default_factory=list)  # ids of the source
    segment_category: list[int] = dataclasses.field(default_factory=list)  # contiguous class
    segment_crowd: list[bool] = dataclasses.field(default_factory=list)
    object_rle: list[bytes] = dataclasses.field(default_factory=list)  # COCO counts, compressed
    object_category: list[int] = dataclasses.field(default_factory=list)  # contiguous class
    phrase_text: list[str] = dataclasses.field(default_factory=list)
    phrase_object: list[int] = dataclasses.field(default_factory=list)  # index into object_rle
    sequence: str = ""  # name of the video; "" for a single image
    frame: int = -1  # number of the frame in its video; -1 for a single image
    # Where segments overlap the map cannot say all: one entry a segment, the index into object_rle
    # of its exact mask, or -1 for a segment that is as in the map. [] when all are.
    segment_object: list[int] = dataclasses.field(default_factory=list)
    caption: list[str] = dataclasses.field(default_factory=list)  # of the whole image
    ignore_rle: list[bytes] = dataclasses.field(default_factory=list)  # regions no score counts


# How each field is stored: "bytes", "text", "int" or "bool", and whether it is a list.
STORAGE: dict[str, tuple[str, bool]] = {
    "image_id": ("int", False),
    "file_name": ("text", False),
    "image": ("bytes", False),
    "height": ("int", False),
    "width": ("int", False),
    "segment_map": ("bytes", False),
    "segment_id": ("int", True),
    "segment_category": ("int", True),
    "segment_crowd": ("bool", True),
    "object_rle": ("bytes", True),
    "object_category": ("int", True),
    "phrase_text": ("text", True),
    "phrase_object": ("int", True),
    "sequence": ("text", False),
    "frame": ("int", False),
    "segment_object": ("int", True),
    "caption": ("text", True),
    "ignore_rle": ("bytes", True),
}
MAY_LACK = ("segment_object", "caption", "ignore_rle")  # few data sets have them; absent is empty


def problems(record: Record) -> list[tuple[str, str]]:
    """(field, what is wrong with it) for all lists of a record that do not fit together."""
    found = []
    pairs = (
        ("segment_category", "segment_id"),
        ("segment_crowd", "segment_id"),
        ("object_category", "object_rle"),
        ("phrase_object", "phrase_text"),
    )
    if record.segment_object:
        pairs += (("segment_object", "segment_id"),)
    for left, right in pairs:
        counts = len(getattr(record, left)), len(getattr(record, right))
        if counts[0] != counts[1]:
            found.append((left, f"{left} has {counts[0]} entries, {right} has {counts[1]}"))
    for name, first in (("phrase_object", 0), ("segment_object", -1)):
        for index in getattr(record, name):
            if not first <= index < len(record.object_rle):
                text = f"{name} = {index}, but there are {len(record.object_rle)} objects"
                found.append((name, text))
    for name in ("height", "width"):
        if getattr(record, name) <= 0:
            found.append((name, f"{name} = {getattr(record, name)}, it must be > 0"))
    return found


def check(record: Record) -> None:
    """Raises ValueError naming the field when the lists of a record do not fit together."""
    for _, text in problems(record):
        raise ValueError(f"record of image {record.image_id} ({record.file_name}): {text}.")


def encode(record: Record) -> bytes:
    """The record as a serialised tf.train.Example. Raises ValueError when its lists disagree."""
    check(record)
    example = tf_example_pb2.Example()
    for name, (kind, is_list) in STORAGE.items():
        value = getattr(record, name)
        values = value if is_list else [value]
        feature = example.features.feature[name]
        if kind in ("int", "bool"):
            feature.int64_list.value.extend(int(value) for value in values)
        else:
            feature.bytes_list.value.extend(
                value.encode() if kind == "text" else value for value in values
            )
    return example.SerializeToString(deterministic=True)


def decode(payload: bytes) -> Record:
    """The record that `encode` wrote. Raises ValueError naming the field that does not fit."""
    record = parse(payload)
    check(record)
    return record


def parse(payload: bytes) -> Record:
    """As `decode`, but the lists of the record may disagree."""
    example = tf_example_pb2.Example()
    try:
        example.ParseFromString(payload)
    except DecodeError as error:
        raise ValueError(f"a record of {len(payload)} bytes is no tf.train.Example.") from error
    fields: dict[str, Any] = {}
    for name, (kind, is_list) in STORAGE.items():
        if name not in example.features.feature:
            if name in MAY_LACK:
                continue
            raise ValueError(
                f"a record lacks the field {name!r}; it has {sorted(example.features.feature)}. "
                "It was converted by another version: convert the data set again."
            )
        feature = example.features.feature[name]
        whole = feature.int64_list if kind in ("int", "bool") else feature.bytes_list
        values = list(whole.value)
        if kind == "text":
            values = _texts(values, name)
        elif kind == "bool":
            values = [bool(value) for value in values]
        if not is_list and len(values) != 1:
            raise ValueError(f"field {name!r} of a record has {len(values)} values, expected one.")
        fields[name] = values if is_list else values[0]
    return Record(**fields)


def _texts(values: list[bytes], name: str) -> list[str]:
    try:
        return [value.decode() for value in values]
    except UnicodeDecodeError as error:
        raise ValueError(f"field {name!r} of a record is no UTF-8 text ({error}).") from error


def decode_mask(record: Record, counts: bytes, what: str) -> np.ndarray:
    """bool [height, width], a mask of the record. ValueError naming `what` where the code is damaged."""
    covered, pixels = run_pixels(counts), record.height * record.width
    if covered != pixels:
        raise ValueError(
            f"{what} of {record.file_name} covers {covered} pixels of {pixels}; "
            "convert the data set again."
        )
    size = [record.height, record.width]
    return coco_mask.decode({"size": size, "counts": counts}).view(bool)


def run_pixels(counts: bytes) -> int:
    """How many pixels a compressed COCO run-length code covers; -1 where it is no such code.

    pycocotools does not check: decoding a damaged code, it writes outside its memory.
    """
    runs: list[int] = []
    value = shift = 0
    for byte in counts:
        if not 48 <= byte < 112:
            return -1
        part = byte - 48
        value |= (part & 31) << shift
        shift += 5
        if not part & 32:
            if part & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            if runs[-1] < 0:
                return -1
            value = shift = 0
    return sum(runs) if not shift else -1


def features() -> Any:
    """The TFDS description (FeaturesDict) of what `encode` writes.

    Pictures in `segment_map` and masks in `object_rle` are plain bytes for TFDS, since they may be
    absent.
    """
    import tensorflow_datasets as tfds  # half a second; only the converters need it

    scalars = {
        "int": np.int64,
        "bool": np.bool_,
        "text": tfds.features.Text(),
        "bytes": tfds.features.Scalar(np.bytes_),
    }
    described = {
        name: tfds.features.Sequence(scalars[kind]) if is_list else scalars[kind]
        for name, (kind, is_list) in STORAGE.items()
    }
    described["image"] = tfds.features.Image(shape=(None, None, 3))
    return tfds.features.FeaturesDict(described)
