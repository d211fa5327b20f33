"""A Beam pipeline writes the shards that local processes write, byte for byte.

pip install -r requirements-dev.txt -r requirements-beam.txt
python -m pytest tests/test_converters_beam.py
"""

import importlib.util
import sys
from pathlib import Path

import pytest

from data_prep import coco, custom, writer
from data_prep.beam import FOLDER, Beam
from tests.test_converters_custom import write_masks
from tests.test_converters_sets import coco_folder, run_module  # noqa: F401  a fixture

needs_beam = pytest.mark.skipif(
    importlib.util.find_spec("apache_beam") is None,
    reason="apache-beam is not installed (requirements-beam.txt)",
)


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@needs_beam
def test_the_direct_runner_writes_the_same_files(coco_folder, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(writer, "RECORDS_PER_SHARD", 1)
    coco.convert(coco_folder, tmp_path / "local", "coco", ["train"], 1)
    coco.convert(coco_folder, tmp_path / "beam", "coco", ["train"], Beam("DirectRunner"))
    local = contents(tmp_path / "local")
    assert local == contents(tmp_path / "beam")
    assert len([name for name in local if name.endswith("-of-00003")]) == 3


@needs_beam
def test_a_pipeline_that_was_stopped_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "RECORDS_PER_SHARD", 1)
    write_masks(tmp_path / "mine")
    custom.convert(tmp_path / "mine", tmp_path / "out", "custom", processes=Beam("DirectRunner"))
    whole = contents(tmp_path / "out")
    shards = sorted((tmp_path / "out").rglob("*train.tfrecord-*-of-00002"))
    shards[0].unlink()
    kept = shards[1].stat().st_mtime_ns
    custom.convert(tmp_path / "mine", tmp_path / "out", "custom", processes=Beam("DirectRunner"))
    assert contents(tmp_path / "out") == whole
    assert shards[1].stat().st_mtime_ns == kept


@needs_beam
def test_a_broken_record_is_named_and_nothing_is_left_over(coco_folder, tmp_path):  # noqa: F811
    next((coco_folder / "train2017").iterdir()).write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"the Beam pipeline on DirectRunner failed.*no readable"):
        coco.convert(coco_folder, tmp_path / "out", "coco", ["train"], Beam("DirectRunner"))
    assert not list((tmp_path / "out").rglob(FOLDER))
    assert not list((tmp_path / "out").rglob("*.tfrecord-*"))


@needs_beam
def test_the_program_takes_a_runner(coco_folder, tmp_path):  # noqa: F811
    done = run_module(
        "coco", "--input", coco_folder, "--output", tmp_path / "beam", "--runner=DirectRunner"
    )
    assert done.returncode == 0, done.stderr
    run_module("coco", "--input", coco_folder, "--output", tmp_path / "local")
    assert contents(tmp_path / "local") == contents(tmp_path / "beam")


def test_without_beam_the_message_says_what_to_install(coco_folder, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(ValueError, match=r"pip install -r requirements-beam\.txt"):
        coco.convert(coco_folder, tmp_path / "out", "coco", ["train"], Beam("DirectRunner"))
