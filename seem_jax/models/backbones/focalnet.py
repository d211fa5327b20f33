"""FocalNet (Yang et al. 2022, arXiv 2203.11926): pixels are modulated by their wider and wider context.

One class for the two variants of the official release, which differ in more than their size:
`depthwise` (Focal-T, focal_dw.py) adds two 3x3 depthwise convolutions to each block and normalises
after the residual sum; the plain one (Focal-L, focal.py) normalises before the sum and pads the
first convolution by 2 pixels instead of 3. Both scale the context by the number of its levels.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from seem_jax.config import BackboneConfig
from seem_jax.models.backbones.common import block_keys, check_size
from seem_jax.nn.blocks import (
    MLP,
    Conv,
    Dense,
    DepthwiseConv,
    LayerNorm,
    drop_path,
    gelu,
    per_channel,
)


class FocalNet(nn.Module):
    """Four normalised feature maps of an image, strides 4 to 32, channels width to 8 * width."""

    config: BackboneConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images, drop_path_key=None):
        """images float [B, H, W, 3], normalised. Raises ValueError unless H, W are multiples of 32.

        `drop_path_key` drops paths at random (training); None drops none.
        """
        config, dtype = self.config, self.dtype
        check_size(images)
        num_blocks = sum(config.depths)
        rates = iter(np.linspace(0, config.drop_path, num_blocks))
        keys = iter(block_keys(drop_path_key, num_blocks))

        x, maps = images, []
        for stage, depth in enumerate(config.depths):
            channels = config.width * 2**stage
            if stage == 0:
                conv = functools.partial(Conv, size=7, stride=4, axes=(None, "embed"))
                conv = functools.partial(conv, padding=3 if config.depthwise else 2)
            else:
                conv = functools.partial(Conv, size=3, stride=2)
            x = conv(channels, dtype=dtype, name=f"embed_{stage}")(x)
            x = LayerNorm(dtype=dtype, name=f"embed_norm_{stage}")(x)  # [B, h, w, C]
            for block in range(depth):
                name = f"stage_{stage}_block_{block}"
                x = FocalBlock(config, stage, float(next(rates)), dtype, name=name)(x, next(keys))
            maps.append(LayerNorm(dtype=dtype, name=f"norm_{stage}")(x))
        return tuple(maps)


class FocalBlock(nn.Module):
    """Modulation, then a feed-forward, each as a scaled residual that may be dropped."""

    config: BackboneConfig
    stage: int
    drop_rate: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, drop_path_key=None):
        config, channels = self.config, x.shape[-1]
        keys = (None, None) if drop_path_key is None else jax.random.split(drop_path_key)
        modulation = FocalModulation(
            config.focal_levels[self.stage],
            config.focal_windows[self.stage],
            self.dtype,
            name="modulation",
        )
        widths = (int(channels * config.mlp_ratio), channels)
        feed_forward = MLP(widths, gelu, dtype=self.dtype, name="feed_forward")
        for index, part in enumerate((modulation, feed_forward)):
            if config.depthwise:
                x = x + DepthwiseConv(3, dtype=self.dtype, name=f"depthwise_{index}")(x)
            x = self.add(x, part(x), index, keys[index])
        return x

    def add(self, x, update, index, key):
        """The residual sum; its norm comes after it (depthwise variant) or before it (plain)."""
        config = self.config
        norm = LayerNorm(dtype=self.dtype, name=f"norm_{index}")
        update = update if config.depthwise else norm(update)
        if config.layer_scale:
            value = nn.initializers.constant(config.layer_scale_init)
            scale = self.param(
                f"layer_scale_{index}",
                nn.with_logical_partitioning(value, ("embed",)),
                x.shape[-1:],
            )
            update = update * per_channel(scale, update)
        x = x + drop_path(update, self.drop_rate, key)
        return norm(x) if config.depthwise else x


class FocalModulation(nn.Module):
    """Each pixel's query times a gated sum of its contexts, from 3x3 pixels up to the whole map."""

    num_levels: int
    window: int  # pixels, of the first level; each further level is 2 wider
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        channels, levels = x.shape[-1], self.num_levels
        dense = functools.partial(Dense, dtype=self.dtype)
        # The width 2C + levels + 1 divides by nothing in particular, so it is not partitioned.
        mixed = dense(2 * channels + levels + 1, ("embed", None), name="project_in")(x)
        query, context, gates = jnp.split(mixed, (channels, 2 * channels), axis=-1)
        total = jnp.zeros_like(context)
        for level in range(levels):
            conv = DepthwiseConv(self.window + 2 * level, False, self.dtype, name=f"focal_{level}")
            context = gelu(conv(context))
            total = total + context * gates[..., level : level + 1]
        everywhere = gelu(context.mean((1, 2), keepdims=True))  # [B, 1, 1, C]
        total = (total + everywhere * gates[..., levels:]) / (levels + 1)
        modulator = dense(channels, ("embed", "mlp"), name="modulator")(total)
        return dense(channels, ("mlp", "embed"), name="project_out")(query * modulator)
