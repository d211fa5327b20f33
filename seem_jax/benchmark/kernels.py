"""Suite `kernels`: every implementation of every kernel at the sizes of a configuration.

The tables that choose an implementation (`FASTEST` in kernels/masked_attention.py, the defaults of
depthwise, deformable attention and convolutions) hold what this suite found. Figures are
`kernels/<kernel>/<size>/<implementation>/p50_ms`, with `_gradient` for forward and backward together;
an implementation that cannot run on this device is named with its reason, and has no figure.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from seem_jax.benchmark.clock import Budget, times
from seem_jax.config import Config
from seem_jax.kernels import convolution, deformable_attention, depthwise, masked_attention
from seem_jax.kernels.point_sample import sample


def run(config: Config, budget: Budget) -> dict[str, float]:
    found: dict[str, float] = {}
    for kernel in (_attention, _depthwise, _convolution, _deformable, _points):
        found |= kernel(config, budget)
    return found


def _attention(config: Config, budget: Budget) -> dict[str, float]:
    """All slots of a training step look at each level; and those of a click at the finest."""
    decoder, data = config.model.decoder, config.data
    visual = decoder.queries_per_prompt * data.max_prompts
    training = 2 * decoder.num_object_queries + visual + decoder.num_memory
    click = decoder.queries_per_prompt + decoder.num_memory
    found: dict[str, float] = {}
    for slots, stride in ((training, 32), (training, 16), (training, 8), (click, 8)):
        pixels = (data.image_size // stride) ** 2
        width = decoder.width // decoder.num_heads
        q, k, v = (
            _normal((1, decoder.num_heads, rows, width), config.model.dtype)
            for rows in (slots, pixels, pixels)
        )
        logits = _normal((1, slots, pixels), "float32")
        for name in masked_attention.IMPLEMENTATIONS:

            def attend(q, k, v, name=name, logits=logits):
                return masked_attention.masked_attention(q, k, v, logits, implementation=name)

            key = f"kernels/masked_attention/{slots}x{pixels}/{name}"
            found |= _both(key, attend, (q, k, v), budget)
    return found


def _depthwise(config: Config, budget: Budget) -> dict[str, float]:
    """The focal convolutions of the first stage."""
    side, width = config.data.image_size // 4, config.model.backbone.width
    x, found = _normal((1, side, side, width), config.model.dtype), {}
    for size in (3, 5, 7):
        kernel = _normal((size, size, 1, width), config.model.dtype)
        for name, compute in depthwise.IMPLEMENTATIONS.items():
            key = f"kernels/depthwise/{size}x{size}_{side}_{width}/{name}"
            found |= _both(key, compute, (x, kernel), budget)
    return found


def _convolution(config: Config, budget: Budget) -> dict[str, float]:
    """One of the two large convolutions of the pixel decoder, at stride 4."""
    side, width = config.data.image_size // 4, config.model.pixel_decoder.width
    x = _normal((1, side, side, width), config.model.dtype)
    kernel, found = _normal((3, 3, width, width), config.model.dtype), {}
    for name, compute in convolution.IMPLEMENTATIONS.items():
        key = f"kernels/convolution/3x3_{side}_{width}/{name}"
        found |= _both(key, compute, (x, kernel), budget)
    return found


def _deformable(config: Config, budget: Budget) -> dict[str, float]:
    """Every pixel of strides 8 to 32 reads four points of each level."""
    pixel_decoder, rng = config.model.pixel_decoder, np.random.default_rng(0)
    heads, sides = pixel_decoder.num_heads, [config.data.image_size // s for s in (32, 16, 8)]
    number = sum(side**2 for side in sides)
    values = tuple(
        _normal((1, side, side, heads, pixel_decoder.width // heads), config.model.dtype)
        for side in sides
    )
    shape = (1, number, heads, len(sides), pixel_decoder.num_points)
    points = jnp.asarray(rng.uniform(0, 1, (*shape, 2)), jnp.float32)
    weights, found = jnp.full(shape, 1 / (len(sides) * pixel_decoder.num_points)), {}
    for name in deformable_attention.IMPLEMENTATIONS:

        def read(values, points, weights, name=name):
            return deformable_attention.deformable_attention(
                values, points, weights, implementation=name
            )

        found |= _one(
            f"kernels/deformable/{number}/{name}", read, (values, points, weights), budget
        )
    return found


def _points(config: Config, budget: Budget) -> dict[str, float]:
    """The reads of the mask features that all slots share in matching."""
    side, width = config.data.image_size // 4, config.model.decoder.width
    number = config.loss.num_points
    features = _normal((1, side, side, width), config.model.dtype)
    points = jnp.asarray(np.random.default_rng(0).uniform(0, 1, (1, number, 2)), jnp.float32)
    return _one(f"kernels/points/{number}_{width}", sample, (features, points), budget)


def _normal(shape, dtype):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32), dtype)


def _both(key: str, function: Callable, arguments: tuple, budget: Budget) -> dict[str, float]:
    """Forward, and forward with the gradient of all arguments."""

    def total(*arguments):
        return function(*arguments).astype(jnp.float32).sum()

    gradient = jax.grad(total, argnums=tuple(range(len(arguments))))
    return _one(key, function, arguments, budget) | _one(
        f"{key}_gradient", gradient, arguments, budget
    )


def _one(key: str, function: Callable, arguments: tuple, budget: Budget) -> dict[str, float]:
    run = jax.jit(function)
    try:
        seconds = times(lambda: run(*arguments), budget)
    except Exception as error:  # whatever a compiler for another device says
        reason = str(error).strip().splitlines() or [type(error).__name__]
        print(f"  {key}: not on this device: {reason[0][:160]}", flush=True)
        return {}
    return {f"{key}/p50_ms": 1e3 * float(np.median(seconds))}
