"""What the processes and the starts of a run compare before they train: config, code, data."""

import dataclasses
import shutil

import pytest

from data_prep import shapes
from seem_jax.training import agreement
from tests.fakes import tiny_config

PARAMETERS = shapes.Parameters(num_train=16, num_val=2, num_unseen=2, size=64, num_videos=2)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    shapes.make(folder, PARAMETERS, processes=1)
    return folder / "records"


@pytest.fixture
def config(drawn, tmp_path):
    """A configuration of tiny training on a copy of the records that a test may change."""
    shutil.copytree(drawn, tmp_path / "records")
    config = tiny_config()
    config.data.root = str(tmp_path / "records")
    config.data.tokenizer = str(tmp_path / "records" / "tokenizer.model")
    return config


def differing(one, other):
    return {name for name in one | other if one.get(name) != other.get(name)}


def test_a_field_of_the_configuration_shows(config):
    before = agreement.facts(config)
    config.optimizer.learning_rate *= 2
    config.compile_cache = "/elsewhere"  # a folder of the host
    assert differing(before, agreement.facts(config)) == {"config.optimizer.learning_rate"}


def test_one_changed_line_of_code_shows(config, monkeypatch, tmp_path):
    root = tmp_path / "seem_jax"
    (root / "nn").mkdir(parents=True)
    (root / "__init__.py").touch()
    (root / "nn" / "layers.py").write_text("EPSILON = 1e-5\n")
    monkeypatch.setattr(agreement.seem_jax, "__file__", str(root / "__init__.py"))
    before = agreement.facts(config)
    assert agreement.facts(config) == before
    (root / "nn" / "layers.py").write_text("EPSILON = 1e-6\n")
    assert differing(before, agreement.facts(config)) == {"code of seem_jax"}


def add_to_the_tokenizer(root):
    with (root / "tokenizer.model").open("ab") as file:
        file.write(b"\0")


def rename_a_class(root):
    path = root / "shapes_panoptic" / "1.0.0" / "classes.json"
    path.write_text(path.read_text().replace('"circle"', '"disc"'))


def draw_other_pictures(root):
    shutil.rmtree(root)
    shapes.make(root.parent, dataclasses.replace(PARAMETERS, seed=1), processes=1)


@pytest.mark.parametrize("change", [add_to_the_tokenizer, rename_a_class, draw_other_pictures])
def test_other_data_show_and_a_run_does_not_go_on_with_them(config, change, tmp_path):
    before = agreement.data_fingerprint(config.data)
    agreement.check_same_data(tmp_path, before, continues=False)
    agreement.check_same_data(tmp_path, before, continues=True)
    change(tmp_path / "records")
    after = agreement.data_fingerprint(config.data)
    assert after != before
    with pytest.raises(ValueError, match=f"fingerprint {after}, then {before}.*start_from="):
        agreement.check_same_data(tmp_path, after, continues=True)
    agreement.check_same_data(tmp_path, after, continues=False)  # a new run in the same folder


def test_a_run_from_before_data_json_goes_on(tmp_path):
    agreement.check_same_data(tmp_path, "abc", continues=True)
    with pytest.raises(ValueError, match="then abc"):
        agreement.check_same_data(tmp_path, "abd", continues=True)
