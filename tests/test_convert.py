"""Official weights go into a work folder and back with the same bits, or nothing is written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from seem_jax import checkpoint, kept_files
from seem_jax.config import as_released
from seem_jax.convert import recognise, safetensors_file, work_folder
from seem_jax.convert.official_file import read_state
from seem_jax.convert.rules import HEAD, SEEM_ONLY, XDECODER_ONLY, official_state
from seem_jax.models.seem import build, initialise
from tests import parity_support, weight_files
from tests.fakes import tiny_config
from tests.weight_files import StateDict, View

ROOT = Path(__file__).parents[1]
SIGN = HEAD + "pn_indicator.weight"
PACKED = HEAD + "transformer_self_attention_layers.0.self_attn.in_proj_weight"


@pytest.fixture(scope="module")
def official():
    """An official state dict of the tiny model, with the buffers that a release has."""
    config = tiny_config()
    model = build(config.model)
    shapes = jax.eval_shape(lambda key: nn.unbox(initialise(model, key)), jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), shapes)
    weights = np.ones(134, np.float32)
    weights[-1] = 0.1
    buffers = {
        "dilation_kernel": np.ones((1, 1, 3, 3), np.float32),
        "criterion.empty_weight": weights,
    }
    return official_state(params) | buffers


def same(found: dict, wanted: dict) -> None:
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_what_torch_saves_is_read_as_it_was(tmp_path):
    storage = np.arange(24, dtype=np.float32)
    values = {
        "plain": np.arange(6, dtype=np.float32).reshape(2, 3),
        "half": np.arange(6, dtype=np.float16),
        "brain": np.arange(6).astype(ml_dtypes.bfloat16),
        "double": np.arange(6, dtype=np.float64),
        "long": np.array([-(2**40), 5]),
        "flags": np.array([True, False]),
        "scalar": np.array(3.5, np.float32),
        "none": np.zeros((0, 3), np.float32),
        "transposed": np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1),
    }
    views = {
        "part": View(storage, 4, (2, 3), (12, 2)),
        "same storage": View(storage, 0, (24,), (1,)),
        "parameter": View(storage, 0, (4, 6), (1, 4), parameter=True),
    }
    path = weight_files.save(tmp_path / "a.pt", StateDict(values | views))
    wanted = values | {
        "part": np.array([[4, 6, 8], [16, 18, 20]], np.float32),
        "same storage": storage,
        "parameter": storage.reshape(6, 4).T,
    }
    same(read_state(path), wanted)


def test_arrays_are_not_loaded_and_cannot_be_changed(tmp_path, official):
    state = read_state(weight_files.save(tmp_path / "a.pt", official))
    assert not any(array.flags.writeable or array.flags.owndata for array in state.values())


@pytest.mark.parametrize("prefix", ["", "model.", "module.", "module.model."])
def test_training_states_and_their_prefixes_are_recognised(tmp_path, official, prefix):
    module = StateDict({prefix + name: array for name, array in official.items()})
    moments = {0: {"step": np.float32(1).reshape(1), "exp_avg": np.zeros(3, np.float32)}}
    training = {
        "module": module,
        "optimizer": {"state": moments, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999)}]},
        "lr_scheduler": {"base_lrs": [1e-4], "last_epoch": 10**10},
        "amp_state": None,
    }
    same(read_state(weight_files.save(tmp_path / "training.pt", training)), official)
    same(read_state(weight_files.save(tmp_path / "flat.pt", module)), official)


def test_there_and_back_gives_the_same_bits(tmp_path, official):
    config = tiny_config()
    path = weight_files.save(tmp_path / "seem.pt", official)
    config.data.tokenizer = str(path)  # any file: it is copied as it is
    config.data.root = str(tmp_path / "no_data")  # else its class names would be taken
    report = work_folder.convert(read_state(path), config, tmp_path / "work")
    assert (tmp_path / "work" / "tokenizer.model").read_bytes() == path.read_bytes()
    names, num_things = kept_files.classes(tmp_path / "work", config)
    assert (names[0], names[79], names[80], names[132]) == (
        "person",
        "toothbrush",
        "banner",
        "rug-merged",
    )
    assert (len(names), num_things) == (133, 80)
    assert report.left_out == ["criterion.empty_weight", "dilation_kernel"]
    assert not report.fresh
    params, saved = checkpoint.restore_params(tmp_path / "work")
    assert saved == config
    same(official_state(params), {k: v for k, v in official.items() if k not in report.left_out})

    back = tmp_path / "back.safetensors"
    assert work_folder.reverse(tmp_path / "work", back) == len(official)
    same(read_state(back), official)
    work_folder.convert(read_state(back), config, tmp_path / "again")
    work_folder.reverse(tmp_path / "again", tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == back.read_bytes()
    assert sorted(os.listdir(tmp_path)) == [  # no temporary files
        "again",
        "again.safetensors",
        "back.safetensors",
        "seem.pt",
        "work",
    ]


def test_half_precision_becomes_single(tmp_path, official):
    half = {name: array.astype(ml_dtypes.bfloat16) for name, array in official.items()}
    path = weight_files.save(tmp_path / "seem.pt", half)
    work_folder.convert(read_state(path), tiny_config(), tmp_path / "work")
    params, _ = checkpoint.restore_params(tmp_path / "work")
    found = official_state(params)[SIGN]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, half[SIGN].astype(np.float32))


def test_an_xdecoder_file_is_a_start_and_what_seem_adds_is_fresh(tmp_path, official):
    """Here with another number of queries, as in Focal-L: those are fresh then, as officially."""
    config = tiny_config()
    config.seed = 5
    added = SEEM_ONLY | work_folder.QUERIES.keys()
    names = {name for name in official if not name.startswith("criterion")}
    names -= {"dilation_kernel", SIGN, *(HEAD + f"mask_sptial_embed.{i}" for i in range(3))}
    names -= {HEAD + "spatial_embed.weight", HEAD + "spatial_featured.weight"}
    state = {name: official[name] for name in names}
    state |= {name: np.ones((3, 3), np.float32) for name in XDECODER_ONLY}
    state |= {HEAD + "self_attn_mask": np.ones((1, 3, 3), bool)}
    for name in work_folder.QUERIES.values():
        state[name] = np.ones((15, 32), np.float32)
    report = work_folder.convert(dict(state), config, tmp_path / "work")
    assert report.kind.family == "X-Decoder"
    assert set(report.fresh) == added
    assert set(report.left_out) >= XDECODER_ONLY
    found = flatten_dict(checkpoint.restore_params(tmp_path / "work")[0], sep="/")
    assert found["decoder/query_features"].shape == (9, 32)
    assert all(np.std(found[path]) > 0 for path in added)
    bias = HEAD + "mask_embed.layers.0.bias"
    np.testing.assert_array_equal(found["decoder/mask_mlp/dense_0/bias"], official[bias])


def change(state: dict, **changes) -> dict:
    return {k: v for k, v in (state | changes).items() if v is not None}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {SIGN: None},
            rf"missing for the model: decoder/sign_embedding \(2, 32\), officially {SIGN}",
        ),
        ({PACKED: None}, rf"self_attention/value/kernel \(32, 32\), officially {PACKED}"),
        ({"backbone.more": np.ones(3, np.float32)}, "not expected by the model: backbone.more"),
        ({"backbone_proj2": np.ones(3, np.float32)}, "not expected by the model: backbone_proj2"),
        ({SIGN: np.ones((3, 32), np.float32)}, r"shape \(3, 32\) of .*pn_indicator"),
        ({SIGN: np.ones((32,), np.float32)}, r"shape \(32,\) of .*pn_indicator"),
        ({recognise.WORDS: np.ones((65, 24), np.float32)}, "65 words, .*vocab_size = 64"),
        ({SIGN: np.ones((2, 32), np.int64)}, "pn_indicator.weight has the type int64"),
        ({SIGN: np.full((2, 32), np.nan, np.float32)}, "pn_indicator.weight .*not finite"),
        ({SIGN: np.full((2, 32), np.inf, np.float16)}, "pn_indicator.weight .*not finite"),
    ],
)
def test_weights_that_do_not_fit_are_named_and_nothing_is_written(
    tmp_path, official, changes, words
):
    with pytest.raises(ValueError, match=f"(?s){words}"):
        work_folder.convert(change(official, **changes), tiny_config(), tmp_path / "work")
    assert not os.listdir(tmp_path)


def test_every_difference_is_listed(tmp_path, official):
    names = [name for name in official if name.startswith("backbone.norm")]
    renamed = {name + "x" if name in names else name: a for name, a in official.items()}
    with pytest.raises(ValueError) as error:
        work_folder.convert(renamed, tiny_config(), tmp_path / "work")
    assert all(f"not expected by the model: {name}x" in str(error.value) for name in names)
    assert str(error.value).count("missing for the model: backbone/norm_") == len(names)


def test_weights_of_something_else_are_refused(tmp_path):
    state = {"layer1.0.weight": np.ones(3, np.float32)}
    with pytest.raises(ValueError, match=r"no weights of SEEM or X-Decoder.*layer1"):
        work_folder.convert(state, tiny_config(), tmp_path / "work")


def test_the_configuration_that_a_file_needs_is_named(tmp_path, official):
    config = tiny_config()
    shape, row = (192, 3, 7, 7), recognise.PATCHES
    state = change(official, **{row: np.zeros(shape, np.float32)})
    words = r"looks like SEEM Focal-L \(v0 or v1\): use --config=configs/focall.py"
    with pytest.raises(ValueError, match=words):
        work_folder.convert(state, config, tmp_path / "work")


@pytest.mark.parametrize(
    ("name", "label", "file"),
    [
        ("seem_focalt_unicl_lang_v1", "SEEM Focal-T (v0 or v1)", "focalt"),
        ("seem_focalt_unicl_lang_demo", "SEEM Focal-T (demo)", "focalt"),
        ("seem_focall_unicl_lang_v0", "SEEM Focal-L (v0 or v1)", "focall"),
        ("seem_davitd3_unicl_lang_v1", "SEEM DaViT-d3 (v0 or v1)", "davitd3"),
        ("seem_davitd5_unicl_lang_v1", "SEEM DaViT-d5 (v0 or v1)", "davitd5"),
        ("seem_samvitb_unicl_lang_v1", "SEEM SAM-ViT-B (v0 or v1)", "samvitb"),
        ("seem_samvitl_unicl_lang_v1", "SEEM SAM-ViT-L (v0 or v1)", "samvitl"),
        ("xdecoder_focalt_unicl_lang", "X-Decoder Focal-T", "focalt"),
        ("xdecoder_focall_unicl_lang", "X-Decoder Focal-L", "focall"),
        ("xdecoder_davitd3_unicl_lang", "X-Decoder DaViT-d3", "davitd3"),
    ],
)
def test_every_official_model_is_recognised(name, label, file):
    parity_support.need_material()
    rows = parity_support.recipe().load_manifest(parity_support.ROOT / "manifests" / f"{name}.json")
    zero = np.zeros((), np.float32)
    kind = recognise.recognise({row[0]: np.broadcast_to(zero, row[1]) for row in rows})
    assert (str(kind), kind.config) == (label, file)


def test_what_exists_is_not_overwritten(tmp_path, official):
    (tmp_path / "work").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for output in (tmp_path / "work", tmp_path / "link"):
        with pytest.raises(ValueError, match="is not overwritten"):
            work_folder.convert(dict(official), tiny_config(), output)
    (tmp_path / "a.safetensors").write_text("mine")
    with pytest.raises(ValueError, match="is not overwritten"):
        work_folder.reverse(tmp_path / "work", tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"ends with \.safetensors"):
        work_folder.reverse(tmp_path / "work", tmp_path / "a.pt")
    assert not os.listdir(tmp_path / "work")


def test_a_failure_while_writing_leaves_nothing(tmp_path, official, monkeypatch):
    def fail(path, params, config):
        Path(path).mkdir()
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "save_params", fail)
    with pytest.raises(OSError, match="no space"):
        work_folder.convert(dict(official), tiny_config(), tmp_path / "work")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(ValueError, match="0 MiB left"):
        work_folder.convert(dict(official), tiny_config(), tmp_path / "work")
    assert not os.listdir(tmp_path)


def test_a_run_does_not_continue_in_a_converted_folder(tmp_path, official):
    config = tiny_config()
    work_folder.convert(dict(official), config, tmp_path / "work")
    with (
        checkpoint.Checkpoints(tmp_path / "work", config) as checkpoints,
        pytest.raises(ValueError, match="holds parameters only"),
    ):
        checkpoints.restore({}, {}, {}, None)


def test_safetensors_files_are_those_of_the_library(tmp_path):
    library = pytest.importorskip("safetensors.numpy")
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.array([True]),
        "c": np.array(2, np.float16),
        "d": np.zeros((0, 2), np.int64),
    }
    library.save_file(arrays, tmp_path / "theirs.safetensors", metadata={"format": "np"})
    same(read_state(tmp_path / "theirs.safetensors"), arrays)
    safetensors_file.write(tmp_path / "ours.safetensors", arrays)
    same(library.load_file(tmp_path / "ours.safetensors"), arrays)


def test_the_command_converts_and_reports(tmp_path, official):
    """The configuration file is a user's own, outside configs/."""
    (tmp_path / "tiny.py").write_text("from tests.fakes import tiny_config as get_config\n")
    weight_files.save(tmp_path / "seem.pt", official)

    def run(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "seem_jax.convert", *arguments]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )

    done = run("seem.pt", "--config=tiny.py", "--output=work")
    assert done.returncode == 0, done.stderr
    assert "left out, SEEM has no use for it: dilation_kernel" in done.stdout
    assert "read as " in done.stdout
    done = run("work", "--reverse", "--output=back.safetensors")
    assert done.returncode == 0, done.stderr
    same(read_state(tmp_path / "back.safetensors"), official)
    done = run("seem.pt", "--config=tiny.py", "--output=work")
    assert done.returncode == 1
    assert "error: seem.pt: work exists, and is not overwritten" in done.stderr


@pytest.mark.parametrize(
    ("demo", "flags", "release"),
    [
        (False, [], "v1"),
        (False, ["--release=v0"], "v0"),
        (True, [], "demo"),
        (True, ["--release=v1"], "v1"),
    ],
)
def test_the_folder_follows_the_release_of_the_file(tmp_path, official, demo, flags, release):
    (tmp_path / "tiny.py").write_text("from tests.fakes import tiny_config as get_config\n")
    if demo:
        official = change(official, **{recognise.EMPTY_WEIGHT: None})
    weight_files.save(tmp_path / "seem.pt", official)
    config = tiny_config().model.decoder
    expected = as_released(config, release) if demo or flags else config
    done = subprocess.run(
        [
            *(sys.executable, "-m", "seem_jax.convert", "seem.pt", "--config=tiny.py"),
            *("--output=work", *flags),
        ],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    _, saved = checkpoint.restore_params(tmp_path / "work")
    assert saved.model.decoder == expected
    if flags or demo:
        assert f"read as {release} " in done.stdout
