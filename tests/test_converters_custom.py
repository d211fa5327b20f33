"""One toy set written in each of the five formats: the converter reads the same masks from all."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from data_prep import custom
from seem_jax.config import DataConfig
from seem_jax.data import collate
from seem_jax.data.catalog import open_split
from seem_jax.image import decode_index_png

HEIGHT, WIDTH = 40, 60
NAMES = ["bolt", "nut"]
BOXES = {  # image -> (class, (x0, y0, x1, y1)) of each object; none overlap
    "a": [(0, (4, 4, 20, 30)), (1, (30, 10, 50, 36))],
    "b": [(1, (0, 0, 12, 12)), (1, (20, 20, 59, 39)), (0, (40, 2, 58, 9))],
    "c": [(0, (10, 10, 40, 30))],
}
SPLIT = {"a": "train", "b": "train", "c": "val"}


def polygon(box) -> list[float]:
    x0, y0, x1, y1 = (float(value) for value in box)
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def mask_of(box) -> np.ndarray:
    return coco_mask.decode(coco_mask.frPyObjects([polygon(box)], HEIGHT, WIDTH))[..., 0] > 0


def write_picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    cv2.imwrite(str(path), pixels)


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_coco(root: Path) -> None:
    for split in ("train", "val"):
        names = [name for name in BOXES if SPLIT[name] == split]
        images, rows = [], []
        for number, name in enumerate(names):
            write_picture(root / split / f"{name}.jpg", number)
            size = {"height": HEIGHT, "width": WIDTH}
            images.append({"id": number + 7, "file_name": f"{name}.jpg", **size})
            rows += [
                {
                    "id": len(rows) + place,
                    "image_id": number + 7,
                    "category_id": 10 * (label + 1),
                    "segmentation": [polygon(box)],
                }
                for place, (label, box) in enumerate(BOXES[name])
            ]
        categories = [{"id": 10 * (i + 1), "name": name} for i, name in enumerate(NAMES)]
        table = {"images": images, "annotations": rows, "categories": categories}
        write_text(root / "annotations" / f"instances_{split}.json", json.dumps(table))


def write_panoptic(root: Path) -> None:
    for split in ("train", "val"):
        names = [name for name in BOXES if SPLIT[name] == split]
        images, rows = [], []
        for number, name in enumerate(names):
            write_picture(root / split / f"{name}.jpg", number)
            images.append(
                {"id": number, "file_name": f"{name}.jpg", "height": HEIGHT, "width": WIDTH}
            )
            ids = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
            infos = []
            for place, (label, box) in enumerate(BOXES[name], start=1):
                ids[mask_of(box)] = (0, place, place)  # BGR: id = place + 256 place
                infos.append({"id": 257 * place, "category_id": label + 1, "iscrowd": 0})
            path = root / f"panoptic_{split}" / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), ids)
            rows.append({"image_id": number, "file_name": path.name, "segments_info": infos})
        categories = [{"id": i + 1, "name": name, "isthing": 1} for i, name in enumerate(NAMES)]
        table = {"images": images, "annotations": rows, "categories": categories}
        write_text(root / "annotations" / f"panoptic_{split}.json", json.dumps(table))


def write_masks(root: Path) -> None:
    for number, name in enumerate(BOXES):
        write_picture(root / "images" / SPLIT[name] / f"{name}.jpg", number)
        labels = np.zeros((HEIGHT, WIDTH), np.uint8)
        for label, box in BOXES[name]:
            labels[mask_of(box)] = label + 1
        path = root / "masks" / SPLIT[name] / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), labels)
    write_text(root / "classes.txt", "\n".join(["background", *NAMES]))


def write_yolo(root: Path) -> None:
    for number, name in enumerate(BOXES):
        write_picture(root / SPLIT[name] / "images" / f"{name}.jpg", number)
        lines = []
        for label, box in BOXES[name]:
            numbers = np.array(polygon(box)) / np.tile([WIDTH, HEIGHT], 4)
            lines.append(" ".join([str(label), *(f"{value:.8f}" for value in numbers)]))
        write_text(root / SPLIT[name] / "labels" / f"{name}.txt", "\n".join(lines) + "\n")
    write_text(root / "data.yaml", f"nc: 2\nnames: {json.dumps(NAMES)}\n")


def write_labelme(root: Path) -> None:
    for number, name in enumerate(BOXES):
        write_picture(root / SPLIT[name] / f"{name}.jpg", number)
        shapes = [
            {
                "label": NAMES[label],
                "points": np.reshape(polygon(box), (-1, 2)).tolist(),
                "shape_type": "polygon",
                "group_id": None,
            }
            for label, box in BOXES[name]
        ]
        table = {
            "shapes": shapes,
            "imagePath": f"{name}.jpg",
            "imageHeight": HEIGHT,
            "imageWidth": WIDTH,
            "imageData": None,
        }
        write_text(root / SPLIT[name] / f"{name}.json", json.dumps(table))


WRITERS = {
    "coco": write_coco,
    "panoptic": write_panoptic,
    "masks": write_masks,
    "yolo": write_yolo,
    "labelme": write_labelme,
}


def read_all(root: Path, split: str) -> tuple[list, list]:
    opened = open_split(root, f"custom:{split}")
    return [opened[number] for number in range(len(opened))], opened.class_names


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_gives_the_same_segments(tmp_path, kind):
    WRITERS[kind](tmp_path / "mine")
    custom.convert(tmp_path / "mine", tmp_path / "out", "custom", things=NAMES * (kind == "masks"))
    for split in ("train", "val"):
        records, names = read_all(tmp_path / "out", split)
        assert names == NAMES
        want = [name for name in BOXES if SPLIT[name] == split]
        assert [Path(record.file_name).stem for record in records] == want
        for record in records:
            pixels = decode_index_png(record.segment_map)
            boxes = BOXES[Path(record.file_name).stem]
            expected = sorted((label, mask_of(box).tobytes()) for label, box in boxes)
            got = [
                (category, (pixels == number + 1).tobytes())
                for number, category in enumerate(record.segment_category)
            ]
            assert sorted(got) == expected
            assert record.segment_object == []


def test_a_set_without_splits_is_divided_by_file_name(tmp_path):
    for number in range(20):
        write_picture(tmp_path / "mine" / "images" / f"{number}.jpg", number)
        write_text(tmp_path / "mine" / "labels" / f"{number}.txt", "0 .1 .1 .9 .1 .9 .9\n")
    write_text(tmp_path / "mine" / "classes.txt", "bolt\n")
    custom.convert(tmp_path / "mine", tmp_path / "out", "custom", val_share=0.25)
    held, _ = read_all(tmp_path / "out", "val")
    trained, _ = read_all(tmp_path / "out", "train")
    assert len(held) == 5
    assert {record.file_name for record in held + trained} == {f"{n}.jpg" for n in range(20)}


def test_overlapping_instances_keep_their_whole_masks(tmp_path):
    root = tmp_path / "mine"
    write_picture(root / "a.jpg", 0)
    boxes = [(0, 0, 30, 30), (10, 10, 50, 38), (12, 12, 20, 20)]
    rows = [
        {"id": i, "image_id": 1, "category_id": 3, "segmentation": [polygon(box)]}
        for i, box in enumerate(boxes)
    ]
    table = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": HEIGHT, "width": WIDTH}],
        "annotations": rows,
        "categories": [{"id": 3, "name": "bolt"}],
    }
    write_text(root / "set.json", json.dumps(table))
    custom.convert(root, tmp_path / "out", "custom", val_share=0)
    (record,), _ = read_all(tmp_path / "out", "train")
    assert record.segment_object == [0, 1, -1]  # the smallest lies on top

    class NoWords:
        def encode(self, texts, length):
            return np.zeros((len(texts), length), np.int32), np.zeros((len(texts), length), bool)

    def example_of(**options):
        whole = {"image_size": 64, "min_scale": 1.0, "max_scale": 1.0, "flip": False}
        config = DataConfig(max_objects=5, num_planes=2, **whole, **options)
        rng = np.random.default_rng(0)
        return collate.training_example(record, 0, ["bolt"], ["{}"], config, NoWords(), rng)

    example, dropped = example_of(max_phrases=3, max_texts=2)
    assert dropped["overlaps"] == dropped["objects"] == 0
    shown = [mask_of(box) for box in boxes]
    order = np.argsort([-mask.sum() for mask in shown], kind="stable")
    masks = example.objects.masks
    for place, number in enumerate(order):
        plane = example.planes[masks.plane[place]]
        got = (plane & masks.select[place]) == masks.value[place]
        want = cv2.resize(shown[number].astype(np.uint8), (64, 43), interpolation=cv2.INTER_NEAREST)
        # Nearest pixels at another rounding: all but some at the borders agree.
        assert (got[:43] != want.astype(bool)).mean() < 0.03
        assert not got[43:].any()
    # No plane is left for whole masks: what is covered is lost, and counted.
    _, dropped = example_of(max_phrases=8, max_texts=8)
    assert dropped["overlaps"] == 2


BAD = {
    "yolo": [
        ("train/labels/a.txt", "0 .1 .1 .2 .2\n", r"a\.txt, line 1: 4 numbers .* a box"),
        ("train/labels/a.txt", "5 .1 .1 .9 .1 .9 .9\n", r"class 5, but there are 2 names"),
        ("train/labels/a.txt", "0 .1 .1 9 .1 .9 .9\n", r"shares from 0 to 1"),
        ("train/labels/a.txt", "x .1 .1 .9 .1 .9 .9\n", r"line 1: class x, but"),
        ("train/labels/zz.txt", "", r"zz.*have no image"),
        ("data.yaml", "nc: 2\n", r"data\.yaml: expected 'names'"),
    ],
    "labelme": [
        ("train/a.json", "{", r"a\.json is no JSON"),
        ("train/a.json", '{"shapes": [{"label": "x"}], "imagePath": "a.jpg"}', r"shape 0: field"),
        (
            "train/a.json",
            '{"shapes": [{"label": "x", "points": [[1, 1]], "shape_type": "point"}],'
            ' "imagePath": "a.jpg"}',
            r"shape_type 'point' has no area",
        ),
        ("labels.txt", "bolt\n", r"label 'nut' is not in labels\.txt"),
    ],
    "masks": [
        ("classes.txt", "background\nbolt\n", r"pixel values \[2\]"),
        ("masks/train/zz.png", "", r"zz.*have no image"),
        ("masks/train/a.png", "no picture", r"a\.png is missing or no readable PNG"),
    ],
    "coco": [
        ("train/a.jpg", "no picture", r"a\.jpg .* is no readable image"),
        ("annotations/instances_train.json", '{"images": []}', r"expected a list under"),
    ],
}


@pytest.mark.parametrize(
    ("kind", "name", "text", "message"),
    [(kind, *case) for kind, cases in BAD.items() for case in cases],
)
def test_a_fault_is_refused_by_name(tmp_path, kind, name, text, message):
    WRITERS[kind](tmp_path / "mine")
    write_text(tmp_path / "mine" / name, text)
    with pytest.raises(ValueError, match=message):
        custom.convert(tmp_path / "mine", tmp_path / "out", "custom", kind=kind, things=[])


def test_a_turned_photograph_is_refused_by_name(tmp_path):
    write_yolo(tmp_path / "mine")
    path = tmp_path / "mine" / "train" / "images" / "a.jpg"
    picture = Image.open(path)
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(path, exif=exif)
    with pytest.raises(ValueError, match=r"a\.jpg has the EXIF orientation 6"):
        custom.convert(tmp_path / "mine", tmp_path / "out", "custom")


def test_an_unknown_folder_shows_the_formats(tmp_path):
    with pytest.raises(ValueError, match="no data set of the format"):
        custom.convert(tmp_path, tmp_path / "out", "custom")
    with pytest.raises(ValueError, match="is no folder"):
        custom.convert(tmp_path / "nowhere", tmp_path / "out", "custom")
