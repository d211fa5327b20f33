"""Faults of pictures, texts, outlines and paths, named by the doctor and refused by the converters."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep import coco, doctor, refcoco
from data_prep.checks_coco import segmentation_problems
from seem_jax.config import DataConfig
from seem_jax.data import pipeline
from tests.pipeline_support import FakeTokenizer
from tests.test_converters import SAMPLES, needs_samples
from tests.test_converters_sets import box_polygon
from tests.test_doctor import (
    CONVERTED,
    check,
    copy,  # noqa: F401  a fixture
    edit,
    edit_refs,
    good,  # noqa: F401  a fixture
    image,
    name_of,
    png,
    second,
)

BOW_TIE = [2, 2, 20, 20, 20, 2, 2, 20]


def save_as(mode: str, kind: str, **options):
    """Plants the picture of image 3 in other colours or of another kind, under its name."""

    def plant(root: Path) -> None:
        picture = Image.open(image(root)).convert("RGB")
        if mode == "I;16":
            picture = Image.fromarray(np.asarray(picture)[..., 0].astype(np.uint16) * 256)
        else:
            picture = picture.convert(mode)
        picture.save(image(root), format=kind, **options)

    return plant


def damage_exif(root: Path) -> None:
    picture = Image.open(image(root))
    picture.save(
        image(root), exif=b"Exif\x00\x00" + b"MM\x00\x2a\x00\x00\x00\x08\xff\xff" + b"\x01" * 30
    )


def animate(root: Path) -> None:
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
    frames[0].save(image(root), format="GIF", save_all=True, append_images=frames[1:])


def link(root: Path) -> None:
    outside = root / "elsewhere.jpg"
    shutil.move(image(root), outside)
    image(root).symlink_to(outside)


def table_as(name: str, data: bytes):
    return lambda root: (root / "coco" / "annotations" / f"{name}_val2017.json").write_bytes(data)


def not_utf8(root: Path) -> None:
    path = root / "coco" / "annotations" / "captions_val2017.json"
    path.write_bytes(path.read_bytes().replace(b"caption 3", b"caf\xe9"))


PICTURE = ("000003.jpg", "image id 3", "image")
PLANTED = {  # name -> (plant, file, record, field)
    "cmyk": (save_as("CMYK", "JPEG"), *PICTURE),
    "16 bits": (save_as("I;16", "PNG"), *PICTURE),
    "palette": (save_as("P", "PNG"), *PICTURE),
    "rgba": (save_as("RGBA", "PNG"), *PICTURE),
    "gif": (animate, *PICTURE),
    "jpg named png": (lambda r: shutil.copy(image(r), png(r)), "000003.png", "image id 3", ""),
    "broken exif": (damage_exif, *PICTURE),
    "link out of the folder": (link, "000003.jpg", "image id 3", "file_name"),
    "name out of the folder": (
        edit("instances", lambda t: t["images"][2].update(file_name="../../x.jpg")),
        "instances_val2017.json",
        "image id 3",
        "file_name",
    ),
    "polygon that crosses itself": (
        edit("instances", lambda t: second(t).update(segmentation=[BOW_TIE])),
        "instances_val2017.json",
        "annotation id 20",
        "segmentation",
    ),
    "box of nan": (
        edit("instances", lambda t: second(t).update(bbox=[float("nan"), 2, 5, 5])),
        "instances_val2017.json",
        "annotation id 20",
        "bbox",
    ),
    "box outside": (
        edit("instances", lambda t: second(t).update(bbox=[38, 2, 10, 5])),
        "instances_val2017.json",
        "annotation id 20",
        "bbox",
    ),
    "empty mask": (
        edit("instances", lambda t: t["annotations"][3]["segmentation"].update(counts=[1200])),
        "instances_val2017.json",
        "annotation id 21",
        "segmentation",
    ),
    "crowd of another kind": (
        edit("instances", lambda t: second(t).update(iscrowd=2)),
        "instances_val2017.json",
        "annotation id 20",
        "iscrowd",
    ),
    "html instead of json": (table_as("captions", b"<!DOCTYPE html>"), "captions_val2017.json", "", ""),
    "json that is no utf-8": (not_utf8, "captions_val2017.json", "", ""),
    "caption of 10,000 letters": (
        edit("captions", lambda t: t["annotations"][2].update(caption="a " * 5000)),
        "captions_val2017.json",
        "annotation id 3",
        "caption",
    ),
    "sentence of 10,000 letters": (
        edit_refs(lambda refs: refs[2]["sentences"][1].update(raw="a " * 5000)),
        "refs(umd).p",
        "ref_id 3, sentence 1",
        "raw",
    ),
    "sentence in a wrong encoding": (
        edit_refs(lambda refs: refs[2]["sentences"][1].update(raw="caf\ufffd")),
        "refs(umd).p",
        "ref_id 3, sentence 1",
        "raw",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_a_fault_is_named(copy, name):  # noqa: F811
    plant, *place = PLANTED[name]
    plant(copy)
    check(doctor.examine(copy / "coco"), *place)


def test_slight_crossings_are_no_fault():
    drawn_by_hand = [2, 2, 20, 2, 20, 20, 19.5, 20.5, 20.5, 20.4, 2, 20]
    assert not list(segmentation_problems([drawn_by_hand, box_polygon(0, 0, 1, 1)], (30, 40)))
    (problem,) = segmentation_problems([BOW_TIE], (30, 40))
    assert "polygon 0 crosses itself" in problem


@needs_samples
def test_the_real_samples_have_no_fault_but_images_that_other_files_leave_out():
    faults = doctor.examine(SAMPLES / "coco")
    # Two of the four images have no panoptic annotation, and one file lists thing classes only.
    assert not [
        fault for fault in faults if fault.field in ("segmentation", "bbox", "image", "raw")
    ]


@pytest.mark.parametrize("name", ["../../x.jpg", "/etc/passwd", "a\0.jpg", ""])
def test_names_out_of_the_folder_are_not_read(copy, name):  # noqa: F811
    edit("panoptic", lambda t: t["images"][2].update(file_name=name))(copy)
    with pytest.raises(ValueError, match=r"image id 3: file_name .* leads out of"):
        coco.convert(copy / "coco", copy / "out", "coco", ["val"], 1)


def test_merged_sentences_are_checked_as_those_of_refer(copy):  # noqa: F811
    annotations = copy / "coco" / "annotations"
    objects = json.loads((annotations / "instances_val2017.json").read_text())
    refs = refcoco.read_refs(copy / "coco" / "refcocog", "umd")
    rows = [
        row | {"ref_id": ref.ref_id, "ann_id": ref.ann_id, "split": "val"}
        | {"sentences": [{"raw": text} for text in ref.sentences]}
        for ref in refs
        for row in objects["annotations"]
        if row["id"] == ref.ann_id
    ]  # fmt: skip
    path = annotations / "refcocog_umd_val.json"
    path.write_text(json.dumps({"images": objects["images"], "annotations": rows}))
    assert doctor.examine(copy / "coco") == []
    rows[1]["sentences"][0]["raw"] = " "
    rows[2]["bbox"] = [0, 0, 0, 0]
    del rows[3]["split"]
    path.write_text(json.dumps({"images": objects["images"], "annotations": rows}))
    found = {(fault.record, fault.field) for fault in doctor.examine(copy / "coco")}
    assert found == {
        ("ref_id 2, sentence 0", "raw"),
        ("annotation id 30", "bbox"),
        ("annotation id 40", ""),
    }


HARMLESS = {  # faults of converted sets that training does not notice, and why
    "index missing": "it is made again from the shard",
    "index of another shard": "it is made again from the shard",
    "left over file": "nobody reads it",
    "segment without pixels": "it cannot be asked for, as one that a cut leaves out",
    "image twice": "it is read twice an epoch; no record by itself is wrong",
}


@pytest.mark.parametrize("name", CONVERTED)
def test_a_fault_of_a_converted_set_ends_training_by_name(copy, name):  # noqa: F811
    plant, file, record, _ = CONVERTED[name]
    plant(copy)
    config = DataConfig(
        root=str(copy / "records"),
        train=("coco:val",),
        image_size=64,
        min_scale=1.0,
        max_scale=1.0,
        batch_size=6,
        max_phrase_tokens=8,
        num_threads=0,
    )

    def epoch():
        batches = pipeline.train_batches(config, FakeTokenizer(), templates=("{}",))
        next(batches)
        batches.close()

    if name in HARMLESS:
        epoch()
        return
    with pytest.raises(ValueError) as error:
        epoch()
    text = str(error.value)
    record = {"shard 1": "missing: [1]"}.get(record, record)
    assert record in text and ("1.0.0" in text or name_of(4) in text), text
