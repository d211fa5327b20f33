"""Transformer encoder on the coarsest map, then a feature pyramid (Lin et al. 2017) down to stride 4.

The pixel decoder of MaskFormer (Cheng et al. 2021); numbers as the official
modeling/vision/encoder/transformer_encoder_fpn.py.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from seem_jax.config import NUM_LEVELS, PixelDecoderConfig
from seem_jax.nn.attention import Attention
from seem_jax.nn.blocks import MLP, Conv, Dense, GroupNorm, LayerNorm, fan_in_uniform
from seem_jax.nn.positions import sine_positions


class FPN(nn.Module):
    """Mask features and three levels; stage 1 is stride 4, stage 4 is stride 32."""

    config: PixelDecoderConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, maps):
        """maps: four [B, h, w, C], strides 4 to 32. Gives (mask features, levels coarse to fine)."""
        config = self.config
        dense = functools.partial(Dense, config.width, kernel_init=fan_in_uniform, dtype=self.dtype)
        conv = functools.partial(
            Conv, config.width, 3, kernel_init=fan_in_uniform, dtype=self.dtype
        )
        norm = functools.partial(GroupNorm, config.num_groups, dtype=self.dtype)

        levels = []
        for stage in range(len(maps), 0, -1):
            x = maps[stage - 1]
            if stage == len(maps):
                y = Encoder(config, self.dtype, name="encoder")(dense(name="input_projection")(x))
            else:
                lateral = dense(use_bias=False, name=f"lateral_{stage}")(x)
                y = norm(name=f"lateral_norm_{stage}")(lateral) + double(y)
            y = conv(use_bias=False, name=f"output_{stage}")(y)
            y = jax.nn.relu(norm(name=f"output_norm_{stage}")(y))  # [B, h, w, D]
            levels.append(y)
        return conv(name="mask_features")(y), tuple(levels[:NUM_LEVELS])


class Encoder(nn.Module):
    """Self-attention among the pixels of one map [B, h, w, D], layer after layer."""

    config: PixelDecoderConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        b, h, w, d = x.shape
        x = x.reshape(b, h * w, d)  # [B, S, D]
        positions = sine_positions(h, w, d).astype(x.dtype).reshape(1, h * w, d)
        for layer in range(self.config.num_layers):
            x = EncoderLayer(self.config, self.dtype, name=f"layer_{layer}")(x, positions)
        return x.reshape(b, h, w, d)


class EncoderLayer(nn.Module):
    """Pixels read each other, then pass a feed-forward; norms after the residual sums."""

    config: PixelDecoderConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, positions):
        """x [B, S, D]; positions [1, S, D] are added to queries and keys, not to values."""
        config = self.config
        norm = functools.partial(LayerNorm, dtype=self.dtype)
        attention = Attention(config.width, config.num_heads, self.dtype, name="attention")
        feed_forward = MLP(
            (config.mlp_width, config.width),
            kernel_init=nn.initializers.xavier_uniform(),
            dtype=self.dtype,
            name="feed_forward",
        )
        x = norm(name="attention_norm")(x + attention(x + positions, x + positions, x))
        return norm(name="feed_forward_norm")(x + feed_forward(x))


def double(x):
    """A map [B, h, w, D] at twice the height and width, every pixel four times (nearest)."""
    b, h, w, d = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, d)).reshape(b, 2 * h, 2 * w, d)
