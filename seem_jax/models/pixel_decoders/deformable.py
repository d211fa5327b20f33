"""Multi-scale deformable encoder on three maps, then one step of a feature pyramid to stride 4.

The pixel decoder of Mask2Former (Cheng et al. 2022, arXiv 2112.01527); numbers as the official
modeling/vision/encoder/transformer_encoder_deform.py.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from seem_jax.config import PixelDecoderConfig
from seem_jax.kernels.deformable_attention import deformable_attention
from seem_jax.nn.blocks import MLP, Conv, Dense, GroupNorm, LayerNorm, fan_in_uniform
from seem_jax.nn.positions import sine_positions

xavier = nn.initializers.xavier_uniform()


class Deformable(nn.Module):
    """Mask features and three levels; the maps of strides 8, 16 and 32 are encoded together."""

    config: PixelDecoderConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, maps):
        """maps: four [B, h, w, C], strides 4 to 32. Gives (mask features, levels coarse to fine)."""
        config, width = self.config, self.config.width
        norm = functools.partial(GroupNorm, config.num_groups, dtype=self.dtype)
        finest, *rest = maps
        levels = []
        for index, x in enumerate(reversed(rest)):
            dense = Dense(
                width, kernel_init=xavier, dtype=self.dtype, name=f"input_projection_{index}"
            )
            levels.append(norm(name=f"input_norm_{index}")(dense(x)))
        init = nn.with_logical_partitioning(nn.initializers.normal(1.0), (None, "embed"))
        marks = self.param("level_embedding", init, (len(levels), width))
        positions = [
            jnp.asarray(sine_positions(*x.shape[1:3], width)) + mark[None, None]
            for x, mark in zip(levels, marks, strict=True)
        ]
        levels = DeformableEncoder(config, self.dtype, name="encoder")(levels, positions)

        lateral = Dense(
            width,
            use_bias=False,
            kernel_init=fan_in_uniform,
            dtype=self.dtype,
            name="lateral_1",
        )(finest)
        lateral = norm(name="lateral_norm_1")(lateral)
        larger = jax.image.resize(levels[-1], lateral.shape, "bilinear", antialias=False)
        conv = functools.partial(Conv, width, kernel_init=fan_in_uniform, dtype=self.dtype)
        y = conv(size=3, use_bias=False, name="output_1")(lateral + larger)
        y = jax.nn.relu(norm(name="output_norm_1")(y))  # [B, h, w, D]
        return conv(size=1, name="mask_features")(y), levels


class DeformableEncoder(nn.Module):
    """The pixels of all levels [B, h, w, D] read the levels at points, layer after layer."""

    config: PixelDecoderConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, levels, positions):
        """positions: one [h, w, D] per level. Gives the levels as a tuple."""
        sizes = tuple(x.shape[1:3] for x in levels)
        b, _, _, d = levels[0].shape
        x = jnp.concatenate([level.reshape(b, -1, d) for level in levels], axis=1)  # [B, S, D]
        places = jnp.concatenate([part.reshape(1, -1, d) for part in positions], axis=1)
        places = places.astype(x.dtype)
        for layer in range(self.config.num_layers):
            part = DeformableLayer(self.config, sizes, self.dtype, name=f"layer_{layer}")
            x = part(x, places)
        ends = np.cumsum([h * w for h, w in sizes])[:-1]
        parts = jnp.split(x, ends, axis=1)
        return tuple(part.reshape(b, *size, d) for part, size in zip(parts, sizes, strict=True))


class DeformableLayer(nn.Module):
    """Pixels read the levels, then pass a feed-forward; norms after the residual sums."""

    config: PixelDecoderConfig
    sizes: tuple[tuple[int, int], ...]  # (height, width) of the levels
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, positions):
        """x [B, S, D]; positions [1, S, D] help to choose points and weights only."""
        config = self.config
        norm = functools.partial(LayerNorm, dtype=self.dtype)
        attention = DeformableAttention(config, self.sizes, self.dtype, name="deformable_attention")
        feed_forward = MLP(
            (config.mlp_width, config.width),
            kernel_init=xavier,
            dtype=self.dtype,
            name="feed_forward",
        )
        x = norm(name="attention_norm")(x + attention(x + positions, x))
        return norm(name="feed_forward_norm")(x + feed_forward(x))


class DeformableAttention(nn.Module):
    """Every pixel reads each level near its own place, at offsets that its features choose."""

    config: PixelDecoderConfig
    sizes: tuple[tuple[int, int], ...]
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, queries, x):
        """queries, x [B, S, D], the pixels of all levels one after the other. Gives [B, S, D]."""
        config, sizes = self.config, self.sizes
        b, s, d = x.shape
        heads, num_points, num_levels = config.num_heads, config.num_points, len(sizes)
        # In float32: points are fractions of a pixel, which bfloat16 would move.
        chooser = functools.partial(
            nn.Dense,
            dtype=jnp.float32,
            kernel_init=nn.with_logical_partitioning(nn.initializers.zeros_init(), ("embed", None)),
        )
        count = heads * num_levels * num_points
        start = nn.with_logical_partitioning(
            lambda *_: jnp.asarray(compass(heads, num_levels, num_points)), (None,)
        )
        none = nn.with_logical_partitioning(nn.initializers.zeros_init(), (None,))
        offsets = chooser(2 * count, bias_init=start, name="offsets")(queries)
        weights = chooser(count, bias_init=none, name="weights")(queries)
        weights = jax.nn.softmax(weights.reshape(b, s, heads, num_levels * num_points), axis=-1)
        weights = weights.reshape(b, s, heads, num_levels, num_points)
        offsets = offsets.reshape(b, s, heads, num_levels, num_points, 2)
        scale = np.array([(w, h) for h, w in sizes], np.float32)  # [L, 2], offsets are pixels
        centres = pixel_centres(sizes)[None, :, None, None, None]  # [1, S, 1, 1, 1, 2]
        points = centres + offsets / scale[None, None, None, :, None]

        value = Dense(d, kernel_init=xavier, dtype=self.dtype, name="value")(x)
        ends = np.cumsum([h * w for h, w in sizes])[:-1]
        values = tuple(
            part.reshape(b, *size, heads, d // heads)
            for part, size in zip(jnp.split(value, ends, axis=1), sizes, strict=True)
        )
        read = deformable_attention(values, points, weights)
        out = Dense(d, ("mlp", "embed"), kernel_init=xavier, dtype=self.dtype, name="out")
        return out(read.reshape(b, s, d))


def compass(heads: int, levels: int, num_points: int) -> np.ndarray:
    """float32 [A * L * K * 2], offsets to start from: head a looks along the angle 2 pi a / A.

    Its k-th point lies k pixels away, counted along the longer axis.
    """
    angle = np.arange(heads) * 2 * np.pi / heads
    way = np.stack([np.cos(angle), np.sin(angle)], -1)
    way = way / np.abs(way).max(-1, keepdims=True)  # [A, 2]
    far = way[:, None, None] * np.arange(1, num_points + 1)[None, None, :, None]  # [A, 1, K, 2]
    return np.tile(far, (1, levels, 1, 1)).astype(np.float32).reshape(-1)


def pixel_centres(sizes) -> np.ndarray:
    """float32 [S, 2], (x, y) in (0, 1) of all pixels of maps of these (height, width), row by row."""
    parts = []
    for h, w in sizes:
        y, x = np.meshgrid((np.arange(h) + 0.5) / h, (np.arange(w) + 0.5) / w, indexing="ij")
        parts.append(np.stack([x, y], -1).reshape(h * w, 2))
    return np.concatenate(parts).astype(np.float32)
