"""Backbones by name.

A backbone is a Linen module `Backbone(config, dtype)`. It maps normalised images [B, H, W, 3], H and
W multiples of 32, and a key (or None) for stochastic depth to a tuple of four maps [B, h, w, C] of
strides 4, 8, 16 and 32.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn

from seem_jax.config import BackboneConfig
from seem_jax.models.backbones.davit import DaViT
from seem_jax.models.backbones.focalnet import FocalNet
from seem_jax.models.backbones.sam_vit import SamViT

BACKBONES = {"davit": DaViT, "focalnet": FocalNet, "sam_vit": SamViT}


def backbone(config: BackboneConfig, dtype: jnp.dtype = jnp.float32) -> nn.Module:
    """The backbone of a configuration; raises ValueError for a name that is not known."""
    if config.name not in BACKBONES:
        raise ValueError(f"unknown backbone {config.name!r}; choose from {sorted(BACKBONES)}.")
    return BACKBONES[config.name](config, dtype)
