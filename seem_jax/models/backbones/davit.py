"""DaViT (Ding et al. 2022, arXiv 2204.03645): attention among pixels, then among channels.

A block attends within windows of the map, then lets the channels of a group read each other over
the whole map; both halves are alike but for the attention. Numbers as the official
modeling/vision/backbone/davit.py, whose maps are not normalised at the end.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from seem_jax.config import BackboneConfig
from seem_jax.models.backbones.common import block_keys, check_size
from seem_jax.models.backbones.windows import join_windows, split_windows
from seem_jax.nn.attention import Attention, merge_heads, split_heads
from seem_jax.nn.blocks import MLP, Conv, DepthwiseConv, LayerNorm, drop_path, gelu


class DaViT(nn.Module):
    """Four feature maps of an image, strides 4 to 32, channels width to 8 * width."""

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
        rates = iter(np.linspace(0, config.drop_path, 2 * num_blocks).reshape(num_blocks, 2))
        keys = iter(block_keys(drop_path_key, num_blocks))

        x, maps = images, []
        for stage, (depth, size) in enumerate(zip(config.depths, config.patch_sizes, strict=True)):
            channels = config.width * 2**stage
            conv = functools.partial(Conv, channels, size, padding=(size - 1) // 2, dtype=dtype)
            norm = LayerNorm(dtype=dtype, name=f"patch_norm_{stage}")
            if stage == 0:
                x = norm(conv(stride=4, axes=(None, "embed"), name="patch_0")(x))
            else:
                x = conv(stride=2, name=f"patch_{stage}")(norm(x))  # [B, h, w, C]
            for block in range(depth):
                drop_rates = tuple(float(rate) for rate in next(rates))
                name = f"stage_{stage}_block_{block}"
                x = DaViTBlock(config, drop_rates, dtype, name=name)(x, next(keys))
            maps.append(x)
        return tuple(maps)


class DaViTBlock(nn.Module):
    """Attention within windows, then among channels."""

    config: BackboneConfig
    drop_rates: tuple[float, float]  # of the two halves
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, drop_path_key=None):
        config, channels = self.config, x.shape[-1]
        keys = (None, None) if drop_path_key is None else jax.random.split(drop_path_key)
        heads = channels // config.head_width
        window = functools.partial(WindowAttention, channels, heads, self.dtype, config.window)
        channel = functools.partial(ChannelAttention, channels, heads, self.dtype)
        for index, (name, attention) in enumerate((("spatial", window), ("channel", channel))):
            rate = self.drop_rates[index]
            half = HalfBlock(attention, config.mlp_ratio, rate, self.dtype, name=name)
            x = half(x, keys[index])
        return x


class HalfBlock(nn.Module):
    """Attention, then a feed-forward; a depthwise 3x3 convolution tells both where pixels lie."""

    attention: Callable[..., nn.Module]
    mlp_ratio: float
    drop_rate: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, drop_path_key=None):
        channels = x.shape[-1]
        keys = (None, None) if drop_path_key is None else jax.random.split(drop_path_key)
        widths = (int(channels * self.mlp_ratio), channels)
        feed_forward = MLP(widths, gelu, dtype=self.dtype, name="feed_forward")
        parts = ("attention", self.attention(name="attention")), ("feed_forward", feed_forward)
        for index, (name, part) in enumerate(parts):
            x = x + DepthwiseConv(3, dtype=self.dtype, name=f"depthwise_{index}")(x)
            update = part(LayerNorm(dtype=self.dtype, name=f"{name}_norm")(x))
            x = x + drop_path(update, self.drop_rate, keys[index])
        return x


class WindowAttention(Attention):
    """The pixels of a window of the map [B, h, w, C] read each other, and its zero padding."""

    window: int = 7  # pixels

    def __call__(self, x):
        windows = split_windows(x, self.window)
        return join_windows(super().__call__(windows, windows, windows), self.window, *x.shape[1:3])


class ChannelAttention(Attention):
    """The channels of a group of the map [B, h, w, C] read each other over all its pixels."""

    def __call__(self, x):
        pixels = x.reshape(x.shape[0], -1, x.shape[-1])  # [B, S, C]
        k, v = self.keys_values(pixels, pixels)
        q = split_heads(self.query(pixels), self.num_heads)  # [B, A, S, E]
        scores = jnp.einsum("base,basf->baef", q, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scores * (pixels.shape[1] ** -0.5), axis=-1)
        update = jnp.einsum("baef,basf->base", weights.astype(v.dtype), v)
        return self.out(merge_heads(update)).reshape(x.shape)
