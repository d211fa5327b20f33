"""The image encoder of SAM (Kirillov et al. 2023, arXiv 2304.02643), with a simple feature pyramid.

A plain vision transformer on patches of 16 pixels (ViTDet, Li et al. 2022): most blocks attend
within windows, a few over the whole map. Numbers as the official modeling/vision/backbone/vit.py.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from seem_jax.config import BackboneConfig
from seem_jax.kernels.resize import bilinear_matrix
from seem_jax.models.backbones.common import block_keys, check_size
from seem_jax.models.backbones.windows import join_windows, split_windows
from seem_jax.nn.attention import Attention, merge_heads, split_heads
from seem_jax.nn.blocks import (
    MLP,
    Conv,
    Dense,
    GroupNorm,
    LayerNorm,
    drop_path,
    gelu,
    per_channel,
    torch_uniform,
    truncated_normal,
)

PATCH = 16  # pixels


class SamViT(nn.Module):
    """Four feature maps of an image, strides 4 to 32, channels pyramid_width to 8 * pyramid_width."""

    config: BackboneConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images, drop_path_key=None):
        """images float [B, H, W, 3], normalised. Raises ValueError unless H, W are multiples of 32.

        Officially an image is padded to the 1024 x 1024 pixels of the table of positions; for
        other sizes the table is resized (bilinear). `drop_path_key` drops paths at random.
        """
        config, dtype = self.config, self.dtype
        check_size(images)
        (depth,) = config.depths
        rates = np.linspace(0, config.drop_path, depth)
        keys = block_keys(drop_path_key, depth)

        conv = Conv(
            config.width, PATCH, PATCH, 0, axes=(None, "embed"), dtype=dtype, name="embed_0"
        )
        x = conv(images)  # [B, h, w, C]
        side = config.position_size
        init = nn.with_logical_partitioning(truncated_normal, (None, None, None, "embed"))
        table = self.param("position_embedding", init, (1, side, side, config.width))
        x = x + positions(table[0], *x.shape[1:3])[None].astype(dtype)
        for block in range(depth):
            window = 0 if block in config.global_blocks else config.window
            layer = SamBlock(config, window, float(rates[block]), dtype, name=f"block_{block}")
            x = layer(x, keys[block])
        return self._pyramid(x)

    def _pyramid(self, x):
        """The map [B, h, w, C] of stride 16 brought to strides 4, 8, 16 and 32."""
        config, dtype = self.config, self.dtype
        inner, widths = config.width // 2, [config.pyramid_width * 2**i for i in range(4)]
        enlarge = functools.partial(Enlarge, dtype=dtype)

        def norm(y, name):  # over all channels and pixels of an image
            return GroupNorm(1, dtype=dtype, name=name)(y)

        def end(y, stride, width):
            y = Dense(width, dtype=dtype, name=f"stride_{stride}_project")(y)
            return gelu(norm(y, f"stride_{stride}_norm"))

        first = max(2 * widths[0], inner)
        fine = gelu(norm(enlarge(first, name="stride_4_enlarge_0")(x), "stride_4_norm_0"))
        fine = norm(enlarge(first // 2, name="stride_4_enlarge_1")(fine), "stride_4_norm_1")
        half = enlarge(max(widths[1], inner), name="stride_8_enlarge_0")(x)
        half = norm(half, "stride_8_norm_0")
        coarse_width = max(widths[3], 2 * config.width)
        coarse = Conv(coarse_width, 2, 2, 0, dtype=dtype, name="stride_32_shrink")(x)
        coarse = norm(coarse, "stride_32_norm_0")
        parts = zip((4, 8, 16, 32), (fine, half, x, coarse), widths, strict=True)
        return tuple(end(y, stride, width) for stride, y, width in parts)


class SamBlock(nn.Module):
    """Attention within windows of `window` pixels (0: the whole map), then a feed-forward."""

    config: BackboneConfig
    window: int
    drop_rate: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, drop_path_key=None):
        config, window = self.config, self.window
        keys = (None, None) if drop_path_key is None else jax.random.split(drop_path_key)
        norm = functools.partial(LayerNorm, 1e-6, self.dtype)
        heads = config.width // config.head_width
        side = window or config.position_size
        attention = MapAttention(config.width, heads, self.dtype, side, name="attention")
        widths = (int(config.width * config.mlp_ratio), config.width)
        feed_forward = MLP(widths, gelu, dtype=self.dtype, name="feed_forward")

        y = norm(name="attention_norm")(x)
        if window:
            update = join_windows(
                attention(split_windows(y, window), window, window), window, *x.shape[1:3]
            )
        else:
            h, w = x.shape[1:3]
            update = attention(y.reshape(-1, h * w, config.width), h, w).reshape(x.shape)
        x = x + drop_path(update, self.drop_rate, keys[0])
        update = feed_forward(norm(name="feed_forward_norm")(x))
        return x + drop_path(update, self.drop_rate, keys[1])


class MapAttention(Attention):
    """Attention among the pixels of a map; a query also weighs how far off a row and column are.

    The tables of the 2 * side - 1 distances belong to a map of `side` pixels.
    """

    side: int = 14

    def setup(self):
        super().setup()
        shape = (2 * self.side - 1, self.width // self.num_heads)
        init = nn.with_logical_partitioning(nn.initializers.zeros_init(), (None, None))
        self.row_positions = self.param("row_positions", init, shape)
        self.column_positions = self.param("column_positions", init, shape)

    def __call__(self, x, height: int, width: int):
        """x [B, height * width, C], row by row; gives the same shape."""
        k, v = self.keys_values(x, x)
        q = split_heads(self.query(x), self.num_heads)  # [B, A, S, E]
        b, a, s, e = q.shape
        rows = distances(self.row_positions, height).astype(q.dtype)  # [h, h, E]
        columns = distances(self.column_positions, width).astype(q.dtype)  # [w, w, E]
        grid = q.reshape(b, a, height, width, e)
        product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
        scores = product("base,bate->bast", q, k) * (e**-0.5)
        scores = scores.reshape(b, a, height, width, height, width)
        scores = scores + product("bahwe,hke->bahwk", grid, rows)[..., None]
        scores = scores + product("bahwe,wke->bahwk", grid, columns)[..., None, :]
        weights = jax.nn.softmax(scores.reshape(b, a, s, s), axis=-1)
        return self.out(merge_heads(jnp.einsum("bast,bate->base", weights.astype(v.dtype), v)))


class Enlarge(nn.Module):
    """A map [B, h, w, C] at twice the height and width: a transposed 2x2 convolution of stride 2."""

    width: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        b, h, w, c = x.shape
        init = nn.with_logical_partitioning(torch_uniform, (None, None, "embed", "mlp"))
        kernel = self.param("kernel", init, (2, 2, c, self.width)).astype(self.dtype)
        x = jnp.einsum("bhwc,ijcd->bhiwjd", x.astype(self.dtype), kernel)
        x = x.reshape(b, 2 * h, 2 * w, self.width)
        init = nn.with_logical_partitioning(nn.initializers.zeros_init(), ("mlp",))
        return x + per_channel(self.param("bias", init, (self.width,)), x)


def positions(table, height: int, width: int):
    """The table [side, side, C] resized to [height, width, C], bilinear."""
    if table.shape[:2] == (height, width):
        return table
    rows, columns = (
        jnp.asarray(bilinear_matrix(new, old))
        for new, old in zip((height, width), table.shape[:2], strict=True)
    )
    return jnp.einsum("hi,wj,ijc->hwc", rows, columns, table)


def distances(table, size: int):
    """[size, size, E]: the row of a table of distances for query i and key j, at i - j + size - 1.

    A table made for another size is resized (linear), as officially.
    """
    if table.shape[0] != 2 * size - 1:
        table = jnp.asarray(bilinear_matrix(2 * size - 1, table.shape[0])) @ table
    return table[np.arange(size)[:, None] - np.arange(size)[None] + size - 1]
