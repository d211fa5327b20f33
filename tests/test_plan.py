"""A dry run says what would run: mesh, how arrays lie, memory, steps and time."""

import functools
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from seem_jax import sharding
from seem_jax.config import MeshConfig
from seem_jax.config_files import load_config
from seem_jax.models.seem import build
from seem_jax.training import plan as plans
from seem_jax.training import state as states
from tests.fakes import tiny_config

ROOT = Path(__file__).resolve().parents[1]


def focalt(**mesh):
    config = load_config(ROOT / "configs/focalt.py")
    config.mesh = MeshConfig(**mesh)
    return config


@functools.cache
def split_over_eight(frozen):
    """The state of Focal-T as shapes, split over eight devices; the official recipe unless frozen is
    given."""
    config = focalt(data=1, fsdp=8)
    config.optimizer.frozen = config.optimizer.frozen if frozen is None else frozen
    return states.abstract(build(config.model), config, plans.abstract_mesh(config, 8))


@pytest.mark.parametrize("frozen", [None, ()], ids=["the decoder learns", "all learns"])
def test_under_fsdp_a_device_holds_at_most_a_sixth_of_the_replicated_state(frozen):
    """Focal-T on eight devices: parameters and optimizer of the whole state."""
    state = split_over_eight(frozen)
    replicated = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert replicated > 900e6
    assert plans.bytes_per_device(state) <= replicated / 6


def test_a_dry_run_says_what_a_pod_would_do_without_one():
    lines = plans.plan(focalt(data=2, fsdp=8), 16, "TPU v5e")
    assert lines[0] == "focalt: 16 x TPU v5e, mesh {'data': 2, 'fsdp': 8, 'tensor': 1}"
    assert lines[1] == "parameters: 39.81 M learn, 124.81 M are frozen"
    text = "\n".join(lines)
    assert "split over fsdp" in text
    assert "memory of a device: " in text
    assert "batch: 16 images of 1024 pixels, 1 on a device at a time" in text
    assert "steps: 366,000, 5,856,000 images" in text
    assert "if the useful work takes 30% of the peak; not measured" in text


def test_a_measured_step_gives_the_time():
    config = tiny_config()
    config.num_steps, config.mesh = 1000, MeshConfig(1, 1, 1)
    assert plans.plan(config, 1, "cpu", 0.5)[-1].startswith("time: 0:08:20 at 0.5 s a step")
    assert plans.plan(config, 1, "cpu")[-1].startswith("time: unknown here")


def test_a_batch_that_does_not_fit_is_refused_before_anything_runs():
    config = tiny_config()
    config.data.batch_size, config.accumulate, config.mesh = 16, 4, MeshConfig()
    with pytest.raises(
        ValueError, match=r"batch_size = 16 in accumulate = 4 parts .* multiple of 32"
    ):
        plans.plan(config, 8, "cpu")


def test_the_plan_has_the_mesh_that_the_run_makes():
    config = tiny_config()
    config.mesh = MeshConfig(data=2, fsdp=-1, tensor=2)
    made = sharding.make_mesh(config.mesh, jax.devices())
    assert dict(plans.abstract_mesh(config, 8).shape) == dict(made.shape)


def test_every_parameter_that_is_large_names_its_axes():
    """Encoders, pixel decoder, text encoder and decoder alike; what is not split is small."""
    state = split_over_eight(None)
    whole = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(states.merge(state))
        if "fsdp" not in leaf.sharding.spec
    }
    total = states.num_parameters(states.merge(state))
    assert sum(whole.values()) < 0.01 * total, sorted(whole.items(), key=lambda item: -item[1])[:5]


def test_the_command_says_it_and_makes_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "seem_jax.train", "--config=configs/shapes.py", "--dry_run",
         f"--workdir={tmp_path / 'run'}", "--num_devices=1"],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "mesh {'data': 1, 'fsdp': 1, 'tensor': 1}" in done.stdout
    assert "memory of a device: " in done.stdout
    assert not (tmp_path / "run").exists()
