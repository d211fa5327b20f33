"""The converters on real COCO files, on broken files, and killed half way."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from data_prep import coco, davis, refcoco
from seem_jax.convert import coco_names
from seem_jax.data.catalog import classes_path, open_split

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = ROOT.parent / "shared" / "samples"
needs_samples = pytest.mark.skipif(
    not SAMPLES.is_dir(), reason="the sample files are not beside the checkout (../shared/samples)"
)


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> Path:
    """The real samples, converted."""
    root = tmp_path_factory.mktemp("records")
    refer = SAMPLES / "refer_ours" / "refcocog"
    coco.convert(SAMPLES / "coco", root, "coco_panoptic", ["val"], 1, [coco.Referring(refer)])
    refcoco.convert(SAMPLES / "coco", refer, "umd", root, "refcocog", ["val", "train"], 1)
    video = SAMPLES / "layouts_synthetic" / "DAVIS2017"
    davis.convert(video, root, "davis", ["val"], 1)
    return root


def read_all(root: Path, spec: str) -> list:
    split = open_split(root, spec)
    return [split[number] for number in range(len(split))]


def decode_image(data: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


@needs_samples
def test_panoptic_records_agree_with_the_files_pixel_by_pixel(records):
    table = json.loads((SAMPLES / "coco/annotations/panoptic_val2017.json").read_text())
    split = open_split(records, "coco_panoptic:val")
    assert len(split) == len(table["annotations"]) == 2
    crowds = 0
    for record, annotation in zip(read_all(records, "coco_panoptic:val"), table["annotations"]):
        rgb = np.array(Image.open(SAMPLES / "coco/panoptic_val2017" / annotation["file_name"]))
        ids = rgb.astype(np.int64) @ np.array([1, 256, 65536])
        index = decode_image(record.segment_map)
        assert index.dtype == np.uint8
        np.testing.assert_array_equal(np.array([0, *record.segment_id])[index], ids)
        for place, info in enumerate(annotation["segments_info"]):
            assert record.segment_id[place] == info["id"]
            assert split.category_ids[record.segment_category[place]] == info["category_id"]
            assert record.segment_crowd[place] == bool(info["iscrowd"])
            assert (index == place + 1).sum() == info["area"]
            crowds += info["iscrowd"]
        assert record.image == (SAMPLES / "coco/val2017" / record.file_name).read_bytes()
    assert crowds == 2


@needs_samples
def test_classes_are_in_the_official_order(records):
    official = json.loads((SAMPLES / "coco_panoptic_categories.json").read_text())
    split = open_split(records, "coco_panoptic:val")
    rows = official["categories"] if isinstance(official, dict) else official
    assert split.class_names == [row["name"] for row in rows]
    assert split.category_ids == [row["id"] for row in rows]
    assert split.num_things == 80


@needs_samples
def test_official_weights_come_with_the_names_of_this_data_set(records):
    """Those that seem_jax.convert writes where no data set is here."""
    found = json.loads(classes_path(records, "coco_panoptic:val").read_text())
    assert found | coco_names.classes() == found


@needs_samples
def test_object_masks_are_those_of_the_annotation_files(records):
    rows = json.loads((SAMPLES / "coco/annotations/instances_val2017.json").read_text())
    polygons = [row for row in rows["annotations"] if row["image_id"] == 39769]
    (record,) = (r for r in read_all(records, "coco_panoptic:val") if r.image_id == 39769)
    for row, counts in zip(polygons, record.object_rle, strict=False):
        parts = coco_mask.frPyObjects(row["segmentation"], record.height, record.width)
        assert counts == coco_mask.merge(parts)["counts"]
    rows = json.loads((SAMPLES / "refer_ours/refcocog/instances.json").read_text())
    (coded,) = (row for row in rows["annotations"] if row["id"] == 9000038)
    (record,) = (r for r in read_all(records, "refcocog:train") if r.image_id == 439180)
    assert record.object_rle == [coded["segmentation"]["counts"].encode()]


@needs_samples
def test_sentences_keep_the_order_of_the_refs(records):
    with open(SAMPLES / "refer_ours/refcocog/refs(umd).p", "rb") as file:
        refs = pickle.load(file)
    for split in ("val", "train"):
        got = {record.image_id: record for record in read_all(records, f"refcocog:{split}")}
        want: dict[int, list] = {}
        for ref in refs:
            if ref["split"] == split:
                texts = [(sentence["raw"], ref["ann_id"]) for sentence in ref["sentences"]]
                want.setdefault(ref["image_id"], []).extend(texts)
        assert list(got) == list(want)
        for image_id, pairs in want.items():
            assert got[image_id].phrase_text == [text for text, _ in pairs]
            order = list(dict.fromkeys(ann_id for _, ann_id in pairs))
            assert [order[number] for number in got[image_id].phrase_object] == [
                ann_id for _, ann_id in pairs
            ]
    joined = {record.image_id: record for record in read_all(records, "coco_panoptic:val")}
    assert joined[39769].phrase_text == [
        sentence["raw"]
        for ref in refs
        if ref["image_id"] == 39769 and ref["split"] == "val"
        for sentence in ref["sentences"]
    ]


@needs_samples
def test_video_records_agree_with_the_palette_files(records):
    folder = SAMPLES / "layouts_synthetic" / "DAVIS2017"
    frames = read_all(records, "davis:val")
    listed = (folder / "ImageSets" / "2017" / "val.txt").read_text().split()
    assert list(dict.fromkeys(record.sequence for record in frames)) == listed
    for name in listed:
        numbers = [record.frame for record in frames if record.sequence == name]
        assert numbers == list(range(len(numbers)))
    for record in frames:
        png = folder / "Annotations" / "480p" / record.sequence / f"{record.frame:05d}.png"
        labels = np.array(Image.open(png))
        np.testing.assert_array_equal(
            decode_image(record.segment_map), np.where(labels == 255, 0, labels)
        )
    real = sorted((SAMPLES / "vos_masks").rglob("*.png"))
    assert davis.read_labels(real[0]).shape == (480, 854)


@needs_samples
def test_tfds_reads_the_description_of_the_data_set(records):
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(records / "refcocog" / "1.0.0"))
    assert {name: info.num_examples for name, info in builder.info.splits.items()} == {
        "train": 4,
        "val": 2,
    }
    assert builder.info.name == "refcocog"
    assert "segment_map" in builder.info.features


@needs_samples
def test_a_missing_shard_or_a_wrong_count_is_refused(records, tmp_path):
    shutil.copytree(records / "coco_panoptic", tmp_path / "coco_panoptic")
    folder = tmp_path / "coco_panoptic" / "1.0.0"
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace('"2"', '"3"'))
    with pytest.raises(ValueError, match=r"record 2 of .*holds 3 records; it holds 2"):
        open_split(tmp_path, "coco_panoptic:val")
    with pytest.raises(ValueError, match=r"has the splits \['val'\], not 'train'"):
        open_split(tmp_path, "coco_panoptic:train")
    next(folder.glob("*-of-00001")).unlink()
    with pytest.raises(ValueError, match="shards of coco_panoptic-val"):
        open_split(tmp_path, "coco_panoptic:val")


@needs_samples
def test_images_of_held_out_sentences_stay_out_of_training(tmp_path, capsys):
    source = tmp_path / "coco"
    shutil.copytree(SAMPLES / "coco", source)
    for name in ("val2017", "panoptic_val2017"):
        (source / name).rename(source / name.replace("val", "train"))
    notes = source / "annotations"
    for name in ("panoptic_val2017.json", "instances_val2017.json"):
        (notes / name).rename(notes / name.replace("val", "train"))
    referring = coco.Referring(SAMPLES / "refer_ours" / "refcocog")
    coco.convert(source, tmp_path / "out", "coco_panoptic", ["train"], 1, [referring])
    (record,) = read_all(tmp_path / "out", "coco_panoptic:train")
    assert record.image_id == 439180  # 39769 has sentences of val
    assert len(record.phrase_text) > 0
    assert "1 images left out" in capsys.readouterr().out


# A tiny COCO folder, to break in many ways.


@pytest.fixture
def tiny(tmp_path) -> Path:
    source = tmp_path / "coco"
    for folder in ("val2017", "panoptic_val2017", "annotations"):
        (source / folder).mkdir(parents=True)
    image = np.random.default_rng(0).integers(0, 255, (8, 10, 3), np.uint8)
    cv2.imwrite(str(source / "val2017" / "a.jpg"), image)
    ids = np.zeros((8, 10, 3), np.uint8)
    ids[:4, :, 2] = 7  # cv2 writes BGR, so this is R: id 7
    cv2.imwrite(str(source / "panoptic_val2017" / "a.png"), ids)
    segment = {"id": 7, "category_id": 5, "iscrowd": 0, "area": 40, "bbox": [0, 0, 10, 4]}
    table = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 8, "width": 10}],
        "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": [segment]}],
        "categories": [{"id": 5, "name": "thing", "isthing": 1}],
    }
    (source / "annotations" / "panoptic_val2017.json").write_text(json.dumps(table))
    return source


def convert(source: Path) -> None:
    coco.convert(source, source.parent / "out", "coco_panoptic", ["val"], 1)


def change(source: Path, edit) -> None:
    path = source / "annotations" / "panoptic_val2017.json"
    table = json.loads(path.read_text())
    edit(table)
    path.write_text(json.dumps(table))


BROKEN = {
    "image_id 2 is not among 'images'": lambda t: t["annotations"][0].update(image_id=2),
    "annotation 0: field 'image_id' is nothing": lambda t: t["annotations"][0].pop("image_id"),
    "field 'height' is '8'": lambda t: t["images"][0].update(height="8"),
    r"segment 0: category_id 6 is not among": lambda t: t["annotations"][0]["segments_info"][
        0
    ].update(category_id=6),
    r"ids \[7\] are not in segments_info of image 1, and ids \[8\]": lambda t: t["annotations"][0][
        "segments_info"
    ][0].update(id=8),
    "expected a list under 'categories'": lambda t: t.pop("categories"),
    "a.jpg is 8 x 10 pixels, annotated as 9 x 10": lambda t: t["images"][0].update(height=9),
    r"missing.png is missing or no readable PNG": lambda t: t["annotations"][0].update(
        file_name="missing.png"
    ),
    r"image .*b\.jpg does not exist": lambda t: t["images"][0].update(file_name="b.jpg"),
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_broken_annotation_file_is_refused_by_name(tiny, message):
    change(tiny, BROKEN[message])
    with pytest.raises(ValueError, match=message) as error:
        convert(tiny)
    assert str(tiny) in str(error.value)
    with pytest.raises(ValueError, match="Make it with"):
        open_split(tiny.parent / "out", "coco_panoptic:val")


def test_a_truncated_picture_is_refused_by_name(tiny):
    path = tiny / "val2017" / "a.jpg"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(ValueError, match=r"a\.jpg .* is truncated"):
        convert(tiny)
    path.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"a\.jpg .* is no readable image"):
        convert(tiny)
    path.write_bytes(whole)
    convert(tiny)
    assert len(open_split(tiny.parent / "out", "coco_panoptic:val")) == 1


def test_another_input_does_not_mix_with_a_finished_conversion(tiny):
    convert(tiny)
    convert(tiny)
    change(tiny, lambda t: t["annotations"][0]["segments_info"][0].update(iscrowd=1))
    with pytest.raises(ValueError, match="made from other annotations"):
        convert(tiny)


def test_data_that_moved_continues_its_conversion(tiny, tmp_path):
    convert(tiny)
    tiny.rename(tmp_path / "elsewhere")
    convert(tmp_path / "elsewhere")


def test_more_than_255_segments_are_kept_in_16_bits(tiny):
    ids = np.arange(300).reshape(15, 20)
    bgr = np.stack([ids * 0, ids >> 8, ids & 255], axis=-1).astype(np.uint8)
    cv2.imwrite(str(tiny / "panoptic_val2017" / "a.png"), bgr)
    cv2.imwrite(str(tiny / "val2017" / "a.jpg"), bgr)
    segments = [{"id": number, "category_id": 5} for number in range(1, 300)]

    def edit(table):
        table["images"][0].update(height=15, width=20)
        table["annotations"][0]["segments_info"] = segments

    change(tiny, edit)
    convert(tiny)
    (record,) = read_all(tiny.parent / "out", "coco_panoptic:val")
    index = decode_image(record.segment_map)
    assert index.dtype == np.uint16
    np.testing.assert_array_equal(index, ids)


class Hostile:
    def __init__(self, function, *arguments):
        self.parts = function, arguments

    def __reduce__(self):
        return self.parts


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_hostile_pickle_is_refused_and_runs_nothing(tmp_path, protocol):
    trap = tmp_path / "trap"
    for function, arguments in (
        (os.system, (f"touch {trap}",)),
        (eval, (f"open({str(trap)!r}, 'w')",)),
        (getattr, ("", "join")),
    ):
        data = pickle.dumps([Hostile(function, *arguments)], protocol)
        (tmp_path / "refs(umd).p").write_bytes(data)
        with pytest.raises(ValueError, match=rf"refs\(umd\).*asks for .*\.{function.__name__}"):
            refcoco.read_refs(tmp_path, "umd")
    assert not trap.exists()


def test_a_broken_refs_file_is_refused_by_name(tmp_path):
    path = tmp_path / "refs(umd).p"
    with pytest.raises(ValueError, match="does not exist"):
        refcoco.read_refs(tmp_path, "umd")
    whole = pickle.dumps([{"ref_id": 1, "ann_id": 2}], 2)
    for data in (whole[:-4], b"", b"text", pickle.dumps(5, 2)):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"refs\(umd\)\.p"):
            refcoco.read_refs(tmp_path, "umd")
    path.write_bytes(whole)
    with pytest.raises(ValueError, match="record 0: field 'sentences' is nothing"):
        refcoco.read_refs(tmp_path, "umd")


SLOW = """
import sys, time
from pathlib import Path
from data_prep import writer
from seem_jax.data.schema import Record

def make(item):
    time.sleep(float(sys.argv[2]))
    return Record(image_id=item, file_name=str(item), image=bytes(1000), height=1, width=1)

writer.RECORDS_PER_SHARD = 5
plan = writer.Plan("train", list(range(40)), make)
writer.write_dataset(Path(sys.argv[1]), "set", writer.Classes(("a",), 1, (1,)), [plan], processes=1)
"""


def test_a_killed_converter_leaves_no_half_shard_and_continues(tmp_path):
    def start(delay: str) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-c", SLOW, str(tmp_path), delay], cwd=ROOT)

    folder = tmp_path / "set" / "1.0.0"
    process = start("0.02")
    deadline = time.monotonic() + 60
    while len(list(folder.glob("*.idx.npy"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    shards = sorted(folder.glob("*-of-00008"))
    assert 2 <= len(shards) < 8
    with pytest.raises(ValueError, match="not \\(completely\\) in"):
        open_split(tmp_path, "set:train")
    times = {path: path.stat().st_mtime_ns for path in shards}
    assert start("0").wait() == 0
    assert [record.image_id for record in read_all(tmp_path, "set:train")] == list(range(40))
    assert {path: path.stat().st_mtime_ns for path in shards} == times
    assert not list(folder.glob("*.tmp"))
