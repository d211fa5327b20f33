"""What all backbones begin with: the check of the image size, and a key for each block."""

from __future__ import annotations

import jax

STRIDE = 32  # of the last map


def check_size(images) -> None:
    """ValueError unless height and width of images [B, H, W, 3] are multiples of STRIDE."""
    height, width = images.shape[1:3]
    if height % STRIDE or width % STRIDE:
        raise ValueError(
            f"images of {height} x {width} pixels: height and width must be multiples of "
            f"{STRIDE}; pad them."
        )


def block_keys(key, number: int):
    """Keys of stochastic depth, one for each of a number of blocks; None each for key None."""
    return [None] * number if key is None else list(jax.random.split(key, number))
