"""The compiled step in a file: found again for the same program only, and never in the way of training."""

import dataclasses
import logging
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seem_jax import sharding
from seem_jax.benchmark.compiling import own_cache
from seem_jax.config import Config, MeshConfig
from seem_jax.training import kept_program
from seem_jax.training.ledger import FROM_CACHE, EventCounter


@pytest.fixture(autouse=True)
def empty_cache(tmp_path):
    """What the tests share could hold the step, which then cannot be kept."""
    with own_cache(str(tmp_path / "jax")):
        jax.clear_caches()
        yield


@pytest.fixture
def config(tmp_path):
    config = Config()
    config.compile_cache = str(tmp_path / "cache")
    return config


def step(state, batch, names):
    """Like a training step: a new state in place of the old one, and metrics."""
    return {"w": state["w"] + batch.sum()}, {
        "loss": (state["w"] * names).sum(),
        "norm": batch.max(),
    }


SHAPES = (
    {"w": jax.ShapeDtypeStruct((4,), jnp.float32)},
    jax.ShapeDtypeStruct((3,), jnp.float32),
    jax.ShapeDtypeStruct((4,), jnp.float32),
)
ONE = sharding.make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])


def values():
    return {"w": jnp.arange(4.0)}, jnp.arange(3.0), jnp.ones(4)


@pytest.fixture
def kept(config):
    path = kept_program.place(config, SHAPES, ONE)
    kept_program.keep(path, jax.jit(step, donate_argnums=0).lower(*SHAPES).compile())
    return path


def test_a_kept_step_gives_what_the_compiled_one_gives_and_uses_its_state_up(kept):
    want_state, want = jax.jit(step)(*values())
    loaded = kept_program.load(kept, SHAPES, ONE)
    given = values()
    state, metrics = loaded(*given)
    np.testing.assert_array_equal(state["w"], want_state["w"])
    assert {name: float(x) for name, x in metrics.items()} == {k: float(x) for k, x in want.items()}
    assert given[0]["w"].is_deleted()


def test_a_step_of_eight_devices_is_one_again(config):
    mesh = sharding.make_mesh(MeshConfig(2, 4, 1), jax.devices())
    rows, everywhere = sharding.batch(mesh), sharding.replicated(mesh)
    shapes = (
        {"w": jax.ShapeDtypeStruct((4,), jnp.float32, sharding=everywhere)},
        jax.ShapeDtypeStruct((16,), jnp.float32, sharding=rows),
        jax.ShapeDtypeStruct((4,), jnp.float32, sharding=everywhere),
    )
    path = kept_program.place(config, shapes, mesh)
    assert path != kept_program.place(config, shapes, ONE)
    kept_program.keep(path, jax.jit(step, out_shardings=everywhere).lower(*shapes).compile())
    state, batch, names = values()
    given = jax.tree.map(
        lambda x, shape: jax.device_put(x, shape.sharding), (state, jnp.arange(16.0), names), shapes
    )
    state, metrics = kept_program.load(path, shapes, mesh)(*given)
    np.testing.assert_array_equal(state["w"], np.arange(4.0) + 120)
    assert float(metrics["norm"]) == 15 and len(state["w"].sharding.device_set) == 8


def test_a_program_out_of_the_cache_of_jax_is_recognised_since_it_cannot_be_kept(tmp_path):
    """Also says whether that is still so: when the last lines fail, the precaution can go."""
    with own_cache(str(tmp_path)):
        counts, programs = [], []
        for _ in range(2):
            jax.clear_caches()
            lowered = jax.jit(step, donate_argnums=0).lower(*SHAPES)
            with EventCounter(FROM_CACHE) as hits:
                programs.append(lowered.compile())
            counts.append(hits.count)
    assert counts == [0, 1]
    path = tmp_path / "kept"
    kept_program.keep(path, programs[0])
    kept_program.load(path, SHAPES, ONE)(*values())
    kept_program.keep(path, programs[1])
    with pytest.raises(jax.errors.JaxRuntimeError, match="not found"):
        jax.device_get(kept_program.load(path, SHAPES, ONE)(*values()))


def test_another_configuration_code_or_shape_has_another_place(config, monkeypatch):
    here = kept_program.place(config, SHAPES, ONE)
    assert kept_program.place(dataclasses.replace(config, workdir="elsewhere"), SHAPES, ONE) == here
    others = [
        kept_program.place(dataclasses.replace(config, seed=7), SHAPES, ONE),
        kept_program.place(config, (*SHAPES[:2], jax.ShapeDtypeStruct((5,), jnp.float32)), ONE),
    ]
    others.append(kept_program.place(config, SHAPES, ONE, (step,)))
    others.append(kept_program.place(config, SHAPES, ONE, decoder=False))
    typed = types.FunctionType(step.__code__.replace(co_filename="<stdin>"), {})
    assert kept_program.place(config, SHAPES, ONE, (typed,)) is None
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
    others.append(kept_program.place(config, SHAPES, ONE))
    monkeypatch.undo()
    monkeypatch.setattr(kept_program.agreement, "code_fingerprint", lambda: "other")
    others.append(kept_program.place(config, SHAPES, ONE))
    assert len({here, *others}) == 7


def test_without_a_cache_or_with_several_processes_nothing_is_kept(config, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert kept_program.place(config, SHAPES, ONE) is None
    monkeypatch.undo()
    config.compile_cache = ""
    assert kept_program.place(config, SHAPES, ONE) is None


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "page"])
def test_a_damaged_file_is_told_and_removed(kept, damage, caplog):
    content = bytearray(kept.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "bit":
        content[-100] ^= 1
    elif damage == "empty":
        content = b""
    else:
        content = b"<html>\nnot found</html>"
    kept.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert kept_program.load(kept, SHAPES, ONE) is None
    assert "compiled again" in caplog.text and not kept.exists()


def test_a_file_that_cannot_be_read_is_told(config, caplog):
    path = kept_program.place(config, SHAPES, ONE)
    path.mkdir(parents=True)
    with caplog.at_level(logging.WARNING):
        assert kept_program.load(path, SHAPES, ONE) is None
    assert "compiled again" in caplog.text


def test_nothing_is_loaded_where_nothing_is(config):
    assert kept_program.load(kept_program.place(config, SHAPES, ONE), SHAPES, ONE) is None


def test_a_folder_that_takes_no_file_is_told_and_nothing_else(config, tmp_path, caplog):
    (tmp_path / "cache").write_text("a file")
    compiled = jax.jit(step).lower(*SHAPES).compile()
    with caplog.at_level(logging.WARNING):
        kept_program.keep(kept_program.place(config, SHAPES, ONE), compiled)
    assert "not kept" in caplog.text


def test_old_ones_go(kept):
    compiled = jax.jit(step).lower(*SHAPES).compile()
    for number in range(kept_program.MOST + 2):
        kept_program.keep(kept.with_name(f"{kept_program.PREFIX}{number}"), compiled)
    left = {path.name for path in kept.parent.iterdir()}
    assert len(left) == kept_program.MOST and f"{kept_program.PREFIX}{number}" in left
