"""What a training run carries from step to step, created directly on the mesh."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from seem_jax import sharding
from seem_jax.config import Config
from seem_jax.models.seem import SEEM, initialise
from seem_jax.training import optimizer
from seem_jax.types import Array

# Compiler options for a program that runs once.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@struct.dataclass
class TrainState:
    step: Array  # int32 [], steps taken so far
    trainable: dict  # parameters that learn, by top-level name
    frozen: dict  # parameters that stay; no gradients, no optimizer state
    opt_state: Any


def merge(state: TrainState) -> dict:
    """The whole parameter tree."""
    return {**state.trainable, **state.frozen}


def abstract(model: SEEM, config: Config, mesh: Mesh) -> TrainState:
    """The state as ShapeDtypeStructs with their shardings; computes nothing."""
    tx = optimizer.make(config.optimizer, config.num_steps)
    with sharding.use(mesh):
        boxed = jax.eval_shape(lambda key: initialise(model, key), jax.random.key(0))
    params = sharding.abstract(sharding.unbox(boxed), sharding.params(boxed, mesh))
    trainable, frozen = optimizer.split(params, config.optimizer.frozen)
    opt_state = optax.tree.map_params(
        tx,
        lambda moment, param: moment.update(sharding=param.sharding),
        jax.eval_shape(tx.init, trainable),
        trainable,
        transform_non_params=lambda x: x.update(sharding=sharding.replicated(mesh)),
    )
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=sharding.replicated(mesh))
    return TrainState(step=step, trainable=trainable, frozen=frozen, opt_state=opt_state)


def create(model: SEEM, config: Config, mesh: Mesh, key: Array) -> TrainState:
    """A fresh state, every array made where it belongs. The same key gives the same parameters on
    any mesh."""
    return creation(model, config, abstract(model, config, mesh))(key)


def creation(model: SEEM, config: Config, like: TrainState) -> Callable[[Array], TrainState]:
    """`create` for a state of these shapes and shardings: traced already, compiled in the call."""
    tx = optimizer.make(config.optimizer, config.num_steps)
    mesh = like.step.sharding.mesh

    def fresh(key: Array) -> TrainState:
        params = nn.unbox(initialise(model, key))
        trainable, frozen = optimizer.split(params, config.optimizer.frozen)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            trainable=trainable,
            frozen=frozen,
            opt_state=tx.init(trainable),
        )

    # It runs once, so on a CPU the compiler need not try hard.
    options = QUICK if mesh.devices.flat[0].platform == "cpu" else None
    shardings = jax.tree.map(lambda x: x.sharding, like)
    with sharding.use(mesh):
        lowered = jax.jit(fresh, out_shardings=shardings).lower(jax.random.key(0))
    return lambda key: lowered.compile(options)(key)


def num_parameters(tree: Any) -> int:
    return sum(int(leaf.size) for leaf in jax.tree.leaves(tree))
