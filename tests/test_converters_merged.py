"""The official merged and filtered annotation files give what COCO's and REFER's own files give."""

import json
from pathlib import Path

import pytest

from data_prep import coco, coco_files, refcoco
from tests.test_converters import SAMPLES, needs_samples, read_all
from tests.test_converters_sets import (
    HEIGHT,
    WIDTH,
    box_polygon,
    coco_folder,  # noqa: F401  a fixture
    run_module,
)

FILTERS = ("filtrefgumdval", "filtrefgumdval_filtvlp")


def merged_row(number: int, split: str) -> dict:
    """A row of the merged form about image `number`, whose sentences are in REFER's order."""
    return {
        "id": 10 + number,
        "ann_id": 10 + number,
        "ref_id": number,
        "image_id": number,
        "category_id": 1,
        "segmentation": [box_polygon(2, 2, 12, 12)],
        "split": split,
        "file_name": f"COCO_train2014_{number:012d}_{10 + number}.jpg",
        "sentences": [{"raw": f"The Cup {number}", "sent": "no"}, {"raw": "cup"}],
    }


def write_merged(path: Path, splits: dict[int, str]) -> None:
    size = {"height": HEIGHT, "width": WIDTH}
    images = [{"id": number, "file_name": f"{number:012d}.jpg", **size} for number in splits]
    rows = [merged_row(number, split) for number, split in splits.items()]
    path.write_text(json.dumps({"images": images, "annotations": rows}))


def filtered(folder: Path, name: str, image_ids: list[int]) -> None:
    """Writes the filtered panoptic and captions files with these images only."""
    annotations = folder / "annotations"
    for kind in ("panoptic", "captions"):
        table = json.loads((annotations / f"{kind}_train2017.json").read_text())
        table["annotations"] = [r for r in table["annotations"] if r["image_id"] in image_ids]
        path = annotations / f"{kind}_train2017_{name}.json"
        path.write_text(json.dumps(table))


@needs_samples
def test_the_real_merged_file_gives_the_records_of_refer(tmp_path):
    merged = SAMPLES / "coco" / "annotations" / "refcocog_umd_val.json"
    refer = SAMPLES / "refer_ours" / "refcocog"
    refcoco.convert(SAMPLES / "coco", merged, "", tmp_path, "merged", ["val"], 1)
    refcoco.convert(SAMPLES / "coco", refer, "umd", tmp_path, "refer", ["val"], 1)
    ours, theirs = (
        {record.image_id: record for record in read_all(tmp_path, f"{name}:val")}
        for name in ("merged", "refer")
    )
    assert ours.keys() == theirs.keys() == {39769, 196141}
    for image_id, record in ours.items():
        other = theirs[image_id]
        sentences = [
            {
                (text, one.object_rle[place])
                for text, place in zip(one.phrase_text, one.phrase_object, strict=True)
            }
            for one in (record, other)
        ]
        assert sentences[0] == sentences[1] and len(sentences[0]) >= 5
        assert record.image == other.image


def test_a_merged_file_is_found_and_keeps_all_sentences(coco_folder, tmp_path):  # noqa: F811
    write_merged(coco_folder / "annotations" / "refcocog_umd_val.json", {2: "val", 3: "val"})
    done = run_module("refcoco", "--input", coco_folder, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    records = read_all(tmp_path / "out", "refcocog:val")
    assert [record.image_id for record in records] == [2, 3]
    assert records[0].phrase_text == ["The Cup 2", "cup"]


def test_images_of_a_merged_validation_file_stay_out_of_training(coco_folder, tmp_path, capsys):  # noqa: F811
    write_merged(coco_folder / "annotations" / "refcocog_umd_val.json", {2: "val"})
    done = run_module("coco", "--input", coco_folder, "--output", tmp_path / "out")
    assert "1 images left out" in done.stdout, done.stderr
    assert "warning" not in done.stdout
    records = read_all(tmp_path / "out", "coco_panoptic:train")
    assert [record.image_id for record in records] == [1, 3]


@pytest.mark.parametrize("name", FILTERS)
def test_the_filtered_files_are_read_with_their_sentences(coco_folder, tmp_path, name):  # noqa: F811
    filtered(coco_folder, name, [1, 3])
    short = coco_files.SHORT.get(name, name)
    grounding = coco_folder / "annotations" / f"grounding_train2017_{short}.json"
    write_merged(grounding, {1: "train", 3: "test"})
    (coco_folder / "annotations" / "panoptic_train2017.json").unlink()
    done = run_module("coco", "--input", coco_folder, "--output", tmp_path / "out")
    assert f"panoptic_train2017_{name}.json is taken" in done.stdout, done.stderr
    assert "warning" not in done.stdout
    records = read_all(tmp_path / "out", "coco_panoptic:train")
    assert [record.image_id for record in records] == [1, 3]
    assert [record.phrase_text[0] for record in records] == ["The Cup 1", "The Cup 3"]
    captions = json.loads((coco_folder / f"annotations/captions_train2017_{name}.json").read_text())
    assert sum(len(record.caption) for record in records) == len(captions["annotations"])


def test_the_filter_is_chosen_by_name_where_there_are_several(coco_folder):  # noqa: F811
    for name, images in zip(FILTERS, ([1, 3], [3])):
        filtered(coco_folder, name, images)
    plan, _ = coco.plan_split(coco_folder, "train")
    assert len(plan.items) == 3  # COCO's own file, where it is there
    plan, _ = coco.plan_split(coco_folder, "train", filtered=FILTERS[1])
    assert [item.image_id for item in plan.items] == [3]
    with pytest.raises(ValueError, match=r"--filtered 'other': no annotations/panoptic_\*_other"):
        coco.plan_split(coco_folder, "train", filtered="other")
    (coco_folder / "annotations" / "panoptic_train2017.json").unlink()
    with pytest.raises(ValueError, match="choose one with --filtered"):
        coco.plan_split(coco_folder, "train")
    assert coco_files.find_splits(coco_folder) == {"train": sorted(FILTERS)}


BROKEN = {
    "no categories": (lambda rows: None, "lists no categories"),
    "no sentences": (lambda rows: rows[0].pop("sentences"), r"annotation 0: field 'sentences'"),
    "object twice": (
        lambda rows: rows.append(rows[0]),
        r"annotation 1: ann_id 12 occurs repeatedly",
    ),
    "raw is a number": (
        lambda rows: rows[0]["sentences"][1].update(raw=3),
        r"annotation 0, sentence 1: field 'raw' is 3",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_merged_file_is_refused_by_name(coco_folder, tmp_path, name):  # noqa: F811
    change, message = BROKEN[name]
    path = coco_folder / "annotations" / "refcocog_umd_val.json"
    write_merged(path, {2: "val"})
    table = json.loads(path.read_text())
    change(table["annotations"])
    path.write_text(json.dumps(table))
    if name == "no categories":
        path = path.rename(tmp_path / path.name)
    with pytest.raises(ValueError, match=message):
        refcoco.convert(coco_folder, path, "", tmp_path / "out", "refcocog", ["val"], 1)
