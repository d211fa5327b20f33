"""Weights, images and recorded numbers for tiny versions of the backbones and the pixel decoder.

The numbers in tests/data/*.npz were computed by the official PyTorch modules, built at the sizes of
TINY, with the weights of `official_weights` and the images of `image`. Where an image is larger
than the table of positions of SAM-ViT, which the release does not resize, the table was resized
before (torch bilinear); the group normalisations of the pixel decoder had four groups.
"""

from __future__ import annotations

import dataclasses
import zlib
from pathlib import Path

import numpy as np

from seem_jax.config import BackboneConfig, PixelDecoderConfig

DATA = Path(__file__).parent / "data"
DAVIT = BackboneConfig(name="davit", width=8, depths=(1, 1, 2, 1), head_width=4)
TINY = {
    "davit_patch2": DAVIT,
    "davit_patch3": dataclasses.replace(DAVIT, depths=(0, 0, 0, 1), patch_sizes=(7, 3, 3, 3)),
    "sam_vit": BackboneConfig(
        name="sam_vit",
        width=16,
        depths=(3,),
        head_width=8,
        window=3,
        global_blocks=(1,),
        position_size=4,
        pyramid_width=8,
    ),
}
DEFORMABLE = PixelDecoderConfig(
    name="deformable", width=16, num_layers=2, num_heads=2, mlp_width=32, num_groups=4
)


def image() -> np.ndarray:
    """float32 [1, 64, 96, 3], standard normal."""
    return np.random.RandomState(0).randn(1, 64, 96, 3).astype(np.float32)


def official_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """A float32 array for each official name, drawn by the name alone."""
    weights = {}
    for name, shape in shapes.items():
        values = np.random.RandomState(zlib.crc32(name.encode())).randn(*shape)
        if name.endswith("bias") or "rel_pos" in name or "embed" in name.split(".")[-1]:
            values = 0.5 * values
        elif len(shape) == 1:  # the scale of a norm
            values = 1 + 0.2 * values
        else:  # [out, in, ...]
            values = values / np.sqrt(np.prod(shape[1:]))
        weights[name] = values.astype(np.float32)
    return weights


def golden(name: str) -> dict[str, np.ndarray]:
    """What the official module computed, NHWC."""
    with np.load(DATA / f"{name}.npz") as file:
        return dict(file)
