"""The command: pictures, masks and JSON that agree; bad input is one line and no traceback."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from seem_jax import predict
from tests.predictor_support import picture, tiny_predictor


@pytest.fixture(scope="module")
def predictor():
    return tiny_predictor()


@pytest.fixture
def run(monkeypatch, tmp_path, predictor):
    """Runs the command in an empty folder with two pictures; its exit status."""
    monkeypatch.setattr(predict.Predictor, "from_checkpoint", lambda *_, **__: predictor)
    monkeypatch.setattr(predictor.config, "compile_cache", "")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    Image.fromarray(picture()).save("in/a.png")
    Image.fromarray(picture(50, 40, seed=1)).save("in/b.PNG")

    def command(*arguments: str) -> int:
        return predict.main([*arguments, "--checkpoint=run", "--output=out"])

    return command


def read(path):
    return np.asarray(Image.open(path))


def test_prompts_give_pictures_masks_and_coco(run, tmp_path):
    Image.fromarray((picture() > 128).any(-1)).save("scribble.png")
    (tmp_path / "line.json").write_text("[[1, 1], [20, 30]]")
    assert (
        run(
            *("in/a.png", "--point", "30,20", "--point", "70,60,-", "--box", "5,5,50,60"),
            *("--scribble", "scribble.png", "--scribble", "line.json"),
            *("--polygon", "1,1,50,1,20,30", "--mask", "scribble.png"),
            *("--text", "the disc", "--text", "a bar", "--classes", "disc, bar", "--top-k=2"),
            *("--reference", "in/b.PNG", "--reference-point", "10,10"),
        )
        == 0
    )
    content = json.loads((tmp_path / "out/annotations.json").read_text())
    assert content["images"] == [{"id": 1, "file_name": "a.png", "height": 80, "width": 120}]
    assert {entry["text"] for entry in content["annotations"]} == {"the disc", "a bar"}
    names = {entry["id"]: entry["name"] for entry in content["categories"]}
    for index, entry in enumerate(content["annotations"]):
        mask = read(tmp_path / f"out/masks/a_{index}.png")
        np.testing.assert_array_equal(mask, coco_mask.decode(entry["segmentation"]) * 255)
        assert names[entry["category_id"]] == entry["name"]
        assert entry["id"] == index + 1
    assert read(tmp_path / "out/a.png").shape == (427, 640, 3)  # enlarged, so that names fit
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_a_folder_is_cut_into_segments(run, tmp_path):
    assert run("in", "--panoptic", "--classes=disc,bar", "--stuff=sky", "--threshold=0") == 0
    content = json.loads((tmp_path / "out/panoptic.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["a.png", "b.PNG"]
    for entry in content["annotations"]:
        rgb = read(tmp_path / "out/panoptic" / entry["file_name"]).astype(int)
        ids = rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]
        listed = {segment["id"]: segment["area"] for segment in entry["segments_info"]}
        assert {n: int((ids == n).sum()) for n in np.unique(ids) if n} == listed
    assert {entry["name"] for entry in content["categories"]} <= {"disc", "bar", "sky"}


def test_without_prompts_all_things_are_found(run, tmp_path):
    assert run("in/a.png", "in/a.png", "--threshold=0.0", "--top-k=3") == 0
    content = json.loads((tmp_path / "out/annotations.json").read_text())
    assert len(content["images"]) == 2
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"a.png", "a_2.png"}


def test_a_damaged_picture_is_reported_and_the_others_are_answered(run, tmp_path, capsys):
    (tmp_path / "in/c.jpg").write_bytes(b"\xff\xd8\xff not a picture")
    assert run("in", "--point=3,3") == 1
    error = capsys.readouterr().err
    assert "error: in/c.jpg: in/c.jpg" in error and "Traceback" not in error
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"a.png", "b.png"}


BAD = {
    "no picture": ["missing.png"],
    "empty folder": ["empty"],
    "point": ["in/a.png", "--point=1"],
    "point sign": ["in/a.png", "--point=1,2,x"],
    "point letters": ["in/a.png", "--point=a,b"],
    "point outside": ["in/a.png", "--point=500,2"],
    "box": ["in/a.png", "--box=1,2,3"],
    "box inverted": ["in/a.png", "--box=9,9,3,3"],
    "polygon": ["in/a.png", "--polygon=1,2,3"],
    "polygon short": ["in/a.png", "--polygon=1,2,3,4"],
    "scribble": ["in/a.png", "--scribble=missing.png"],
    "scribble json": ["in/a.png", "--scribble=bad.json"],
    "mask size": ["in/a.png", "--mask=in/b.PNG"],
    "text": ["in/a.png", "--text="],
    "classes": ["in/a.png", "--classes=a,,b"],
    "threshold": ["in/a.png", "--threshold=7"],
    "top k": ["in/a.png", "--point=1,1", "--top-k=90"],
    "reference alone": ["in/a.png", "--reference=in/b.PNG"],
    "reference point": ["in/a.png", "--reference-point=1,1"],
    "reference file": ["in/a.png", "--reference=missing.npz"],
    "panoptic and prompts": ["in/a.png", "--panoptic", "--point=1,1"],
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_one_line(run, tmp_path, capsys, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.json").write_text('{"x": 1}')
    assert run(*BAD[name]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1


@pytest.mark.parametrize(
    "name", ["a b$(touch x);'\".png", "-x.png", "näme.png", "x" * 240 + ".png"]
)
def test_odd_names_stay_inside_the_folder(run, tmp_path, name):
    Image.fromarray(picture()).save(tmp_path / "in" / name, format="PNG")
    before = {path for path in tmp_path.rglob("*") if "out" not in path.parts}
    run(f"in/{name}", "--point=3,3")
    assert {path for path in tmp_path.rglob("*") if "out" not in path.parts} == before


def test_the_output_may_be_no_file(run, tmp_path, capsys):
    (tmp_path / "out").write_text("here already")
    assert run("in/a.png", "--point=3,3") == 1
    assert capsys.readouterr().err.startswith("error: ")
