"""Pixel decoders by name.

A pixel decoder is a Linen module `Decoder(config, dtype)`. It maps the four maps of a backbone (strides
4, 8, 16, 32) to the mask features [B, h, w, D] of stride 4 and a tuple of three maps [B, h_l, w_l, D],
coarse to fine (strides 32, 16, 8).
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn

from seem_jax.config import PixelDecoderConfig
from seem_jax.models.pixel_decoders.deformable import Deformable
from seem_jax.models.pixel_decoders.fpn import FPN

PIXEL_DECODERS = {"deformable": Deformable, "fpn": FPN}


def pixel_decoder(config: PixelDecoderConfig, dtype: jnp.dtype = jnp.float32) -> nn.Module:
    """The pixel decoder of a configuration; raises ValueError for a name that is not known."""
    if config.name not in PIXEL_DECODERS:
        names = sorted(PIXEL_DECODERS)
        raise ValueError(f"unknown pixel decoder {config.name!r}; choose from {names}.")
    return PIXEL_DECODERS[config.name](config, dtype)
