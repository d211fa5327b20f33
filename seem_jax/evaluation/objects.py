"""Which objects of an image are clicked, and what they look like at both sizes."""

from __future__ import annotations

import dataclasses

import numpy as np

from seem_jax.data.schema import Record
from seem_jax.evaluation import truth
from seem_jax.evaluation.reader import Sizing

GREY = (4899, 9617, 1868)  # weights of red, green and blue in 1/16384, as OpenCV rounds them


@dataclasses.dataclass(frozen=True)
class Clickable:
    """One object of an image."""

    number: int  # of its segment, from 1; of merged ones that of the first
    mask: np.ndarray  # bool [H, W] at original size
    small: np.ndarray  # bool [h, w], what the user of the model size sees


def clickable(
    record: Record, num_things: int, sizing: Sizing, *, grown: bool, grey: bool
) -> list[Clickable]:
    """The things of a record, one by one, without crowds and without those that have no pixel at
    model size.

    grown and grey are evaluation.grown_masks and evaluation.voc_grey_ids.
    """
    found = [
        (segment.id, mask)
        for segment, mask in truth.segment_masks(record)
        if not segment.crowd and segment.category < num_things
    ]
    if grey:
        found = _merged(record, found)
    place = sizing.place_grown if grown else sizing.place_map
    objects = [Clickable(number, mask, place(mask)) for number, mask in found]
    return [thing for thing in objects if thing.small.any()]


def _merged(record: Record, found: list[tuple[int, np.ndarray]]) -> list[tuple[int, np.ndarray]]:
    """Objects whose palette colours share a grey value as one, in the order of these values."""
    same: dict[int, tuple[int, np.ndarray]] = {}
    for number, mask in found:
        index = record.segment_id[number - 1]
        if not 0 < index < 255:
            raise ValueError(
                f"{record.file_name}: segment {number} has the id {index}, no palette index of PASCAL "
                "VOC; config.evaluation.voc_grey_ids is for what data_prep.voc converted."
            )
        grey = grey_value(index)
        first, other = same.get(grey, (number, mask))
        same[grey] = first, other | mask
    return [same[grey] for grey in sorted(same)]


def grey_value(index: int) -> int:
    """What a colour of the PASCAL VOC palette becomes when it is read as grey (OpenCV's rounding).

    The palette spreads the bits of an index over red, green and blue, high bits first.
    """
    colour = [0, 0, 0]
    for place in range(8):
        for channel in range(3):
            bit = index >> (3 * place + channel) & 1
            colour[channel] |= bit << (7 - place)
    weighted = sum(weight * value for weight, value in zip(GREY, colour, strict=True))
    return (weighted + (1 << 13)) >> 14
