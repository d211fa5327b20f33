"""The parity runner by itself: what passes, what fails, and that nothing is left out."""

import dataclasses
import types

import jax.numpy as jnp
import numpy as np
import pytest

from seem_jax.models.seem import remember
from seem_jax.types import VisualPrompts
from tests.parity import decoding, following, report, settle
from tests.parity.__main__ import main
from tests.parity.losses import norms, same_points, worst
from tests.parity.report import Claim, check, equal
from tests.parity.stages import padded_masks
from tests.parity.subject import model_config
from tests.predictor_support import picture, tiny_predictor

ARRAY = np.arange(1, 7, dtype=np.float32).reshape(2, 3)


def pack(**arrays):
    """A golden file in memory: small float arrays stored whole, boolean ones as bits."""
    stored = {}
    for name, array in arrays.items():
        stored[f"{name}/shape"] = np.array(array.shape)
        if array.dtype == bool:
            stored[f"{name}/bits"] = np.packbits(array)
        else:
            stored[f"{name}/values"] = array.ravel()
            stored[f"{name}/stats"] = np.zeros(5)
    return stored


def outcome(stored, claims, inputs=frozenset()):
    return {line.name: line.passed for line in check(stored, claims, set(inputs))}


def test_every_array_has_a_line_and_one_without_a_claim_fails():
    stored = pack(a=ARRAY, b=ARRAY) | {"ids": np.arange(3), "config": np.array("x")}
    got = outcome(stored, {"a": Claim(lambda: ARRAY), "c": Claim(lambda: ARRAY)}, {"ids"})
    assert got == {"a": True, "b": False, "ids": None}


@pytest.mark.parametrize(
    ("ours", "passes"),
    [
        (ARRAY * 1.0005, True),
        (ARRAY * 1.002, False),
        (ARRAY.T, False),
        (ARRAY[:1], False),
        (np.where(ARRAY > 5, np.nan, ARRAY), False),
    ],
    ids=["near", "far", "transposed", "shorter", "nan"],
)
def test_relative_error_decides(ours, passes):
    assert outcome(pack(a=ARRAY), {"a": Claim(lambda: ours, 1e-3)}) == {"a": passes}


def test_an_array_that_breaks_fails_and_the_others_go_on():
    def broken():
        raise KeyError("nothing there")

    lines = list(
        check(pack(a=ARRAY, b=ARRAY), {"a": Claim(broken), "b": Claim(lambda: ARRAY)}, set())
    )
    assert [line.passed for line in lines] == [False, True]
    assert "nothing there" in lines[0].note


def test_bits_are_equal_or_not():
    bits = np.random.default_rng(0).random((3, 7)) < 0.5
    other = bits.copy()
    other[2, 6] ^= True
    assert outcome(pack(a=bits), {"a": equal(lambda: bits)}) == {"a": True}
    assert outcome(pack(a=bits), {"a": equal(lambda: other)}) == {"a": False}


def test_large_arrays_are_compared_at_the_stored_places():
    full = np.random.default_rng(0).normal(size=10_007).astype(np.float32)
    places = report.places(full.size, 2048)
    assert len(set(places)) == 2048 and places.max() < full.size
    stored = {"a/shape": np.array(full.shape), "a/values": full[places]}
    assert outcome(stored, {"a": Claim(lambda: full)}) == {"a": True}
    assert outcome(stored, {"a": Claim(lambda: np.roll(full, 1))}) == {"a": False}


def test_the_worst_element_decides_for_losses_and_norms():
    stored = {"a": np.array([100.0, -1.0, 1.0])}
    claim = Claim(lambda: None, 1e-3)
    assert not worst(stored, "a", np.array([100.0, -1.0, 1.002]), claim).passed
    assert worst(stored, "a", np.array([100.0, -1.0, 1.0002]), claim).passed
    assert norms(stored, "a", np.array([100.0, 7.0, 1.0]), claim).passed  # -1: no gradient there


def test_points_may_stand_in_any_order_but_must_be_the_same():
    points = np.random.default_rng(0).random((2, 50, 2)).astype(np.float32)
    stored, claim = {"p": points}, Claim(lambda: None, 5e-3)
    assert same_points(stored, "p", points[:, ::-1], claim).passed
    moved = points.copy()
    moved[1, 0] += np.float32(0.01)
    line = same_points(stored, "p", moved, claim)
    assert line.error == pytest.approx(0.01) and not line.passed


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("seem_focalt_unicl_lang_v1", ("official", 3, -1.0)),
        ("seem_focalt_unicl_lang_v0", ("official", 101, 0.0)),
        ("seem_focalt_unicl_lang_demo", ("shared", 3, 0.0)),
        ("xdecoder_focalt_unicl_lang", ("official", 3, -1.0)),
    ],
)
def test_official_names_are_configurations(name, expected):
    decoder = model_config(name).decoder
    assert (decoder.rules, decoder.queries_per_prompt, decoder.empty_pooled) == expected


@pytest.mark.parametrize(
    "name", ["seem_focalx_unicl_lang_v1", "focalt", "seem_focalt_unicl_lang_v2"]
)
def test_names_of_no_configuration_are_refused(name):
    with pytest.raises(ValueError, match="no configuration for"):
        model_config(name)


def test_masks_of_unequal_images_are_padded():
    masks = padded_masks([np.ones((1, 2, 3), bool), np.ones((2, 2, 3), bool)], (4, 4))
    assert masks.shape == (2, 2, 4, 4)
    assert masks.sum((2, 3)).tolist() == [[6, 0], [6, 6]]


def test_a_folder_without_files_and_a_file_without_a_name_fail(tmp_path, capsys):
    options = ["--goldens", str(tmp_path), "--manifests", str(tmp_path)]
    assert main(options) == 1
    np.savez(tmp_path / "x_seg.npz", a=ARRAY)
    assert main(options) == 1
    assert "not compared 1" in capsys.readouterr().out.splitlines()[-1]


def test_an_unknown_configuration_fails_every_array(tmp_path, capsys):
    about = {"config": "seem_x_unicl_lang_v1", "seed": 1, "size": [32, 32], "batch": 1}
    (tmp_path / "recipe.py").write_text("")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "seem_x_unicl_lang_v1.json").write_text("[]")
    np.savez(tmp_path / "x_seg.npz", a=ARRAY, b=ARRAY, **about)
    assert main(["--goldens", str(tmp_path), "--manifests", str(tmp_path / "m")]) == 1
    out = capsys.readouterr().out
    assert "no configuration for" in out
    assert out.splitlines()[-1].startswith("passed 0, failed 0, not compared 2")


PROMPTS = 2


@pytest.fixture(scope="module")
def second_round():
    """(a run of a tiny decoder with prompts and memory, its inputs)."""
    predictor = tiny_predictor(rules="official")
    features = predictor.encode(picture()).features
    config, rng = predictor.config.model, np.random.default_rng(0)
    subject = types.SimpleNamespace(
        config=config,
        model=predictor.programs.model,
        params=predictor.params,
        jitted={},
        is_xdecoder=False,
        features=lambda _: features,
        table=jnp.asarray(rng.normal(size=(4, config.text.projection)), jnp.float32),
    )
    inputs = decoding.Inputs(
        prompts=VisualPrompts(
            points=jnp.asarray(rng.random((1, 6, 2)), jnp.float32),
            prompt=jnp.asarray([[0, 1] * 3], jnp.int32),
            positive=jnp.ones((1, 6), bool),
            valid=jnp.ones((1, 6), bool),
        ),
        query_index=jnp.arange(PROMPTS * config.decoder.queries_per_prompt, dtype=jnp.int32)[None],
    )
    run, _ = following.follow(subject, {}, inputs, PROMPTS)
    decoder = config.decoder
    owner = np.sort(rng.integers(0, PROMPTS, (decoder.num_layers, 1, decoder.num_memory)), -1)
    inputs = inputs.replace(
        memory=remember(run.trace.outputs, run.trace.visual),
        memory_index=jnp.asarray(owner, jnp.int32),
    )
    return following.follow(subject, {}, inputs, PROMPTS)[0], inputs


@pytest.mark.parametrize("kind", ["own", "remembered"])
def test_a_bit_that_fell_on_the_other_side_is_found_by_what_follows(
    second_round, kind, monkeypatch
):
    run, inputs = second_round
    monkeypatch.setattr(settle, "MARGIN", 0.3)  # few logits of a tiny model are near zero
    monkeypatch.setattr(settle, "LIKELY", np.inf)
    monkeypatch.setattr(settle, "MAX_TRIALS", 400)  # so wide a margin holds many bits
    monkeypatch.setattr(settle, "WORSE", 1.5)  # half of the slots belong to the prompt
    found = {
        "own": lambda: settle._looking_doubts(run),
        "remembered": lambda: settle._memory_doubts(run, inputs),
    }[kind]()
    doubt = min(found, key=lambda doubt: doubt.distance)
    flips = settle.flip_rows([doubt])
    trace = decoding.run_decoder(run.subject, run.features, inputs, PROMPTS, None, flips)
    other = dataclasses.replace(run, trace=trace)
    last = run.num_layers
    stored = pack(
        **{
            f"pred_{name}/final": np.asarray(other.predicted(name, last))
            for group in ("object", "visual")
            for name in settle.GROUPS[group]
        }
    )
    before = settle._slot_errors(run, stored, "")
    assert settle._error(before, (doubt.group, doubt.image, doubt.slots)) > 1e-4
    settled, claims = following.follow(run.subject, stored, inputs, PROMPTS)
    rows = {tuple(row) for row in np.asarray(settled.flips).tolist() if row[0] >= 0}
    assert rows == set(doubt.rows)
    lines = list(check(stored, claims, set()))
    assert len(lines) == 6 and all(line.passed and line.error == 0 for line in lines)
    assert "as the release at 1 mask bits" in lines[0].note


def test_a_bit_that_fell_on_the_other_side_is_found_by_resized_masks(second_round, monkeypatch):
    """A file of results without the file of predictions shows the masks of the objects alone."""
    run, _ = second_round
    monkeypatch.setattr(settle, "MARGIN", 0.3)
    monkeypatch.setattr(settle, "LIKELY", np.inf)
    monkeypatch.setattr(settle, "MAX_TRIALS", 400)
    inputs = decoding.Inputs()
    plain, _ = following.follow(run.subject, {}, inputs)
    doubt = min(settle._looking_doubts(plain), key=lambda doubt: doubt.distance)
    flips = settle.flip_rows([doubt])
    trace = decoding.run_decoder(run.subject, run.features, inputs, 0, None, flips)
    other = dataclasses.replace(plain, trace=trace)
    size = np.array([4 * n - 3 for n in run.features.mask.shape[1:3]])
    stored = pack(**{"resize/reduced": np.asarray(other.resized(size, (20, 24)))})
    stored["image_size"] = size
    before = settle._slot_errors(plain, stored, "")
    assert settle._error(before, (doubt.group, doubt.image, doubt.slots)) > 1e-5
    settled, _ = following.follow(run.subject, stored, inputs)
    rows = {tuple(row) for row in np.asarray(settled.flips).tolist() if row[0] >= 0}
    assert rows == set(doubt.rows)
