"""The converters of LVIS, VOC, SBD and DAVIS, the exclusions of COCO, and captions."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.io
from PIL import Image
from pycocotools import mask as coco_mask

from data_prep import coco, davis, refcoco, sbd, voc
from data_prep.lvis_masks import MIN_IOU, box_iou, read_lvis
from seem_jax.data.catalog import open_split
from seem_jax.image import decode_index_png

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = ROOT.parent / "shared" / "samples"
needs_samples = pytest.mark.skipif(
    not SAMPLES.is_dir(), reason="the sample files are not beside the checkout (../shared/samples)"
)
HEIGHT, WIDTH = 30, 40


def read_all(root: Path, spec: str) -> list:
    split = open_split(root, spec)
    return [split[number] for number in range(len(split))]


def picture(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(
        str(path), np.random.default_rng(seed).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    )


def palette(path: Path, labels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette(list(range(256)) * 3)
    image.save(path)


def labels() -> np.ndarray:
    """Object 1 and object 16, whose VOC colours are equal as grey, with a border."""
    out = np.zeros((HEIGHT, WIDTH), np.uint8)
    out[2:12, 2:12] = 1
    out[15:28, 20:38] = 16
    out[14, 20:38] = 255
    return out


@pytest.fixture
def voc_folder(tmp_path) -> Path:
    folder = tmp_path / "VOC2012"
    picture(folder / "JPEGImages" / "2007_000001.jpg")
    palette(folder / "SegmentationObject" / "2007_000001.png", labels())
    classes = np.select([labels() == 1, labels() == 16, labels() == 255], [15, 8, 255], 0)
    palette(folder / "SegmentationClass" / "2007_000001.png", classes)
    (folder / "ImageSets" / "Segmentation").mkdir(parents=True)
    (folder / "ImageSets" / "Segmentation" / "val.txt").write_text("2007_000001\n")
    return folder


def test_voc_objects_are_told_by_palette_index_and_borders_ignored(voc_folder, tmp_path):
    voc.convert(voc_folder, tmp_path / "out", "voc", ["val"], 1)
    (record,) = read_all(tmp_path / "out", "voc:val")
    names = open_split(tmp_path / "out", "voc:val").class_names
    assert [names[category] for category in record.segment_category] == ["person", "cat"]
    assert record.segment_id == [1, 16]
    pixels = decode_index_png(record.segment_map)
    np.testing.assert_array_equal(pixels == 1, labels() == 1)
    np.testing.assert_array_equal(pixels == 2, labels() == 16)
    ignored = {"size": [HEIGHT, WIDTH], "counts": record.ignore_rle[0]}
    np.testing.assert_array_equal(coco_mask.decode(ignored) > 0, labels() == 255)


def test_voc_faults_are_refused_by_name(voc_folder, tmp_path):
    palette(voc_folder / "SegmentationClass" / "2007_000001.png", labels() * 0)
    with pytest.raises(ValueError, match=r"2007_000001\.png: object 1 has no class"):
        voc.convert(voc_folder, tmp_path / "out", "voc", ["val"], 1)
    palette(voc_folder / "SegmentationObject" / "2007_000001.png", labels()[:5])
    with pytest.raises(ValueError, match=r"palette PNG of \(30, 40\) pixels"):
        voc.convert(voc_folder, tmp_path / "out", "voc", ["val"], 1)
    with pytest.raises(ValueError, match=r"train\.txt does not exist"):
        voc.convert(voc_folder, tmp_path / "out", "voc", ["train"], 1)


def sbd_folder(folder: Path, objects: np.ndarray, categories: list[int]) -> Path:
    picture(folder / "img" / "a.jpg")
    (folder / "inst").mkdir(exist_ok=True)
    kind = [("Segmentation", "O"), ("Boundaries", "O"), ("Categories", "O")]
    truth = np.zeros((1, 1), kind)
    truth[0, 0] = (objects, np.zeros((1, 1)), np.array(categories, np.uint8)[:, None])
    scipy.io.savemat(folder / "inst" / "a.mat", {"GTinst": truth})
    (folder / "val.txt").write_text("a\n")
    return folder


def test_sbd_objects_have_their_classes(tmp_path):
    objects = np.where(labels() == 16, 2, np.where(labels() == 1, 1, 0)).astype(np.uint8)
    sbd.convert(sbd_folder(tmp_path / "sbd", objects, [3, 20]), tmp_path / "out", "sbd", ["val"], 1)
    (record,) = read_all(tmp_path / "out", "sbd:val")
    names = open_split(tmp_path / "out", "sbd:val").class_names
    assert [names[category] for category in record.segment_category] == ["bird", "tvmonitor"]
    np.testing.assert_array_equal(decode_index_png(record.segment_map), objects)
    assert record.ignore_rle == []
    sbd_folder(tmp_path / "sbd", objects, [3])
    with pytest.raises(ValueError, match=r"a\.mat: object 2 has no class"):
        sbd.convert(tmp_path / "sbd", tmp_path / "other", "sbd", ["val"], 1)
    (tmp_path / "sbd" / "inst" / "a.mat").write_bytes(b"no mat file")
    with pytest.raises(ValueError, match=r"a\.mat is no SBD file"):
        sbd.convert(tmp_path / "sbd", tmp_path / "other2", "sbd", ["val"], 1)


@needs_samples
def test_the_drawn_layouts_convert_as_their_contents_say(tmp_path):
    folder = SAMPLES / "layouts_synthetic"
    contents = json.loads((folder / "contents.json").read_text())
    voc.convert(folder / "PascalVOC", tmp_path, "voc", ["val"], 1)
    sbd.convert(folder / "SBD", tmp_path, "sbd", ["val"], 1)
    for name in ("voc", "sbd"):
        split = open_split(tmp_path, f"{name}:val")
        for record in read_all(tmp_path, f"{name}:val"):
            want = contents[Path(record.file_name).stem]
            assert [record.height, record.width] == want["hw"]
            assert record.segment_id == want[f"objects_{name}"]
            got = [split.class_names[category] for category in record.segment_category]
            assert got == [want["classes_by_object"][str(number)] for number in record.segment_id]


def test_davis_of_2016_has_one_object_however_it_is_written(tmp_path):
    for values, year in (((1, 2), 2016), ((255, 255), 2016), ((1, 2), 2017)):
        folder = tmp_path / f"{values[0]}-{year}"
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[2:10, 2:10], mask[12:20, 12:20] = values
        for frame in (0, 1):
            picture(folder / "JPEGImages" / "480p" / "dog" / f"{frame:05d}.jpg")
            palette(folder / "Annotations" / "480p" / "dog" / f"{frame:05d}.png", mask)
        listed = folder / "ImageSets" / ("480p" if values[0] == 255 else str(year)) / "val.txt"
        listed.parent.mkdir(parents=True)
        line = "/JPEGImages/480p/dog/00000.jpg /Annotations/480p/dog/00000.png\n"
        listed.write_text(line if values[0] == 255 else "dog\n")
        davis.convert(folder, tmp_path / "out", folder.name, ["val"], 1, year)
        records = read_all(tmp_path / "out", f"{folder.name}:val")
        assert [record.frame for record in records] == [0, 1]
        assert records[0].segment_id == ([1] if year == 2016 else [1, 2])
        want = mask > 0 if year == 2016 else mask
        np.testing.assert_array_equal(decode_index_png(records[1].segment_map), want)


def test_davis_frames_of_interactive_evaluation(tmp_path):
    for number in range(3):
        picture(tmp_path / "in" / "img" / f"{number}.jpg")
        colour = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        colour[4:9, 5:20, number] = 128
        (tmp_path / "in" / "gt").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "in" / "gt" / f"{number}.png"), colour)
    command = [sys.executable, "-m", "data_prep.davis", "--output", str(tmp_path / "out")]
    subprocess.run([*command, "--input", str(tmp_path / "in")], cwd=ROOT, check=True)
    records = read_all(tmp_path / "out", "davis_frames:val")
    assert [record.file_name for record in records] == ["0.jpg", "1.jpg", "2.jpg"]
    for record in records:
        assert decode_index_png(record.segment_map)[4:9, 5:20].all()
        assert decode_index_png(record.segment_map).sum() == 5 * 15


# COCO: finer masks, exclusions, captions.


def box_polygon(x0: float, y0: float, x1: float, y1: float) -> list[float]:
    return [x0, y0, x1, y0, x1, y1, x0, y1]


@pytest.fixture
def coco_folder(tmp_path) -> Path:
    """Three training images with the segments 5 (a thing), 6 (a thing) and 7 (a crowd)."""
    source = tmp_path / "coco"
    images, rows = [], []
    ids = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    ids[2:12, 2:12, 2], ids[15:28, 20:38, 2], ids[2:12, 20:30, 2] = 5, 6, 7
    for image_id in (1, 2, 3):
        picture(source / "train2017" / f"{image_id:012d}.jpg", image_id)
        (source / "panoptic_train2017").mkdir(exist_ok=True)
        cv2.imwrite(str(source / "panoptic_train2017" / f"{image_id:012d}.png"), ids)
        images.append(
            {
                "id": image_id,
                "file_name": f"{image_id:012d}.jpg",
                "height": HEIGHT,
                "width": WIDTH,
            }
        )
        infos = [{"id": n, "category_id": 1, "iscrowd": int(n == 7)} for n in (5, 6, 7)]
        rows.append(
            {"image_id": image_id, "file_name": f"{image_id:012d}.png", "segments_info": infos}
        )
    notes = source / "annotations"
    notes.mkdir()
    categories = [{"id": 1, "name": "cup", "isthing": 1}]
    table = {"images": images, "annotations": rows, "categories": categories}
    (notes / "panoptic_train2017.json").write_text(json.dumps(table))
    captions = [{"id": n, "image_id": 2 - n // 2, "caption": f" caption {n}\n"} for n in range(4)]
    (notes / "captions_train2017.json").write_text(json.dumps({"annotations": captions}))
    return source


def run_module(module: str, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", f"data_prep.{module}", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_captions_are_kept_in_order(coco_folder, tmp_path):
    coco.convert(coco_folder, tmp_path / "out", "coco", ["train"], 1)
    records = read_all(tmp_path / "out", "coco:train")
    assert [record.caption for record in records] == [
        ["caption 2", "caption 3"],
        ["caption 0", "caption 1"],
        [],
    ]


def test_lvis_masks_replace_those_whose_boxes_agree(coco_folder, tmp_path):
    boxes = [
        (20, 2, 30, 12),  # the crowd: stays
        (21, 16, 38, 28),  # IoU 0.87 with segment 6
        (20.5, 14, 39, 28),  # IoU 0.87 too, but less
        (2, 2, 12, 9.1),  # IoU 0.71 with segment 5
        (2, 2, 12, 8.5),  # less than the other
    ]
    ious = box_iou(np.array([[20, 15, 38, 28], [2, 2, 12, 12.0]]), np.array(boxes, float))
    assert ious[0].argmax() == 1 and ious[1].argmax() == 3
    assert ious[1][3] > MIN_IOU > ious[1][4]
    rows = [
        {"id": i, "image_id": 1, "category_id": 9, "segmentation": [box_polygon(*box)]}
        for i, box in enumerate(boxes)
    ]
    lvis = tmp_path / "lvis" / "some_lvis_train.json"
    lvis.parent.mkdir()
    lvis.write_text(json.dumps({"annotations": rows}))
    done = run_module("lvis", "--input", coco_folder, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    first, second, _ = read_all(tmp_path / "out", "coco_lvis:train")
    pixels = decode_index_png(first.segment_map)
    polygons = coco_mask.frPyObjects([box_polygon(*boxes[n]) for n in (3, 1)], HEIGHT, WIDTH)
    masks = coco_mask.decode(polygons) > 0
    np.testing.assert_array_equal(pixels == 1, masks[..., 0])
    np.testing.assert_array_equal(pixels == 2, masks[..., 1])
    assert first.segment_category == [0, 0, 0] and first.segment_object == []
    unchanged = decode_index_png(second.segment_map)
    np.testing.assert_array_equal(pixels == 3, unchanged == 3)
    assert (unchanged[2:12, 2:12] == 1).all()


def test_an_lvis_mask_under_another_segment_is_kept_whole(coco_folder, tmp_path):
    path = coco_folder / "panoptic_train2017" / f"{1:012d}.png"
    ids = cv2.imread(str(path))
    ids[..., 2][ids[..., 2] == 7] = 0
    ids[6:9, 5:9, 2] = 7  # inside segment 5
    cv2.imwrite(str(path), ids)
    polygons = [box_polygon(2, 2, 12, 12)]
    rows = [{"id": 1, "image_id": 1, "category_id": 9, "segmentation": polygons}]
    lvis = tmp_path / "lvis.json"
    lvis.write_text(json.dumps({"annotations": rows}))
    coco.convert(coco_folder, tmp_path / "out", "coco_lvis", ["train"], 1, lvis=[lvis])
    record = read_all(tmp_path / "out", "coco_lvis:train")[0]
    pixels = decode_index_png(record.segment_map)
    assert (pixels[6:9, 5:9] == 3).all() and (pixels == 1).sum() == 100 - 12
    assert record.segment_object == [0, -1, -1]
    whole = coco_mask.decode({"size": [HEIGHT, WIDTH], "counts": record.object_rle[0]}) > 0
    assert whole.sum() == 100 and whole[2:12, 2:12].all()


def test_the_real_lvis_polygons_are_read():
    path = SAMPLES / "lvis" / "lvis_val_image_196141.json"
    if not path.is_file():
        pytest.skip("the sample files are not beside the checkout (../shared/samples)")
    rows = json.loads(path.read_text())["annotations"]
    read = read_lvis([path])
    assert {image: len(masks) for image, masks in read.items()} == {196141: 13}
    for row, mask in zip(rows, read[196141]):
        x, y, width, height = row["bbox"]
        np.testing.assert_allclose(mask.box, (x, y, x + width, y + height), atol=0.02)


@pytest.mark.parametrize("form", ["numbers", "text", "json", "coco"])
def test_excluded_images_stay_out(coco_folder, tmp_path, form):
    path = tmp_path / "ids"
    value = {
        "numbers": "1,3",
        "text": "1\n3\n",
        "json": "[1, 3]",
        "coco": '{"images": [{"id": 3}, {"id": 1}]}',
    }[form]
    if form != "numbers":
        path.write_text(value)
        value = str(path)
    assert coco.read_exclude(value) == {1, 3}
    done = run_module(
        "coco", "--input", coco_folder, "--output", tmp_path / "out", "--exclude", value
    )
    assert "2 images left out, because of --exclude" in done.stdout, done.stderr
    (record,) = read_all(tmp_path / "out", "coco_panoptic:train")
    assert record.image_id == 2


def test_validation_images_of_refcocog_stay_out_by_default(coco_folder, tmp_path):
    refer = tmp_path / "refer" / "refcocog"
    refer.mkdir(parents=True)
    refs = [
        {
            "ref_id": n,
            "ann_id": 10 + n,
            "image_id": n,
            "split": {1: "train", 2: "val", 3: "test"}[n],
            "sentences": [{"raw": f"The Cup {n}"}],
        }
        for n in (1, 2, 3)
    ]
    (refer / "refs(umd).p").write_bytes(pickle.dumps(refs, 2))
    rows = [
        {
            "id": 10 + n,
            "image_id": n,
            "category_id": 1,
            "segmentation": [box_polygon(2, 2, 12, 12)],
        }
        for n in (1, 2, 3)
    ]
    size = {"height": HEIGHT, "width": WIDTH}
    table = {
        "images": [{"id": n, **size} for n in (1, 2, 3)],
        "annotations": rows,
        "categories": [{"id": 1, "name": "cup"}],
    }
    (refer / "instances.json").write_text(json.dumps(table))
    done = run_module("coco", "--input", coco_folder, "--output", tmp_path / "out")
    assert "1 images left out" in done.stdout, done.stderr
    records = read_all(tmp_path / "out", "coco_panoptic:train")
    assert [record.image_id for record in records] == [1, 3]
    assert [record.phrase_text for record in records] == [["The Cup 1"], []]
    # The same folder is found by the other converter, with all its splits.
    done = run_module("refcoco", "--input", coco_folder, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    (record,) = read_all(tmp_path / "out", "refcocog:test")
    assert record.phrase_text == ["The Cup 3"]
    assert refcoco.find_refer(coco_folder, "refcoco+") is None


EXPECTED = {  # converter -> the file that its message names
    "coco": "annotations/panoptic_",
    "refcoco": "refcocog/refs(*).p",
    "lvis": "lvis/*lvis*.json",
    "voc": "ImageSets/Segmentation/",
    "sbd": "val.txt",
    "davis": "ImageSets/2017/",
    "custom": "is no folder",
}


@pytest.mark.parametrize("module", EXPECTED)
def test_a_wrong_folder_shows_the_layout_that_is_needed(tmp_path, module):
    done = run_module(module, "--input", tmp_path / "nowhere", "--output", tmp_path / "out")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    first, layout = done.stderr.split("\n", 1)
    assert "nowhere" in first and EXPECTED[module] in first
    assert "--input" in layout
    assert not os.path.exists(tmp_path / "out")
