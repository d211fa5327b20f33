import dataclasses
import json
import os
import shutil

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from seem_jax import checkpoint, sharding
from seem_jax.config import MeshConfig
from tests.fakes import tiny_config


def trees(step: int = 0):
    params = {"decoder": {"kernel": jnp.arange(64, dtype=jnp.float32).reshape(8, 8) + step}}
    return params, {"mu": jax.tree.map(jnp.zeros_like, params)}, {"text": {"bias": jnp.ones(8)}}


def batches():
    return iter(grain.MapDataset.range(1000).to_iter_dataset())


@pytest.fixture
def saved(tmp_path):
    """A work folder with checkpoints of steps 2 and 4."""
    data = batches()
    with checkpoint.Checkpoints(tmp_path, tiny_config()) as checkpoints:
        checkpoints.save_frozen(trees()[2])
        for step in (2, 4):
            next(data), next(data)
            params, opt_state, _ = trees(step)
            checkpoints.save(step, params, opt_state, data)
    return tmp_path


def abstract(tree, device_sharding):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device_sharding), tree
    )


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(bytes(content))


def largest_file(folder):
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json"]
    return max(files, key=lambda p: p.stat().st_size)


def test_a_run_continues_with_the_same_arrays_and_the_next_example(saved):
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    data = batches()
    with checkpoint.Checkpoints(saved, tiny_config()) as checkpoints:
        assert checkpoints.latest == 4
        found = checkpoints.restore(*(abstract(tree, here) for tree in trees()), data)
    for got, want in zip(found, trees(4), strict=True):
        jax.tree.map(np.testing.assert_array_equal, got, want)
    assert next(data) == 4


def test_restores_onto_another_mesh(saved):
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    spread = NamedSharding(mesh, PartitionSpec("fsdp"))
    with checkpoint.Checkpoints(saved, tiny_config()) as checkpoints:
        params, _, _ = checkpoints.restore(*(abstract(tree, spread) for tree in trees()), batches())
    kernel = params["decoder"]["kernel"]
    assert kernel.sharding == spread
    np.testing.assert_array_equal(kernel, trees(4)[0]["decoder"]["kernel"])


def test_parameters_alone_come_with_the_frozen_ones_and_the_configuration(saved):
    params, config = checkpoint.restore_params(saved)
    assert set(params) == {"decoder", "text"}
    np.testing.assert_array_equal(params["decoder"]["kernel"], trees(4)[0]["decoder"]["kernel"])
    assert config == tiny_config()
    older, _ = checkpoint.restore_params(saved, step=2)
    assert float(older["decoder"]["kernel"][0, 0]) == 2.0


@pytest.mark.parametrize("item", ["params", "opt_state", "data", "meta"])
def test_a_flipped_bit_is_detected_and_the_step_before_is_taken(saved, item):
    flip_a_bit(largest_file(saved / "checkpoints" / "steps" / "4" / item))
    with checkpoint.Checkpoints(saved, tiny_config()) as checkpoints:
        assert checkpoints.latest == 2
    assert (saved / "checkpoints" / "damaged" / "4").is_dir()


@pytest.mark.parametrize("harm", ["delete", "truncate", "no manifest", "stray file"])
def test_damaged_steps_are_never_taken(saved, harm):
    folder = saved / "checkpoints" / "steps" / "4"
    file = largest_file(folder / "params")
    if harm == "delete":
        file.unlink()
    elif harm == "truncate":
        os.truncate(file, file.stat().st_size // 2)
    elif harm == "stray file":
        (folder / "params" / "more").write_text("?")
    else:
        (folder / "manifest.json").unlink()
    assert checkpoint.problem(folder) is not None
    with checkpoint.Checkpoints(saved, tiny_config()) as checkpoints:
        assert checkpoints.latest == 2


def test_a_damaged_frozen_part_is_an_error_that_names_the_file(saved):
    file = largest_file(saved / "checkpoints" / "frozen")
    flip_a_bit(file)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with (
        checkpoint.Checkpoints(saved, tiny_config()) as checkpoints,
        pytest.raises(ValueError, match=file.name),
    ):
        checkpoints.restore(*(abstract(tree, here) for tree in trees()), batches())


def test_another_configuration_is_refused_with_the_fields_that_differ(saved):
    config = tiny_config()
    config.optimizer.learning_rate = 5e-4
    config.model.decoder.width = 64
    with pytest.raises(ValueError, match="another configuration") as error:
        checkpoint.Checkpoints(saved, config)
    assert "config.optimizer.learning_rate: checkpoint 0.001, now 0.0005" in str(error.value)
    assert "config.model.decoder.width: checkpoint 32, now 64" in str(error.value)


def test_logging_and_mesh_may_change_during_a_run():
    config = tiny_config()
    config.log_every, config.mesh.fsdp, config.evaluation.max_images = 7, 2, 9
    assert checkpoint.differences(tiny_config(), config) == []


def test_a_full_disk_is_a_clear_error_and_the_last_checkpoint_stays(saved, monkeypatch):
    full = shutil.disk_usage(saved)._replace(free=10)
    with checkpoint.Checkpoints(saved, tiny_config()) as checkpoints:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
        params, opt_state, _ = trees(6)
        with pytest.raises(OSError, match=r"step 6 could not be written.*last good one is step 4"):
            checkpoints.save(6, params, opt_state, batches())
    monkeypatch.undo()
    assert checkpoint.problem(saved / "checkpoints" / "steps" / "4") is None


def test_only_the_last_checkpoints_are_kept(tmp_path):
    config = dataclasses.replace(tiny_config(), keep_checkpoints=2)
    with checkpoint.Checkpoints(tmp_path, config) as checkpoints:
        for step in (1, 2, 3, 4):
            checkpoints.save(step, *trees(step)[:2], batches())
    assert sorted(p.name for p in (tmp_path / "checkpoints" / "steps").glob("[0-9]*")) == ["3", "4"]


def test_no_checkpoint_says_where_it_looked(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint"):
        checkpoint.restore_params(tmp_path)


def test_the_manifest_lists_every_file(saved):
    folder = saved / "checkpoints" / "steps" / "4"
    listed = json.loads((folder / "manifest.json").read_text())
    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert set(listed["files"]) == files - {"manifest.json"}
    assert set(listed["leaves"]) == {"params/decoder/kernel", "opt_state/mu/decoder/kernel"}
