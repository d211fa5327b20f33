"""The device mesh, and which logical axis of an array lies along which mesh axis.

Parameters name their axes where they are made (``nn.with_logical_partitioning``); activations where
they pass a ``nn.with_logical_constraint``. The one table that maps those names to the mesh is RULES.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.core import meta
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from seem_jax.config import MeshConfig

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = (
    "data",
    "fsdp",
)  # a batch is split over both: fsdp splits parameters and examples alike
RULES = (
    ("batch", BATCH_AXES),
    ("embed", "fsdp"),
    ("mlp", "tensor"),
    ("heads", "tensor"),
    ("vocab", "tensor"),
)


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh of `devices` (default: all of all processes) with the axes data, fsdp and tensor.

    One size may be -1: it takes what the others leave. ValueError where the sizes do not multiply to
    the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = mesh_sizes(config, len(devices))
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def mesh_sizes(config: MeshConfig, num_devices: int) -> tuple[int, int, int]:
    """The sizes of AXES on so many devices; see `make_mesh`."""
    sizes = [config.data, config.fsdp, config.tensor]
    known = int(np.prod([size for size in sizes if size != -1]))
    given = f"mesh (data, fsdp, tensor) = {tuple(sizes)}"
    if sizes.count(-1) > 1 or min(sizes) < -1 or 0 in sizes:
        raise ValueError(f"{given}: expected positive sizes, at most one of them -1.")
    if -1 in sizes:
        sizes[sizes.index(-1)] = num_devices // known
    if int(np.prod(sizes)) != num_devices:
        raise ValueError(
            f"{given} on {num_devices} devices: expected sizes that multiply to {num_devices}."
        )
    return tuple(sizes)


@contextmanager
def use(mesh: Mesh | AbstractMesh) -> Iterator[None]:
    """Inside, jitted functions are traced with this mesh and with RULES."""
    enter = jax.sharding.use_abstract_mesh if isinstance(mesh, AbstractMesh) else jax.set_mesh
    with enter(mesh), nn.logical_axis_rules(RULES):
        yield


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch(mesh: Mesh) -> NamedSharding:
    """The first axis is split over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def check_batch_size(mesh: Mesh, batch_size: int, accumulate: int = 1) -> None:
    """ValueError unless the batch, in `accumulate` parts, can be split evenly."""
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % (devices * accumulate):
        times = f" in accumulate = {accumulate} parts" if accumulate > 1 else ""
        raise ValueError(
            f"data.batch_size = {batch_size}{times} cannot be split over data x fsdp = {devices} "
            f"devices: take a multiple of {devices * accumulate}, or another config.mesh."
        )


def unbox(boxed: Any) -> Any:
    """The arrays in their boxes. nn.unbox would constrain them too, which only works in a trace."""
    is_box = lambda x: isinstance(x, meta.AxisMetadata)  # noqa: E731
    return jax.tree.map(
        lambda x: x.unbox(apply_constraint=False) if is_box(x) else x, boxed, is_leaf=is_box
    )


def params(boxed: Any, mesh: Mesh) -> Any:
    """Shardings of a parameter tree, from the axis names in its boxes (``eval_shape`` of the init).

    An axis that its mesh axis does not divide is left whole, since small models have small axes.
    """
    wanted = nn.logical_to_mesh_sharding(nn.get_partition_spec(boxed), mesh, RULES)
    return jax.tree.map(lambda leaf, spec: _fitting(leaf.shape, spec), unbox(boxed), wanted)


def gather(params: Any, shardings: Any) -> Any:
    """Inside jit: the parameters whole along fsdp, ready for use; what ZeRO-3 calls the all-gather.

    Without it XLA spreads the fsdp axis of a weight into the activations, whose batch axis needs it:
    slower, and on 2 x 2 x 2 CPU devices (jax 0.10.2) with wrong numbers.
    """

    def whole(x: jax.Array, sharding: NamedSharding) -> jax.Array:
        names = (None if name == "fsdp" else name for name in sharding.spec)
        return jax.lax.with_sharding_constraint(
            x, NamedSharding(sharding.mesh, PartitionSpec(*names))
        )

    return jax.tree.map(whole, params, shardings)


def put_batch(tree: Any, mesh: Mesh) -> Any:
    """This process's part of a batch (NumPy) as global arrays on the mesh."""
    sharding = batch(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), tree)


def abstract(tree: Any, shardings: Any) -> Any:
    """The tree as ShapeDtypeStructs that carry these shardings."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        tree,
        shardings,
    )


def _fitting(shape: tuple[int, ...], sharding: NamedSharding) -> NamedSharding:
    mesh = sharding.mesh
    names = tuple(
        name if name is not None and size % mesh.shape[name] == 0 else None
        for size, name in zip(shape, tuple(sharding.spec) + (None,) * len(shape), strict=False)
    )
    return NamedSharding(mesh, PartitionSpec(*names))
