"""Faults planted in good data sets, each named by file, record and field."""

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from data_prep import coco, doctor, writer
from seem_jax.data import schema
from seem_jax.data.catalog import open_split
from seem_jax.data.tfrecord import index_path, write_shard
from tests.test_converters_custom import WRITERS
from tests.test_converters_sets import HEIGHT, WIDTH, box_polygon, labels, palette, sbd_folder

ROOT = Path(__file__).resolve().parents[1]
NUM_IMAGES = 6


def name_of(image_id: int) -> str:
    return f"{image_id:012d}"


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """A raw set in all layouts of COCO and REFER, and what it converts to."""
    root = tmp_path_factory.mktemp("good")
    source = root / "coco"
    for folder in ("val2017", "panoptic_val2017", "annotations", "refcocog"):
        (source / folder).mkdir(parents=True)
    images, panoptic, objects, captions, refs = [], [], [], [], []
    for image_id in range(1, NUM_IMAGES + 1):
        noise = np.random.default_rng(image_id).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
        cv2.imwrite(str(source / "val2017" / f"{name_of(image_id)}.jpg"), noise)
        ids = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        ids[2:12, 2:12, 2], ids[15:28, 20:38, 2] = 5, 6
        cv2.imwrite(str(source / "panoptic_val2017" / f"{name_of(image_id)}.png"), ids)
        size = {"height": HEIGHT, "width": WIDTH}
        images.append({"id": image_id, "file_name": f"{name_of(image_id)}.jpg", **size})
        infos = [
            {"id": 5, "category_id": 1, "iscrowd": 0, "area": 100, "bbox": [2, 2, 10, 10]},
            {"id": 6, "category_id": 9, "iscrowd": 0, "area": 234, "bbox": [20, 15, 18, 13]},
        ]
        file_name = f"{name_of(image_id)}.png"
        panoptic.append({"image_id": image_id, "file_name": file_name, "segments_info": infos})
        runs = {"size": [HEIGHT, WIDTH], "counts": [100, 200, HEIGHT * WIDTH - 300]}
        for place, segmentation in enumerate(([box_polygon(2, 2, 12, 12)], runs)):
            objects.append(
                {
                    "id": 10 * image_id + place,
                    "image_id": image_id,
                    "category_id": 1,
                    "iscrowd": 0,
                    "area": 100.0,
                    "bbox": [2, 2, 10, 10],
                    "segmentation": segmentation,
                }
            )
        captions.append({"id": image_id, "image_id": image_id, "caption": f"caption {image_id}"})
        refs.append(
            {
                "ref_id": image_id,
                "ann_id": 10 * image_id,
                "image_id": image_id,
                "split": "val",
                "sentences": [{"raw": "a cup"}, {"raw": "the cup"}],
            }
        )
    categories = [
        {"id": 1, "name": "cup", "isthing": 1},
        {"id": 9, "name": "table", "isthing": 0},
    ]
    tables = {
        "panoptic": {"images": images, "annotations": panoptic, "categories": categories},
        "instances": {"images": images, "annotations": objects, "categories": categories},
        "captions": {"images": images, "annotations": captions},
    }
    for kind, table in tables.items():
        (source / "annotations" / f"{kind}_val2017.json").write_text(json.dumps(table))
    (source / "refcocog" / "instances.json").write_text(json.dumps(tables["instances"]))
    (source / "refcocog" / "refs(umd).p").write_bytes(pickle.dumps(refs, 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "RECORDS_PER_SHARD", 2)
        referring = [coco.Referring(source / "refcocog")]
        coco.convert(source, root / "records", "coco", ["val"], 1, referring)
    return root


@pytest.fixture
def copy(good, tmp_path) -> Path:
    shutil.copytree(good, tmp_path / "set")
    return tmp_path / "set"


def edit(name: str, change: Callable[[dict], object]) -> Callable[[Path], None]:
    def plant(root: Path) -> None:
        path = root / "coco" / "annotations" / f"{name}_val2017.json"
        table = json.loads(path.read_text())
        change(table)
        path.write_text(json.dumps(table))

    return plant


def edit_refs(change: Callable[[list], object]) -> Callable[[Path], None]:
    def plant(root: Path) -> None:
        path = root / "coco" / "refcocog" / "refs(umd).p"
        refs = pickle.loads(path.read_bytes())
        change(refs)
        path.write_bytes(pickle.dumps(refs, 2))

    return plant


def image(root: Path, image_id: int = 3) -> Path:
    return root / "coco" / "val2017" / f"{name_of(image_id)}.jpg"


def png(root: Path, image_id: int = 3) -> Path:
    return root / "coco" / "panoptic_val2017" / f"{name_of(image_id)}.png"


def turn(root: Path) -> None:
    picture = Image.open(image(root))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(image(root), exif=exif)


def cut(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def paint_png(root: Path, value: int) -> None:
    ids = cv2.imread(str(png(root)))
    ids[0, 0, 2] = value
    cv2.imwrite(str(png(root)), ids)


def second(table: dict) -> dict:
    return table["annotations"][2]  # of image 2 of the instances


RAW = {  # name -> (plant, file, record, field)
    "image missing": (lambda r: image(r).unlink(), "000003.jpg", "image id 3", "file_name"),
    "image cut off": (lambda r: cut(image(r), 0.6), "000003.jpg", "image id 3", "image"),
    "image empty": (lambda r: cut(image(r), 0), "000003.jpg", "image id 3", "image"),
    "image is text": (
        lambda r: image(r).write_text("<html>"),
        "000003.jpg",
        "image id 3",
        "image",
    ),
    "png named jpg": (lambda r: shutil.copy(png(r), image(r)), "000003.jpg", "image id 3", "image"),
    "image turned": (turn, "000003.jpg", "image id 3", "image"),
    "image of another size": (
        lambda r: cv2.imwrite(str(image(r)), np.zeros((5, 7, 3), np.uint8)),
        "000003.jpg",
        "image id 3",
        "image",
    ),
    "image without entry": (lambda r: shutil.copy(image(r), image(r, 99)), "000099.jpg", "", ""),
    "png missing": (lambda r: png(r).unlink(), "000003.png", "image id 3", "file_name"),
    "png cut off": (lambda r: cut(png(r), 0.5), "000003.png", "image id 3", ""),
    "png without entry": (lambda r: shutil.copy(png(r), png(r, 99)), "000099.png", "", ""),
    "png grey": (
        lambda r: cv2.imwrite(str(png(r)), np.zeros((HEIGHT, WIDTH), np.uint8)),
        "000003.png",
        "image id 3",
        "",
    ),
    "png of another size": (
        lambda r: cv2.imwrite(str(png(r)), cv2.imread(str(png(r)))[:-1]),
        "000003.png",
        "image id 3",
        "height, width",
    ),
    "id only in the png": (
        lambda r: paint_png(r, 77),
        "000003.png",
        "image id 3",
        "segments_info",
    ),
    "id only in the json": (
        edit("panoptic", lambda t: t["annotations"][2]["segments_info"][0].update(id=78)),
        "panoptic_val2017.json",
        "image id 3",
        "segments_info",
    ),
    "area of another mask": (
        edit("panoptic", lambda t: t["annotations"][2]["segments_info"][0].update(area=99)),
        "panoptic_val2017.json",
        "image id 3, segment id 5",
        "area",
    ),
    "segment id twice": (
        edit(
            "panoptic",
            lambda t: t["annotations"][2]["segments_info"].append(
                t["annotations"][2]["segments_info"][0]
            ),
        ),
        "panoptic_val2017.json",
        "image id 3, segment id 5",
        "id",
    ),
    "segment of no category": (
        edit("panoptic", lambda t: t["annotations"][2]["segments_info"][0].update(category_id=2)),
        "panoptic_val2017.json",
        "image id 3, segment id 5",
        "category_id",
    ),
    "category removed": (
        edit("panoptic", lambda t: t["categories"].pop()),
        "panoptic_val2017.json",
        "category id 9",
        "categories",
    ),
    "category twice": (
        edit("panoptic", lambda t: t["categories"].append(t["categories"][0])),
        "panoptic_val2017.json",
        "id 1",
        "id",
    ),
    "category without isthing": (
        edit("panoptic", lambda t: t["categories"][0].pop("isthing")),
        "panoptic_val2017.json",
        "id 1",
        "isthing",
    ),
    "image without annotation": (
        edit("panoptic", lambda t: t["annotations"].pop(2)),
        "panoptic_val2017.json",
        "image id 3",
        "annotations",
    ),
    "annotation twice": (
        edit("panoptic", lambda t: t["annotations"].append(t["annotations"][2])),
        "panoptic_val2017.json",
        "image_id 3",
        "image_id",
    ),
    "image id twice": (
        edit("panoptic", lambda t: t["images"].append(t["images"][2])),
        "panoptic_val2017.json",
        "image id 3",
        "id",
    ),
    "height as text": (
        edit("instances", lambda t: t["images"][2].update(height="30")),
        "instances_val2017.json",
        "image id 3",
        "height",
    ),
    "annotation of no image": (
        edit("instances", lambda t: second(t).update(image_id=99)),
        "instances_val2017.json",
        "annotation id 20",
        "image_id",
    ),
    "polygon of two corners": (
        edit("instances", lambda t: second(t).update(segmentation=[[1, 1, 5, 5]])),
        "instances_val2017.json",
        "annotation id 20",
        "segmentation",
    ),
    "polygon outside": (
        edit("instances", lambda t: second(t).update(segmentation=[box_polygon(2, 2, 99, 9)])),
        "instances_val2017.json",
        "annotation id 20",
        "segmentation",
    ),
    "polygon of odd length": (
        edit("instances", lambda t: second(t)["segmentation"][0].append(3)),
        "instances_val2017.json",
        "annotation id 20",
        "segmentation",
    ),
    "polygon of nan": (
        edit("instances", lambda t: second(t)["segmentation"][0].__setitem__(0, float("nan"))),
        "instances_val2017.json",
        "annotation id 20",
        "segmentation",
    ),
    "code of another size": (
        edit("instances", lambda t: t["annotations"][3]["segmentation"].update(size=[9, 9])),
        "instances_val2017.json",
        "annotation id 21",
        "segmentation",
    ),
    "code damaged": (
        edit("instances", lambda t: t["annotations"][3]["segmentation"].update(counts="0M;x")),
        "instances_val2017.json",
        "annotation id 21",
        "segmentation",
    ),
    "box without width": (
        edit("instances", lambda t: second(t).update(bbox=[2, 2, 0, 10])),
        "instances_val2017.json",
        "annotation id 20",
        "bbox",
    ),
    "annotation id twice": (
        edit("instances", lambda t: second(t).update(id=10)),
        "instances_val2017.json",
        "annotation id 10",
        "id",
    ),
    "empty caption": (
        edit("captions", lambda t: t["annotations"][2].update(caption=" ")),
        "captions_val2017.json",
        "annotation id 3",
        "caption",
    ),
    "json cut off": (
        lambda r: cut(r / "coco" / "annotations" / "instances_val2017.json", 0.5),
        "instances_val2017.json",
        "",
        "",
    ),
    "empty sentence": (
        edit_refs(lambda refs: refs[2]["sentences"][1].update(raw="  ")),
        "refs(umd).p",
        "ref_id 3, sentence 1",
        "raw",
    ),
    "sentences of no object": (
        edit_refs(lambda refs: refs[2].update(ann_id=999)),
        "refs(umd).p",
        "ref_id 3",
        "ann_id",
    ),
    "sentences of another image": (
        edit_refs(lambda refs: refs[2].update(image_id=2)),
        "refs(umd).p",
        "ref_id 3",
        "image_id",
    ),
    "ref id twice": (
        edit_refs(lambda refs: refs[2].update(ref_id=2)),
        "refs(umd).p",
        "ref_id 2",
        "ref_id",
    ),
    "hostile pickle": (
        lambda r: (r / "coco/refcocog/refs(umd).p").write_bytes(pickle.dumps([doctor.main], 2)),
        "refs(umd).p",
        "",
        "",
    ),
}


def folder_of(root: Path) -> Path:
    return root / "records" / "coco" / "1.0.0"


def shard(root: Path, number: int = 1) -> Path:
    return folder_of(root) / f"coco-val.tfrecord-{number:05d}-of-00003"


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


def rewrite(change: Callable[[schema.Record], object]) -> Callable[[Path], None]:
    """Plants a fault in record 1 of shard 1, with right checksums."""

    def plant(root: Path) -> None:
        split = open_split(root / "records", "coco:val")
        payloads = [split.source[2], split.source[3]]
        record = schema.decode(payloads[1])
        change(record)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(schema, "check", lambda record: None)
            payloads[1] = schema.encode(record)
        write_shard(shard(root), payloads)

    return plant


def edit_json(name: str, change: Callable[[dict], object]) -> Callable[[Path], None]:
    def plant(root: Path) -> None:
        path = folder_of(root) / name
        value = json.loads(path.read_text())
        change(value)
        path.write_text(json.dumps(value))

    return plant


SHARD = "coco-val.tfrecord-00001-of-00003"
CONVERTED = {
    "shard missing": (lambda r: shard(r).unlink(), "1.0.0", "shard 1", "val"),
    "shard copied": (lambda r: shutil.copy(shard(r, 0), shard(r)), SHARD, "", ""),
    "two numberings": (
        lambda r: shutil.copy(shard(r), folder_of(r) / "coco-val.tfrecord-00000-of-00001"),
        "1.0.0",
        "",
        "val",
    ),
    "shard cut off": (lambda r: cut(shard(r), 0.7), SHARD, "record 1", ""),
    "payload flipped": (lambda r: flip(shard(r), 500), SHARD, "record 0", ""),
    "head flipped": (lambda r: flip(shard(r), 3), SHARD, "record 0", ""),
    "count differs": (
        edit_json("dataset_info.json", lambda v: v["splits"][0].update(shardLengths=["2", "3", "2"])),
        SHARD,
        "",
        "shardLengths",
    ),
    "info missing": (
        lambda r: (folder_of(r) / "dataset_info.json").unlink(),
        "dataset_info.json",
        "",
        "",
    ),
    "classes missing": (lambda r: (folder_of(r) / "classes.json").unlink(), "classes.json", "", ""),
    "class gap": (
        edit_json("classes.json", lambda v: v["category_ids"].pop()),
        "classes.json",
        "",
        "category_ids",
    ),
    "index of another shard": (
        lambda r: np.save(index_path(shard(r)), np.load(index_path(shard(r, 0)))),
        SHARD + ".idx.npy",
        "",
        "",
    ),
    "index missing": (lambda r: index_path(shard(r)).unlink(), SHARD + ".idx.npy", "", ""),
    "left over file": (lambda r: (folder_of(r) / "x.7.tmp").touch(), "x.7.tmp", "", ""),
    "picture cut off": (rewrite(lambda v: setattr(v, "image", v.image[:300])), SHARD, "record 1", "image"),
    "size differs": (rewrite(lambda v: setattr(v, "height", 31)), SHARD, "record 1", "image"),
    "map damaged": (rewrite(lambda v: setattr(v, "segment_map", b"x")), SHARD, "record 1", "segment_map"),
    "segment without pixels": (
        rewrite(
            lambda v: [
                v.segment_id.append(8),
                v.segment_category.append(0),
                v.segment_crowd.append(False),
            ]
        ),
        SHARD,
        "record 1",
        "segment_id",
    ),
    "lists disagree": (rewrite(lambda v: v.segment_crowd.pop()), SHARD, "record 1", "segment_crowd"),
    "category too high": (
        rewrite(lambda v: v.segment_category.__setitem__(0, 7)),
        SHARD,
        "record 1",
        "segment_category",
    ),
    "run-length code damaged": (
        rewrite(lambda v: v.object_rle.__setitem__(0, b"0M;")),
        SHARD,
        "record 1",
        "object_rle",
    ),
    "text empty": (rewrite(lambda v: v.phrase_text.__setitem__(0, " ")), SHARD, "record 1", "phrase_text"),
    "phrase of no object": (
        rewrite(lambda v: v.phrase_object.__setitem__(0, 9)),
        SHARD,
        "record 1",
        "phrase_object",
    ),
    "image twice": (rewrite(lambda v: vars(v).update(image_id=3, file_name=f"{name_of(3)}.jpg")), SHARD, "record 1", "image_id"),
}  # fmt: skip


def test_good_sets_have_no_fault(copy):
    assert doctor.examine(copy / "coco") == []
    assert doctor.examine(copy / "records") == []


@pytest.mark.parametrize("name", RAW)
def test_a_fault_of_a_raw_set_is_named(copy, name):
    plant, *place = RAW[name]
    plant(copy)
    check(doctor.examine(copy / "coco"), *place)


@pytest.mark.parametrize("name", CONVERTED)
def test_a_fault_of_a_converted_set_is_named(copy, name):
    plant, *place = CONVERTED[name]
    plant(copy)
    check(doctor.examine(copy / "records"), *place)


def check(faults: list, file: str, record: str, field: str) -> None:
    places = [(fault.file, fault.record, fault.field) for fault in faults]
    assert any(
        found.endswith(file) and (record in label if record else True) and named == field
        for found, label, named in places
    ), "\n".join(map(str, faults))
    assert len(faults) <= NUM_IMAGES + 1, "\n".join(map(str, faults))  # not a flood from one fault
    assert all(fault.problem and fault.repair for fault in faults)


def test_many_faults_at_once_are_all_named(copy):
    """Thirty, in different images and files of one set."""
    path = copy / "coco" / "annotations" / "instances_val2017.json"
    table = json.loads(path.read_text())
    for row in table["annotations"][:10]:
        row["bbox"] = [0, 0, -1, 5]
    for row in table["annotations"][2:12]:
        row["category_id"] = 4
    for row in table["annotations"][::2]:
        row["segmentation"] = [[1, 2]]
    path.write_text(json.dumps(table))
    png(copy, 1).unlink()
    image(copy, 2).unlink()
    cut(image(copy, 4), 0.5)
    cut(png(copy, 5), 0.5)
    assert len(doctor.examine(copy / "coco")) == 30


OTHERS = {
    "yolo": ("train/labels/a.txt", "0 .1 .1 .9 .1 .9 .9\n7 .1 .1 .9 .1 .9 .9\n", "line 2", "class"),
    "masks": ("classes.txt", "background\nbolt\n", "b", "class"),
    "labelme": (
        "train/a.json",
        '{"shapes": [{"label": "x", "points": [[1, 1]]}], "imagePath": "a.jpg", "imageHeight": 40,'
        ' "imageWidth": 60}',
        "shape 0",
        "points",
    ),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_sets_of_ones_own_are_checked_too(tmp_path, kind):
    WRITERS[kind](tmp_path)
    assert doctor.examine(tmp_path) == []
    if kind in OTHERS:
        name, text, record, field = OTHERS[kind]
        (tmp_path / name).write_text(text)
        found = doctor.examine(tmp_path)
        assert (record, field) in {(fault.record, fault.field) for fault in found}


def test_sets_of_interactive_evaluation_are_checked_too(tmp_path):
    sbd_folder(tmp_path / "sbd", (labels() == 1).astype(np.uint8), [3])
    assert doctor.examine(tmp_path / "sbd") == []
    sbd_folder(tmp_path / "sbd", (labels() == 1).astype(np.uint8), [33])
    (fault,) = doctor.examine(tmp_path / "sbd")
    assert fault.file.endswith("a.mat") and fault.field == "Categories"
    video = tmp_path / "DAVIS"
    for frame in range(3):
        for part, end in (("JPEGImages", "jpg"), ("Annotations", "png")):
            path = video / part / "480p" / "dog" / f"{frame:05d}.{end}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if end == "png":
                palette(path, labels() == 1)
            else:
                cv2.imwrite(str(path), np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    (video / "ImageSets" / "2017").mkdir(parents=True)
    (video / "ImageSets" / "2017" / "val.txt").write_text("dog\n")
    assert doctor.examine(video) == []
    (video / "JPEGImages" / "480p" / "dog" / "00001.jpg").unlink()
    palette(video / "Annotations" / "480p" / "dog" / "00002.png", labels())
    found = {(fault.record, fault.field) for fault in doctor.examine(video)}
    assert found == {("dog", "frame 1"), ("dog", ""), ("dog, frame 00002", "object 16")}


def test_single_frames_of_davis_are_checked_too(tmp_path):
    for folder in ("img", "gt"):
        (tmp_path / folder).mkdir()
    for name in ("dog_00000", "dog_00007"):
        cv2.imwrite(str(tmp_path / "img" / f"{name}.jpg"), np.zeros((HEIGHT, WIDTH, 3), np.uint8))
        palette(tmp_path / "gt" / f"{name}.png", labels() == 1)
    assert doctor.examine(tmp_path) == []
    palette(tmp_path / "gt" / "dog_00007.png", labels()[:-1] == 1)
    palette(tmp_path / "gt" / "dog_00000.png", labels() < 0)
    palette(tmp_path / "gt" / "cat_00000.png", labels() == 1)
    found = {(fault.record, fault.problem.split()[-1]) for fault in doctor.examine(tmp_path)}
    assert found == {
        ("dog_00007", f"{WIDTH})"),
        ("dog_00000", "object"),
        ("cat_00000", "name"),
    }


def test_lvis_is_checked_without_images_of_its_own(tmp_path):
    """It names the photographs of COCO by other paths, or not at all."""
    box = [[1, 1, 9, 1, 9, 9, 1, 9]]
    row = {"id": 1, "image_id": 7, "category_id": 3, "area": 64, "bbox": [1, 1, 8, 8]}
    table = {
        "images": [{"id": 7, "height": 20, "width": 30, "coco_url": "train2017/7.jpg"}],
        "annotations": [row | {"segmentation": box}],
        "categories": [{"id": 3, "name": "mug"}],
    }
    path = tmp_path / "lvis_v1_train.json"
    path.write_text(json.dumps(table))
    assert doctor.examine(tmp_path) == []
    table["annotations"].append(
        row | {"id": 2, "category_id": 9, "segmentation": [[1, 1, 40, 1, 9, 9]]}
    )
    path.write_text(json.dumps(table))
    found = {(fault.record, fault.field) for fault in doctor.examine(tmp_path)}
    assert found == {("annotation id 2", "category_id"), ("annotation id 2", "segmentation")}


def test_the_program_prints_faults_and_fails(copy):
    image(copy).unlink()
    command = [sys.executable, "-m", "data_prep.doctor", "--input", str(copy / "coco")]
    command += ["--json", str(copy / "faults.json"), "--processes", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "000000000003.jpg, image id 3, field 'file_name': the file does not exist" in done.stdout
    # Once for each annotation file that names the image.
    assert {fault["record"] for fault in json.loads((copy / "faults.json").read_text())} == {
        "image id 3"
    }
