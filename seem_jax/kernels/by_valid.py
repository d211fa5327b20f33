"""A function of many rows that costs what the valid ones among them cost."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from seem_jax.types import Array

AT_ONCE = 8  # rows of an image that are computed together


def by_valid(function: Callable, valid: Array, rows: Any, *images: Array) -> Any:
    """function(rows, *images) for the valid rows, a few at a time; 0 for the others. No gradient.

    rows is a tree of [B, M, ...], valid is bool [B, M], images are [B, ...]. The function gets the tree
    with `AT_ONCE` rows of every image, and gives a tree of [B, AT_ONCE, ...]. On a mesh each device works
    on the images it holds: left alone, XLA gathers the whole batch for a top_k.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in mesh.axis_names if axis != "tensor")
    parts = math.prod(mesh.shape[axis] for axis in axes)
    run = functools.partial(_by_valid, function)
    if parts == 1 or len(valid) % parts:
        return run(valid, rows, *images)
    spread = PartitionSpec(axes)
    return jax.shard_map(run, in_specs=spread, out_specs=spread, check_vma=False)(
        valid, rows, *images
    )


def _by_valid(function, valid, rows, *images):
    number = valid.shape[1]
    turns = -(-valid.sum(1, dtype=jnp.int32).max() // AT_ONCE)
    order = jnp.argsort(~valid, axis=1, stable=True)  # valid ones first
    missing = -number % AT_ONCE
    order = jnp.pad(
        order, ((0, 0), (0, missing)), constant_values=number
    )  # beyond the end: dropped

    @jax.jit  # so that it is traced once, though its shapes are asked for before
    def some(turn):
        """(which rows [B, AT_ONCE], what the function says of them)."""
        which = jax.lax.dynamic_slice_in_dim(order, turn * AT_ONCE, AT_ONCE, axis=1)
        taken = jax.tree.map(
            lambda x: jax.vmap(lambda x, at: x.at[at].get(mode="clip"))(x, which), rows
        )
        return which, function(taken, *images)

    def one_turn(turn, results):
        which, news = some(turn)
        put = jax.vmap(lambda all, at, new: all.at[at].set(new, mode="drop"))
        return jax.tree.map(lambda all, new: put(all, which, new), results, news)

    shapes = jax.eval_shape(some, jax.ShapeDtypeStruct((), jnp.int32))[1]
    results = jax.tree.map(lambda x: jnp.zeros((len(valid), number, *x.shape[2:]), x.dtype), shapes)
    results = jax.lax.fori_loop(0, turns, one_turn, results)
    return jax.tree.map(lambda x: jnp.where(_over(valid, x), x, jnp.zeros((), x.dtype)), results)


def _over(valid, array):
    return valid.reshape(*valid.shape, *[1] * (array.ndim - 2))
