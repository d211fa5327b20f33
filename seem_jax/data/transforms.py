"""Where an image goes in the training square, and how its maps go there with it.

A `Placement` is drawn once and applied to the image, the index map and the masks, so they cannot
drift apart. Training uses large-scale jitter (Ghiasi et al. 2021) as the official recipe does.
"""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np

from seem_jax import image as images

PAD_VALUE = 128  # grey of the padding, before normalisation


@dataclasses.dataclass(frozen=True)
class Placement:
    """Flip, then resize, then cut, then pad right and bottom to a square."""

    original: tuple[int, int]  # (height, width) of the source
    resized: tuple[int, int]
    offset: tuple[int, int]  # (row, column) of the cut in the resized image
    side: int  # of the square, pixels
    flip: bool

    @property
    def visible(self) -> tuple[int, int]:
        """(height, width) of the square that shows the image; the rest is padding."""
        height, width = (
            min(self.side, n - start) for n, start in zip(self.resized, self.offset, strict=True)
        )
        return height, width


def jitter(
    original: tuple[int, int],
    side: int,
    min_scale: float,
    max_scale: float,
    flip: bool,
    rng: np.random.Generator,
) -> Placement:
    """A random placement: large-scale jitter as in the official training transforms.

    Flip with probability one half; scale s uniform in [min_scale, max_scale]; the image is made to
    fit (side s) x (side s), keeping its shape; the cut is where ONE random number shared by both
    axes says (detectron2's FixedSizeCrop).
    """
    flipped = bool(rng.random() < 0.5) and flip
    resized = images.fit_square(original, side * rng.uniform(min_scale, max_scale))
    where = rng.random()
    row, column = (round(max(n - side, 0) * where) for n in resized)
    return Placement(original, resized, (row, column), side, flipped)


def fitted(original: tuple[int, int], side: int) -> Placement:
    """The placement of a test image: the whole of it, as large as the square allows."""
    return Placement(original, images.fit_square(original, side), (0, 0), side, flip=False)


def place_image(image: np.ndarray, placement: Placement) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [side, side, 3]."""
    if placement.flip:
        image = cv2.flip(image, 1)
    image = images.resize(image, placement.resized)
    (row, column), (height, width) = placement.offset, placement.visible
    image = image[row : row + height, column : column + width]
    return images.pad(image, (placement.side, placement.side), PAD_VALUE)


def place_map(labels: np.ndarray, placement: Placement) -> np.ndarray:
    """uint8 or uint16 labels, or a mask, [H, W] -> [side, side]; nearest pixel, padded with 0.

    Reads only the pixels that are kept, whatever the size of the resized image. Columns are moved as
    rows of the transposed map: whole rows are copied instead of single pixels.
    """
    if labels.shape != placement.original:
        raise ValueError(
            f"a map of {labels.shape} (height, width) does not belong to an image of "
            f"{placement.original}; convert the data set again."
        )
    rows, columns = (
        ((start + np.arange(count) + 0.5) * (n / resized)).astype(np.intp)
        for start, count, n, resized in zip(
            placement.offset,
            placement.visible,
            placement.original,
            placement.resized,
            strict=True,
        )
    )
    if placement.flip:
        columns = placement.original[1] - 1 - columns
    mask = labels.dtype == bool
    across = np.ascontiguousarray((labels.view(np.uint8) if mask else labels).T)  # [W, H]
    out = np.zeros((placement.side, placement.side), across.dtype)
    out[: len(rows), : len(columns)] = cv2.transpose(across.take(columns, axis=0)).take(
        rows, axis=0
    )
    return out.view(bool) if mask else out
