import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seem_jax import checkpoint, sharding, train
from seem_jax.config import MeshConfig
from seem_jax.config_files import load_config
from seem_jax.models.seem import build
from seem_jax.training import goodput, starting_weights
from seem_jax.training import state as states
from seem_jax.training.ledger import COMPILED, EventCounter, Ledger, peak_bytes
from seem_jax.training.progress import progress_line
from seem_jax.training.step import make_train_step, vocabulary
from seem_jax.training.writer import Writer
from tests.fakes import class_token_ids, fake_batch, tiny_config

ROOT = Path(__file__).resolve().parents[1]


def start(workdir, *arguments):
    command = [sys.executable, "-m", "tests.fake_train", str(workdir), *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def run(workdir, *arguments):
    """(exit code, output) of a run left alone."""
    child = start(workdir, *arguments)
    output, _ = child.communicate(timeout=600)
    return child.returncode, output


def run_and_signal(workdir, number, after):
    """(exit code, output) of a run that gets a signal when its line of step `after` appears."""
    child = start(workdir)
    seen = []
    for line in child.stdout:
        seen.append(line)
        if line.startswith(f"step {after}/"):
            child.send_signal(number)
            break
    rest, _ = child.communicate(timeout=600)
    return child.returncode, "".join(seen) + rest


def losses(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [(line["step"], line["loss"], line["grad_norm"]) for line in map(json.loads, lines)]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("unbroken")
    return workdir, run(workdir)


@pytest.fixture(scope="module")
def broken(tmp_path_factory, unbroken):
    """The same run, killed in step 5, told to stop in step 6, poisoned in step 8, then finished."""
    workdir = tmp_path_factory.mktemp("broken")
    return workdir, {
        "killed": run_and_signal(workdir, signal.SIGKILL, after=5),
        "stopped": run_and_signal(workdir, signal.SIGTERM, after=6),
        "poisoned": run(workdir, 8),
        "finished": run(workdir),
        "again": run(workdir),
    }


def test_nothing_compiles_after_the_first_step(unbroken):
    workdir, (code, output) = unbroken
    assert code == 0, output
    assert "compiling the training step ... took" in output
    numbers = json.loads((workdir / "evaluation.json").read_text())
    assert numbers["run/compilations_after_first_step"] == 0
    assert {"run/train_seconds", "run/total_seconds", "run/peak_bytes"} <= set(numbers)
    assert (workdir / "report.html").is_file()
    assert list((workdir / "tensorboard").iterdir())


def test_a_killed_run_ends_with_the_same_bits_as_the_unbroken_one(unbroken, broken):
    outcomes = broken[1]
    assert outcomes["killed"][0] == -signal.SIGKILL
    assert re.search("continuing from the checkpoint of step [24]\n", outcomes["stopped"][1])
    assert outcomes["finished"][0] == 0, outcomes["finished"][1]
    (want, _), (got, _) = (checkpoint.restore_params(folder) for folder in (unbroken[0], broken[0]))
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert losses(broken[0]) == losses(unbroken[0])


def test_the_first_steps_have_no_terms_of_the_decoder_and_later_ones_do(unbroken):
    lines = (unbroken[0] / "metrics.jsonl").read_text().splitlines()
    with_decoder = [line["step"] for line in map(json.loads, lines) if "object/class" in line]
    assert with_decoder == [4, 5, 6, 7, 8]


def test_a_run_told_to_stop_saves_and_says_how_to_go_on(broken):
    code, output = broken[1]["stopped"]
    assert code == train.EXIT_STOPPED == 75
    stopped_at = int(output.split("saved at step ")[1].split(";")[0])
    assert stopped_at in (6, 7)
    assert f"continuing from the checkpoint of step {stopped_at}" in broken[1]["poisoned"][1]


def test_nan_in_a_batch_stops_the_run_with_step_terms_and_records(broken):
    code, output = broken[1]["poisoned"]
    assert code == 1
    message = output[output.index("NotFiniteError") :]
    assert "step 8: " in message
    assert "object/class" in message
    assert "records [800, 801]" in message
    assert re.search("continuing from the checkpoint of step [67]\n", broken[1]["finished"][1])


def test_a_finished_run_says_so(broken):
    code, output = broken[1]["again"]
    assert code == 0
    assert "tiny is done: 8 steps" in output
    assert "step 1/" not in output


def test_the_seconds_of_a_run_add_up_to_its_wall_time_over_kills_and_restarts(broken):
    workdir = broken[0]
    seconds = goodput.summary(workdir)
    assert sum(seconds[kind] for kind in goodput.KINDS) == pytest.approx(seconds["wall"], rel=0.01)
    lines = [json.loads(line) for line in (workdir / goodput.FILE).read_text().splitlines()]
    assert [line["event"] for line in lines if "event" in line] == ["start"] * 4
    ended = (workdir / "evaluation.json").stat().st_mtime
    assert seconds["wall"] == pytest.approx(ended - lines[0]["time"], rel=0.02)
    assert min(seconds[kind] for kind in ("productive", "compile", "start", "idle")) > 0
    numbers = json.loads((workdir / "evaluation.json").read_text())
    assert numbers["goodput/wall_seconds"] == seconds["wall"]


def test_two_runs_cannot_share_a_work_folder(tmp_path):
    with (
        train._only_one(tmp_path),
        pytest.raises(ValueError, match=f"in use by another training run .process {os.getpid()}"),
        train._only_one(tmp_path),
    ):
        pass


def test_the_progress_line_says_how_far_how_fast_and_how_well():
    values = {
        "loss": 3.456,
        "object/class": 1.0,
        "object/dice": 0.5,
        "steps_per_second": 2.0,
        "data_wait_share": 0.05,
        "peak_bytes": float(2**30),
    }
    assert progress_line(100, 500, values) == (
        "step 100/500  2.00 steps/s  0:03:20 left  loss 3.46  [object class 1.00 dice 0.50]"
        "  data wait 5%  1.0 GiB"
    )


def test_metrics_beyond_the_checkpoint_are_dropped(tmp_path):
    with Writer(tmp_path, 0) as writer:
        for step in range(1, 6):
            writer.scalars(step, {"loss": 1.0 / step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # killed while writing
    with Writer(tmp_path, 3) as writer:
        writer.scalars(4, {"loss": 9.0})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert lines[-1]["loss"] == 9.0


def test_the_counter_sees_each_compilation_once_and_only_while_entered():
    double = jax.jit(lambda x: x * 2 + 1)
    with EventCounter(COMPILED) as counter:
        double(jnp.ones(17))
        before = counter.count
        double(jnp.ones(17))
        assert counter.count == before > 0
    double(jnp.ones(19))
    assert counter.count == before


def test_the_ledger_goes_on_counting_after_a_restart(tmp_path):
    first = Ledger(tmp_path)
    first.train_seconds, first.compilations = 10.0, 1
    first.write()
    second = Ledger(tmp_path)
    second.train_seconds = 5.0
    totals = second.totals()
    assert (totals.train_seconds, totals.compilations_after_first_step, totals.starts) == (
        15.0,
        1,
        2,
    )
    assert totals.total_seconds > first.totals().total_seconds
    assert totals.peak_bytes >= peak_bytes() > 10**7


ABSTRACT = states.abstract  # a fixture below replaces it


@functools.cache
def abstract_state(frozen):
    """The state of the tiny model as shapes."""
    config = tiny_config()
    config.optimizer.frozen = frozen
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    return ABSTRACT(build(config.model), config, mesh)


@pytest.fixture
def first_run(tmp_path, monkeypatch):
    """(work folder with the parameters of a tiny model, those parameters, its configuration).

    Fresh states are zeros here, which nothing has to be compiled for.
    """
    monkeypatch.setattr(
        states,
        "creation",
        lambda model, config, like: (
            lambda key: jax.tree.map(
                lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding), like
            )
        ),
    )
    monkeypatch.setattr(
        states, "abstract", lambda model, config, mesh: abstract_state(config.optimizer.frozen)
    )
    config = tiny_config()
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(np.float32), states.merge(abstract_state(()))
    )
    checkpoint.save_params(tmp_path / "first", params, config)
    config.workdir = str(tmp_path / "run")
    return tmp_path / "first", params, config


def begin(config):
    """The state that a run of this configuration begins with; saves it as step 2 if it is new."""
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    data = SimpleNamespace(batches=SavedNumber())
    with checkpoint.Checkpoints(config.workdir, config) as checkpoints:
        model = build(config.model)
        like = states.abstract(model, config, mesh)
        state = train._start(model, config, like, checkpoints, data, mock.Mock())
        if checkpoints.latest is None:
            checkpoints.save(2, state.trainable, state.opt_state, data.batches)
    return state


class SavedNumber:
    def get_state(self):
        return {"step": 2}

    def set_state(self, state):
        assert state == {"step": 2}


@pytest.mark.parametrize(
    ("frozen", "place"),
    [((), "."), ((), "checkpoints/steps/0"), (("backbone", "text"), ".")],
    ids=str,
)
def test_fine_tuning_starts_from_other_weights_once(first_run, capsys, frozen, place):
    source, want, config = first_run
    config.optimizer.frozen = frozen
    config.start_from = str(source / place)
    state = begin(config)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(states.merge(state)), want)
    assert int(state.step) == 0
    assert "starting from the parameters" in capsys.readouterr().out

    shutil.rmtree(source)  # a run that has a checkpoint needs it no more
    state = begin(config)
    assert int(state.step) == 2
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(states.merge(state)), want)
    assert "continuing from the checkpoint of step 2" in capsys.readouterr().out


def test_frozen_parameters_of_an_attempt_before_do_not_stay(first_run):
    """It began from other weights and ended before its first checkpoint."""
    source, want, config = first_run
    config.optimizer.frozen = ("backbone",)
    other = jax.tree.map(lambda x: x + np.float32(1), {"backbone": want["backbone"]})
    with checkpoint.Checkpoints(config.workdir, config) as checkpoints:
        checkpoints.save_frozen(other)
    config.start_from = str(source)
    begin(config)
    restored = jax.device_get(begin(config).frozen["backbone"])
    jax.tree.map(np.testing.assert_array_equal, restored, want["backbone"])


def test_another_model_may_start_from_the_weights_but_is_told(first_run, capsys):
    source, _, config = first_run
    config.start_from = str(source)
    config.model.decoder.rules = "official"
    begin(config)
    note = "note: it was made with another config.model.decoder.rules: checkpoint 'composed'"
    assert note in capsys.readouterr().out


def small_state(**shapes):
    """A state with a decoder of these parameters and a frozen text encoder of one."""
    ones = {name: jnp.ones(shape) for name, shape in shapes.items()}
    zero = jnp.zeros((), jnp.int32)
    text = {"kernel": jnp.ones(2)}
    return states.TrainState(
        step=zero, trainable={"decoder": ones}, frozen={"text": text}, opt_state=zero
    )


def test_weights_that_do_not_fit_are_listed_unless_they_may_be_fresh():
    state = small_state(same=(3,), other=(3, 4), new=(5,))
    found = {
        "decoder": {"same": np.full(3, 7.0), "other": np.zeros((4, 3)), "old": np.zeros(6)},
        "text": {"kernel": np.full(2, 8.0)},
    }
    with pytest.raises(ValueError, match="do not fit, in 3 parameters") as error:
        starting_weights.adopt(state, found, ())
    assert "decoder/other: (4, 3) in the checkpoint, (3, 4) in the model" in str(error.value)
    assert "decoder/new: not in the checkpoint, the model's is (5,)" in str(error.value)
    assert "decoder/old: (6,) in the checkpoint, not in the model" in str(error.value)
    with pytest.raises(ValueError, match="do not fit, in 2 parameters"):
        starting_weights.adopt(state, found, ("decoder/new",))
    with pytest.raises(ValueError, match=r"may_be_fresh has \['decoder/ne'\].*'text'"):
        starting_weights.adopt(state, found, ("decoder/ne", "decoder"))

    taken, fresh = starting_weights.adopt(state, found, ("decoder",))
    assert fresh == ["decoder/new", "decoder/other"]
    got = states.merge(taken)
    assert got["decoder"]["same"].tolist() == [7.0] * 3
    assert got["text"]["kernel"].tolist() == [8.0] * 2
    assert (got["decoder"]["new"] == 1).all()
    assert (got["decoder"]["other"] == 1).all()
    assert set(got["decoder"]) == {"same", "other", "new"}
    assert got["decoder"]["same"].dtype == jnp.float32


def test_a_missing_start_is_named(first_run):
    source, _, config = first_run
    config.start_from = str(source / "nowhere")
    with pytest.raises(ValueError, match=r"config.start_from = '.*nowhere': no checkpoint"):
        begin(config)
    assert not list(Path(config.workdir).rglob("params"))


def test_a_missing_data_set_names_the_command_that_makes_it(tmp_path):
    config = tiny_config()
    config.workdir = str(tmp_path / "run")
    config.data.root = str(tmp_path / "nowhere")
    config.data.tokenizer = str(tmp_path / "nowhere" / "tokenizer.model")
    with pytest.raises(ValueError, match=r"python -m data_prep.shapes"):
        train.open_data(config)


@pytest.mark.slow
def test_one_real_step_of_the_full_size_model(tmp_path):
    """configs/focalt.py with all widths, on one 256x256 image: the decoder learns, the rest is frozen."""
    config = load_config(ROOT / "configs/focalt.py")
    config.data.image_size = 256
    config.data.batch_size = 1
    config.max_rounds = 1
    config.mesh = MeshConfig(1, 1, 1)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    model = build(config.model)
    state = states.create(model, config, mesh, jax.random.key(0))
    assert states.num_parameters(states.merge(state)) / 1e6 == pytest.approx(164.62, abs=0.005)
    names = vocabulary(model, states.merge(state), config, *class_token_ids(config))
    batch = sharding.put_batch(fake_batch(config, 1), mesh)
    before = jax.device_get(state.trainable["decoder"])
    frozen = jax.device_get(state.frozen["text"]["token_embedding"])
    with sharding.use(mesh):
        step = make_train_step(model, config, state)
        state, metrics = step(state, batch, names)
    assert metrics["finite"] == 1
    assert 1 < metrics["loss"] < 1000
    assert metrics["grad_norm"] > 0
    assert int(state.step) == 1
    moved = jax.tree.map(
        lambda a, b: bool((a != b).any()), before, jax.device_get(state.trainable["decoder"])
    )
    assert np.mean(jax.tree.leaves(moved)) > 0.9
    np.testing.assert_array_equal(state.frozen["text"]["token_embedding"], frozen)
    assert peak_bytes() < 12 * 2**30
