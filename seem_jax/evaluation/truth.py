"""The truth of a record at its original size, and at the size the model sees."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from seem_jax.data.schema import Record, decode_mask
from seem_jax.evaluation.panoptic import TruthSegment
from seem_jax.image import decode_index_png


def segment_map(record: Record) -> np.ndarray:
    """int32 [height, width]: 0 void, i + 1 for segment i of the record.

    Raises ValueError for a map that is absent, damaged or of another size than the image.
    """
    if not record.segment_map:
        raise ValueError("it has no segment map; this task needs one of every image.")
    ids = decode_index_png(record.segment_map, name="its segment map").astype(np.int32)
    if ids.shape != (record.height, record.width):
        raise ValueError(
            f"its segment map is {ids.shape} (height, width), the image "
            f"{(record.height, record.width)}; convert the data set from matching files."
        )
    return ids


def segments(record: Record) -> list[TruthSegment]:
    """The segments of `segment_map`."""
    return [
        TruthSegment(id=i + 1, category=category, crowd=bool(crowd))
        for i, (category, crowd) in enumerate(
            zip(record.segment_category, record.segment_crowd, strict=True)
        )
    ]


def segment_masks(record: Record) -> Iterator[tuple[TruthSegment, np.ndarray]]:
    """(segment, its mask bool [height, width]) one by one; masks may overlap where the data says so."""
    ids = segment_map(record)
    exact = record.segment_object or [-1] * len(record.segment_id)
    for segment, index in zip(segments(record), exact, strict=True):
        yield segment, ids == segment.id if index < 0 else object_mask(record, index)


def ignored(record: Record) -> np.ndarray:
    """bool [height, width], the pixels that no score of clicks counts."""
    out = np.zeros((record.height, record.width), bool)
    for number, counts in enumerate(record.ignore_rle):
        out |= decode_mask(record, counts, f"ignored region {number}")
    return out


def object_mask(record: Record, index: int) -> np.ndarray:
    """bool [height, width] of a referred object."""
    return decode_mask(record, record.object_rle[index], f"object {index}")
