import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging
from jax.sharding import NamedSharding, PartitionSpec

from seem_jax import checkpoint, manifest, sharding
from seem_jax.checkpoint_folder import differences
from seem_jax.config import MeshConfig
from tests.fakes import tiny_config

ROOT = Path(__file__).resolve().parents[1]


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


def test_a_reader_leaves_a_step_alone_that_is_not_sealed_yet(saved):
    """Its run may be about to: an evaluation beside it takes the step before."""
    folder = saved / "checkpoints" / "steps" / "4"
    (folder / "manifest.json").rename(saved / "later")
    params, _ = checkpoint.restore_params(saved)
    assert float(params["decoder"]["kernel"][0, 0]) == 2.0
    (saved / "later").rename(folder / "manifest.json")
    params, _ = checkpoint.restore_params(saved)
    assert float(params["decoder"]["kernel"][0, 0]) == 4.0


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


def damaged_in_every_file(folder, flips, cuts, seed=0):
    """The content of every file harmed in turn, with what was done: deleted, bits flipped, cut short."""
    rng = np.random.default_rng(seed)
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    sizes = np.array([max(p.stat().st_size, 1) for p in files])
    harms = [(file, "deleted", None) for file in files]
    for _ in range(flips):  # half by size, half each file alike, so that small ones are hit too
        file = files[rng.choice(len(files), p=sizes / sizes.sum() if rng.random() < 0.5 else None)]
        if size := file.stat().st_size:
            harms.append((file, "bit", (int(rng.integers(size)), 1 << int(rng.integers(8)))))
    for _ in range(cuts):
        file = files[rng.integers(len(files))]
        if size := file.stat().st_size:
            harms.append((file, "cut", int(rng.integers(size))))
    for file, harm, where in harms:
        content = file.read_bytes()
        if harm == "deleted":
            file.unlink()
        elif harm == "bit":
            changed = bytearray(content)
            changed[where[0]] ^= where[1]
            file.write_bytes(bytes(changed))
        else:
            file.write_bytes(content[:where])
        yield file, harm, where
        file.write_bytes(content)


@pytest.mark.parametrize(
    ("flips", "cuts"),
    [(100, 10), pytest.param(1000, 100, marks=[pytest.mark.slow, pytest.mark.chaos])],
)
def test_no_damage_of_any_file_is_silent(saved, flips, cuts):
    folder = saved / "checkpoints" / "steps" / "4"
    assert manifest.problem(folder) is None
    count = 0
    for file, harm, where in damaged_in_every_file(folder, flips, cuts):
        reason = manifest.problem(folder)
        assert reason is not None, (file, harm, where)
        assert file.name in reason
        count += 1
    assert count > flips
    assert manifest.problem(folder) is None


def test_falling_back_is_said(saved, caplog):
    flip_a_bit(largest_file(saved / "checkpoints" / "steps" / "4" / "params"))
    logging.set_verbosity(logging.WARNING)
    with checkpoint.Checkpoints(saved, tiny_config()) as checkpoints:
        assert checkpoints.latest == 2
    said = caplog.text
    assert "was changed after it was written (SHA-256 differs). Falling back" in said


def test_an_array_that_differs_though_all_files_agree_is_not_taken(saved, caplog):
    """As after a fault of memory while saving: sealed over wrong arrays, found by their own hashes."""
    folder = saved / "checkpoints" / "steps" / "4"
    leaves = manifest.leaves(folder)
    leaves["opt_state/mu/decoder/kernel"] = "00000000deadbeef"
    manifest.write(folder, leaves)
    assert manifest.problem(folder) is None
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    data = batches()
    with checkpoint.Checkpoints(saved, tiny_config()) as checkpoints:
        assert checkpoints.latest == 4
        found = checkpoints.restore(*(abstract(tree, here) for tree in trees()), data)
        assert checkpoints.latest == 2
    jax.tree.map(np.testing.assert_array_equal, found[0], trees(2)[0])
    assert next(data) == 2
    assert "not what they were when they were saved" in caplog.text


def test_the_hash_of_an_array_feels_every_bit_and_no_mesh():
    rng = np.random.default_rng(0)
    value = rng.normal(size=(16, 24)).astype(np.float32)
    want = manifest.fetch(manifest.fingerprints({"x": jnp.asarray(value)}))
    for sizes, spec in (((1, 8, 1), ("fsdp",)), ((2, 2, 2), ("tensor", "fsdp")), ((4, 2, 1), ())):
        mesh = sharding.make_mesh(MeshConfig(*sizes))
        spread = jax.device_put(value, NamedSharding(mesh, PartitionSpec(*spec)))
        assert manifest.fetch(manifest.fingerprints({"x": spread})) == want
    for _ in range(50):
        changed = value.copy()
        bits = changed.view(np.uint32).reshape(-1)
        bits[rng.integers(bits.size)] ^= np.uint32(1) << np.uint32(rng.integers(32))
        found = manifest.fetch(manifest.fingerprints({"x": jnp.asarray(changed)}))
        assert found != want
        assert all(a != b for a, b in zip(halves(found["x"]), halves(want["x"]), strict=True))


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.uint8, bool, jnp.bfloat16])
def test_one_cpu_device_finds_the_same_hash_without_compiling(dtype, monkeypatch):
    values = np.random.default_rng(0).normal(size=(6, 4, 3), scale=100)
    trees = {"x": jnp.asarray(values).astype(dtype), "number": jnp.asarray(7).astype(dtype)}
    want = manifest.fetch(manifest.fingerprints(trees))
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(manifest, "_sums", None)
    assert manifest.fetch(manifest.fingerprints(trees)) == want


def halves(text):
    return text[:8], text[8:]


def test_leaves_stay_equal_from_eight_devices_to_four_two_one_and_eight(tmp_path):
    data, where = batches(), None
    for number, devices in enumerate((8, 4, 2, 1, 8), 1):
        mesh = sharding.make_mesh(MeshConfig(1, -1, 1), jax.devices()[:devices])
        spread = NamedSharding(mesh, PartitionSpec("fsdp"))
        with checkpoint.Checkpoints(tmp_path, tiny_config()) as checkpoints:
            if number == 1:
                params, opt_state, _ = jax.device_put(trees(7), spread)
            else:
                data = batches()
                like = [abstract(tree, spread) for tree in trees()[:2]]
                params, opt_state, _ = checkpoints.restore(*like, None, data)
            jax.tree.map(np.testing.assert_array_equal, params, trees(7)[0])
            assert params["decoder"]["kernel"].sharding == spread
            assert where is None or next(data) == where
            where = next(data) + 1
            checkpoints.save(number, params, opt_state, data)


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
    assert manifest.problem(folder) is not None
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
    assert differences(tiny_config(), config) == []


def test_a_full_disk_is_a_clear_error_and_the_last_checkpoint_stays(saved, monkeypatch):
    full = shutil.disk_usage(saved)._replace(free=10)
    with checkpoint.Checkpoints(saved, tiny_config()) as checkpoints:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
        params, opt_state, _ = trees(6)
        with pytest.raises(OSError, match=r"step 6 could not be written.*last good one is step 4"):
            checkpoints.save(6, params, opt_state, batches())
    monkeypatch.undo()
    assert manifest.problem(saved / "checkpoints" / "steps" / "4") is None


def test_a_run_does_not_begin_where_its_checkpoints_will_not_fit(saved, tmp_path, monkeypatch):
    """Two fit at a time, a new one being written before an old one goes."""
    params, opt_state, _ = trees()
    size = 64 * 4 * 2
    for free, fits in ((2 * size, True), (2 * size - 1, False)):
        full = shutil.disk_usage(saved)._replace(free=free)
        monkeypatch.setattr(shutil, "disk_usage", lambda path, full=full: full)
        with checkpoint.Checkpoints(tmp_path / "new", tiny_config()) as checkpoints:
            if fits:
                checkpoints.check_room(params, opt_state)
            else:
                with pytest.raises(OSError, match=r"2 checkpoints of .* must fit there at a time"):
                    checkpoints.check_room(params, opt_state)


def tries(folder, limits, *, own_disk):
    """What tests.full_disk printed; own_disk gives it a small file system to itself."""
    command = [sys.executable, "-m", "tests.full_disk", str(folder), *limits]
    if own_disk:
        mount = f'mount -t tmpfs -o size=64m none {folder} && exec "$@"'
        command = ["unshare", "-rm", "bash", "-c", mount, "bash", *command]
        able = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", str(folder)]
        if not shutil.which("unshare") or subprocess.run(able, capture_output=True).returncode:
            pytest.skip("no file system of one's own may be mounted here")
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("tried")]
    return [json.loads(line.removeprefix("tried")) for line in lines]


def check_tries(outcomes):
    for outcome in outcomes:
        assert outcome["where"] != "nowhere", outcome  # none swallowed
        assert "could not be written" in outcome["text"]
        assert "The last good one is step 1, untouched" in outcome["text"]
        assert outcome["newest"] == 1


def test_a_disk_that_fills_up_at_five_points_of_a_save_leaves_the_one_before(tmp_path):
    limits = [f"free={share}" for share in (0.02, 0.25, 0.5, 0.75, 0.95)]
    outcomes = tries(tmp_path, limits, own_disk=True)
    assert len(outcomes) == 5
    check_tries(outcomes)


def test_five_saves_that_fail_in_the_background_are_all_told(tmp_path):
    # The largest file of a save may be a quarter smaller than that of another: a larger share could fit.
    limits = [f"file={share}" for share in (0.05, 0.15, 0.25, 0.35, 0.45)]
    outcomes = tries(tmp_path, limits, own_disk=False)
    assert len(outcomes) == 5
    check_tries(outcomes)
    assert "a later step" in {outcome["where"] for outcome in outcomes}


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
