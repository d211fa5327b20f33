"""Gradients of a batch part by part, for batches whose activations do not fit into memory at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from seem_jax import sharding
from seem_jax.types import Array, Batch


def accumulated(
    gradient: Callable[[dict, Batch, Array], Any],
    trainable: dict,
    batch: Batch,
    key: Array,
    *,
    parts: int,
    mesh: Mesh,
) -> Any:
    """The mean of gradient(trainable, part, key of the part) over `parts` equal parts of the batch.

    Part p has the images p, p + parts, ..., so that every device keeps the images that it holds. Each
    part draws its own random numbers and divides its losses by its own counts of masks, as the
    processes of the official release do; so the mean differs a little from one large batch.
    """
    if parts == 1:
        return gradient(trainable, batch, key)
    spread = NamedSharding(mesh, PartitionSpec(None, sharding.BATCH_AXES))

    def split(x: Array) -> Array:  # [B, ...] -> [parts, B / parts, ...]
        x = jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0)
        return jax.lax.with_sharding_constraint(x, spread)

    def add(total: Any, numbered: tuple[Batch, Array]) -> tuple[Any, None]:
        part, number = numbered
        found = gradient(trainable, part, jax.random.fold_in(key, number))
        return jax.tree.map(jnp.add, total, found), None

    pieces = jax.tree.map(split, jax.tree.map(jnp.asarray, batch))
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), pieces)
    shapes = jax.eval_shape(gradient, trainable, one, key)
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, _ = jax.lax.scan(add, nothing, (pieces, jnp.arange(parts)))
    return jax.tree.map(lambda x: x / parts, total)
