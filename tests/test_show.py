"""Pictures of records: one sheet a split, whatever the records hold."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from data_prep import custom, show
from seem_jax.data.catalog import open_split
from seem_jax.data.schema import Record
from tests.test_converters_custom import write_coco

ROOT = Path(__file__).resolve().parents[1]


def test_the_program_writes_a_sheet_for_each_split(tmp_path):
    write_coco(tmp_path / "mine")
    custom.convert(tmp_path / "mine", tmp_path / "records", "custom")
    command = [sys.executable, "-m", "data_prep.show", "--input", str(tmp_path / "records")]
    command += ["--output", str(tmp_path / "pictures")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for split in ("train", "val"):
        path = tmp_path / "pictures" / f"custom-{split}.png"
        assert str(path) in done.stdout
        assert Image.open(path).width == len(show.COLUMNS) * (show.SIDE + show.GAP)


def test_segments_are_tinted_where_they_lie(tmp_path):
    write_coco(tmp_path / "mine")
    custom.convert(tmp_path / "mine", tmp_path / "records", "custom")
    split = open_split(tmp_path / "records", "custom:val")
    image, segments, referred, prompted = show.pictures(
        split[0], split.class_names, np.random.default_rng(0)
    )
    changed = (image != segments).any(axis=2)
    share = np.array([[10, 10], [30, 40]]) * show.SIDE // 60  # the box of the object
    (top, left), (bottom, right) = share
    assert changed[top:bottom, left:right].mean() > 0.95
    assert changed[bottom + 5 :].mean() < 0.05
    assert (referred != image).any() and (prompted != image).any()


def test_a_record_without_truth_is_shown_too():
    picture = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    record = Record(1, "a.png", picture, 8, 8)
    shown = show.pictures(record, [], np.random.default_rng(0))
    assert len(shown) == len(show.COLUMNS)
    for other in shown[1:]:
        np.testing.assert_array_equal(other, shown[0])
