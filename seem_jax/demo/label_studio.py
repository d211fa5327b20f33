"""Masks as Label Studio reads them: brush strokes in its run lengths, and outlines in percent.

The run lengths are a stream of bits (labelstud.io documents the reader; the packing is thi.ng/rle-pack):
32 bits for the number of bytes, 5 for the size of a word less one, four times 4 for the sizes of lengths
less one; then for each run one bit that says "repeated", two that choose a size, the length less one,
and the value. A picture is RGBA, so every pixel counts four bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from seem_jax.predictor import Prediction

SIZES = (3, 4, 8, 16)  # bits that may hold the length of a run
LONGEST = 2 ** SIZES[-1]
FROM_NAME, TO_NAME = "tag", "image"  # of the control and the picture in its labelling configuration


def task(prediction: Prediction, image: str) -> dict[str, Any]:
    """One task with a prediction, ready for JSON: a brush and its outlines for each mask.

    image is what the task shows, as a path or address that Label Studio can open.
    """
    height, width = prediction.masks.shape[1:]
    results = []
    for index, (mask, rings) in enumerate(
        zip(prediction.masks, prediction.to_polygons(), strict=True)
    ):
        said = prediction.names[index] or prediction.texts[index] or "object"
        common = {
            "from_name": FROM_NAME,
            "to_name": TO_NAME,
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "score": float(prediction.scores[index]),
        }
        brush = {"format": "rle", "rle": encode(mask), "brushlabels": [said]}
        results.append(common | {"id": f"brush_{index}", "type": "brushlabels", "value": brush})
        for number, ring in enumerate(rings):
            corners = (100.0 * (ring + 0.5) / [[width, height]]).tolist()
            outline = {"points": corners, "closed": True, "polygonlabels": [said]}
            entry = {"id": f"outline_{index}_{number}", "type": "polygonlabels", "value": outline}
            results.append(common | entry)
    score = float(prediction.scores.max(initial=0.0))
    answers = {"model_version": "seem_jax", "score": score, "result": results}
    return {"data": {"image": image}, "predictions": [answers]}


def encode(mask: np.ndarray) -> list[int]:
    """The bytes of the run lengths of a bool mask [H, W], 255 inside."""
    flat = mask.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    bounds = np.concatenate([[0], edges, [flat.size]])
    bits = [f"{4 * flat.size:032b}", f"{8 - 1:05b}", *(f"{size - 1:04b}" for size in SIZES)]
    for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        left = 4 * (stop - start)
        while left:
            length = min(left, LONGEST)
            choice = next(n for n, size in enumerate(SIZES) if length <= 2**size)
            bits.append(f"1{choice:02b}{length - 1:0{SIZES[choice]}b}{255 * int(flat[start]):08b}")
            left -= length
    stream = "".join(bits)
    stream += "0" * (-len(stream) % 8)
    return [int(stream[start : start + 8], 2) for start in range(0, len(stream), 8)]
