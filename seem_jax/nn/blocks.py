"""Layers used by more than one part of the model.

Parameters are float32 and carry logical axes ("embed", "mlp", "heads", "vocab" or None), which
sharding.py maps to the mesh; `dtype` is that of the activations and the matrix products. Norms
take their statistics in float32.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from seem_jax.kernels.convolution import convolve
from seem_jax.kernels.depthwise import depthwise

init = nn.initializers
Axes = tuple[str | None, ...]

# torch draws convolutions uniformly within sqrt(1 / fan_in); detectron2's c2_xavier_fill within
# sqrt(3 / fan_in).
torch_uniform = init.variance_scaling(1 / 3, "fan_in", "uniform")
fan_in_uniform = init.variance_scaling(1.0, "fan_in", "uniform")
# The official standard deviation of 0.02 belongs to a width of 512. Held fixed, it makes the signal
# of a narrow model vanish; so the variance goes with 1 / fan_in, and is the official one at 512.
fan_in_normal = init.variance_scaling(512 * 0.02**2, "fan_in", "truncated_normal")


def truncated_normal(key, shape, dtype=jnp.float32):
    """Normal values of deviation 0.02; timm cuts at +-2 and not at two deviations, so never."""
    return 0.02 * jax.random.normal(key, shape, dtype)


def per_channel(vector, x):
    """The vector [C] ready to broadcast against x [..., C], in the dtype of x."""
    return vector.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


def gelu(x):
    """GELU, exact (erf)."""
    return jax.nn.gelu(x, approximate=False)


def quick_gelu(x):
    """GELU as CLIP approximates it: x * sigmoid(1.702 x)."""
    return x * jax.nn.sigmoid(1.702 * x)


def drop_path(x, rate: float, key):
    """x [B, ...] with whole examples set to 0 at `rate` and the others scaled up; key None: x.

    Stochastic depth (Huang et al. 2016), per example as in timm.
    """
    if key is None or rate == 0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, (x.shape[0],) + (1,) * (x.ndim - 1))
    return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))


class Dense(nn.Module):
    """x @ kernel + bias on the last axis; kernel [C, width] with the logical `axes`."""

    width: int
    axes: Axes = ("embed", "mlp")
    use_bias: bool = True
    kernel_init: Callable = fan_in_normal
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        kernel_init = nn.with_logical_partitioning(self.kernel_init, self.axes)
        kernel = self.param("kernel", kernel_init, (x.shape[-1], self.width))
        x = x.astype(self.dtype) @ kernel.astype(self.dtype)
        if not self.use_bias:
            return x
        bias_init = nn.with_logical_partitioning(init.zeros_init(), self.axes[-1:])
        return x + per_channel(self.param("bias", bias_init, (self.width,)), x)


class Conv(nn.Module):
    """Convolution of [B, H, W, C] with a kernel [size, size, C, width] and zero padding."""

    width: int
    size: int
    stride: int = 1
    padding: int | None = None  # pixels on every side; None: size // 2
    axes: Axes = ("embed", "mlp")  # of the last two axes of the kernel
    use_bias: bool = True
    kernel_init: Callable = torch_uniform
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        pad = self.size // 2 if self.padding is None else self.padding
        kernel_init = nn.with_logical_partitioning(self.kernel_init, (None, None, *self.axes))
        shape = (self.size, self.size, x.shape[-1], self.width)
        kernel = self.param("kernel", kernel_init, shape)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        if (self.size, self.stride, pad) == (3, 1, 1):
            x = convolve(x, kernel)
        else:
            x = jax.lax.conv_general_dilated(
                x,
                kernel,
                window_strides=(self.stride, self.stride),
                padding=((pad, pad), (pad, pad)),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
        if not self.use_bias:
            return x
        bias_init = nn.with_logical_partitioning(init.zeros_init(), self.axes[-1:])
        return x + per_channel(self.param("bias", bias_init, (self.width,)), x)


class DepthwiseConv(nn.Module):
    """One size x size filter per channel of [B, H, W, C], stride 1; kernel [size, size, 1, C]."""

    size: int
    use_bias: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        axes = (None, None, None, "embed")
        kernel_init = nn.with_logical_partitioning(torch_uniform, axes)
        kernel = self.param("kernel", kernel_init, (self.size, self.size, 1, x.shape[-1]))
        x = depthwise(x.astype(self.dtype), kernel.astype(self.dtype))
        if not self.use_bias:
            return x
        bias_init = nn.with_logical_partitioning(init.zeros_init(), axes[-1:])
        return x + per_channel(self.param("bias", bias_init, (x.shape[-1],)), x)


class LayerNorm(nn.Module):
    """Layer normalisation of the last axis, with scale and bias."""

    epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        return _scale_bias(self, _normalise(x.astype(jnp.float32), (-1,), self.epsilon))


class GroupNorm(nn.Module):
    """Group normalisation of [B, H, W, C]: each group of C / num_groups channels over the image."""

    num_groups: int = 32
    epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        b, h, w, c = x.shape
        if c % self.num_groups:
            raise ValueError(
                f"{c} channels cannot form {self.num_groups} groups; choose a divisor."
            )
        grouped = x.astype(jnp.float32).reshape(b, h * w, self.num_groups, c // self.num_groups)
        normal = _normalise(grouped, (1, 3), self.epsilon).reshape(x.shape)
        return _scale_bias(self, normal)


class MLP(nn.Module):
    """Dense layers of the given widths with an activation between them, none after the last."""

    widths: tuple[int, ...]
    activation: Callable = jax.nn.relu
    kernel_init: Callable = fan_in_normal
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        for i, width in enumerate(self.widths):
            axes = ("embed", "mlp") if i % 2 == 0 else ("mlp", "embed")
            x = x if i == 0 else self.activation(x)
            x = Dense(
                width,
                axes,
                kernel_init=self.kernel_init,
                dtype=self.dtype,
                name=f"dense_{i}",
            )(x)
        return x


def _normalise(x, axes, epsilon):
    mean = x.mean(axes, keepdims=True)
    variance = jnp.square(x - mean).mean(axes, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + epsilon)


def _scale_bias(module, x):
    """The affine end of a norm, as parameters of `module`: float32 in, module.dtype out."""
    scale_init = nn.with_logical_partitioning(init.ones_init(), ("embed",))
    bias_init = nn.with_logical_partitioning(init.zeros_init(), ("embed",))
    scale = module.param("scale", scale_init, x.shape[-1:])
    bias = module.param("bias", bias_init, x.shape[-1:])
    return (x * per_channel(scale, x) + per_channel(bias, x)).astype(module.dtype)
