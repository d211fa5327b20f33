"""What a run would be, said before it starts: mesh, shardings, memory, steps, time."""

from __future__ import annotations

import collections
import math
from datetime import timedelta
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType

from seem_jax import sharding
from seem_jax.config import Config
from seem_jax.models.seem import build
from seem_jax.training import state as states
from seem_jax.training import utilisation

GOOD_UTILISATION = 0.3  # of the peak, for the estimate where nothing was measured


def plan(
    config: Config, num_devices: int, device_kind: str, step_seconds: float = 0.0
) -> list[str]:
    """Lines for a person; computes nothing on a device and needs no data.

    num_devices may be more than there are here. step_seconds (0: unknown) gives the time. ValueError
    where mesh, batch and accumulation do not fit together.
    """
    mesh = abstract_mesh(config, num_devices)
    sharding.check_batch_size(mesh, config.data.batch_size, config.accumulate)
    state = states.abstract(build(config.model), config, mesh)
    learning, resting = map(states.num_parameters, (state.trainable, state.frozen))
    images = config.num_steps * config.data.batch_size
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    at_once = config.data.batch_size // shards // config.accumulate
    lines = [
        f"{config.name}: {num_devices} x {device_kind}, mesh {dict(mesh.shape)}",
        f"parameters: {learning / 1e6:.2f} M learn, {resting / 1e6:.2f} M are frozen",
        *_shardings(state),
        *memory_lines(state, config, at_once),
        f"batch: {config.data.batch_size} images of {config.data.image_size} pixels, {at_once} on a "
        f"device at a time, {config.accumulate} parts, activations in {config.model.dtype}, "
        f"computed again: {config.rematerialise or 'nothing'}",
        f"steps: {config.num_steps:,}, {images:,} images; a checkpoint every "
        f"{config.checkpoint_every:,} steps, {config.keep_checkpoints} are kept",
        _time(config, num_devices, device_kind, step_seconds),
    ]
    return lines


def abstract_mesh(config: Config, num_devices: int) -> AbstractMesh:
    """The mesh that `sharding.make_mesh` would make of so many devices."""
    sizes = sharding.mesh_sizes(config.mesh, num_devices)
    return AbstractMesh(sizes, sharding.AXES, axis_types=(AxisType.Auto,) * len(sizes))


def bytes_per_device(tree: Any) -> int:
    """Of arrays that carry shardings, what one device holds of them."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def memory_lines(state: states.TrainState, config: Config, images: int) -> list[str]:
    """Memory of one device. Activations need a compiled program: seem_jax.benchmark counts them."""
    held = {
        "parameters that learn": bytes_per_device(state.trainable),
        "optimizer": bytes_per_device(state.opt_state),
        "gradients": bytes_per_device(state.trainable),
        "frozen parameters": bytes_per_device(state.frozen),
        "parameters gathered for a step": _gathered(state),
    }
    data = config.data
    held["batch"] = images * config.accumulate * data.image_size**2 * (3 + data.num_planes)
    parts = ", ".join(f"{name} {size / 2**20:,.0f} MiB" for name, size in held.items())
    return [
        f"memory of a device: {sum(held.values()) / 2**30:.2f} GiB and activations ({parts})",
        f"checkpoint: {_bytes((state.trainable, state.opt_state)) / 2**30:.2f} GiB each; a run of one "
        "process copies as much on its devices while it saves",
    ]


def _gathered(state: states.TrainState) -> int:
    """What a device receives of the others' parts of the parameters, to use them in a step."""
    return sum(
        bytes_per_device(leaf) * (leaf.sharding.mesh.shape["fsdp"] - 1)
        for leaf in jax.tree.leaves(states.merge(state))
        if "fsdp" in leaf.sharding.spec
    )


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _shardings(state: states.TrainState) -> list[str]:
    """How the parameters lie, by bytes."""
    found: collections.Counter[str] = collections.Counter()
    for leaf in jax.tree.leaves(states.merge(state)):
        sizes = leaf.sharding.mesh.shape
        axes = {axis for axis in leaf.sharding.spec if axis is not None and sizes[axis] > 1}
        found[" and ".join(sorted(axes)) or "no axis"] += leaf.size * leaf.dtype.itemsize
    total = sum(found.values())
    return [
        f"  {100 * size / total:.1f}% of them split over {axes}"
        for axes, size in found.most_common()
    ]


def _time(config: Config, num_devices: int, device_kind: str, step_seconds: float) -> str:
    if step_seconds:
        whole = timedelta(seconds=round(step_seconds * config.num_steps))
        return f"time: {whole} at {step_seconds:g} s a step, evaluation not counted"
    peak = utilisation.peak_tflops(device_kind)
    if not (peak and config.useful_gflop_per_image):
        return "time: unknown here; measure some steps and give --step_seconds"
    flop = config.useful_gflop_per_image * 1e9 * config.data.batch_size
    seconds = flop / (GOOD_UTILISATION * peak * 1e12 * num_devices)
    whole = timedelta(seconds=round(seconds * config.num_steps))
    return (
        f"time: {whole} at {seconds:.3f} s a step, if the useful work takes "
        f"{100 * GOOD_UTILISATION:.0f}% of the peak; not measured"
    )
