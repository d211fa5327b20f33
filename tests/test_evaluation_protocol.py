"""Both sides of each choice that evaluations make differently: sizes, filters, masks, first drawings."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
from pathlib import Path

import cv2
import jax.numpy as jnp
import numpy as np
import pycocotools.coco
import pytest
from PIL import Image

from configs import focalt, samvitb, shapes
from data_prep import coco, davis, refcoco, voc
from seem_jax.config_checks import validate
from seem_jax.data import catalog, strokes
from seem_jax.evaluation import drawings, evaluator, objects, results, sessions
from seem_jax.evaluation.instance_ap import read_annotations
from seem_jax.evaluation.reader import Sizing, group, read
from seem_jax.evaluation.tasks import base
from seem_jax.evaluation.tasks.base import Context
from seem_jax.evaluation.tasks.clicks import Interactive
from seem_jax.image import decode_image
from tests.evaluation_support import FakeSplit, FakeTokenizer, Oracle, only, record, untrained
from tests.fakes import tiny_config
from tests.test_converters_sets import SAMPLES, labels, needs_samples, voc_folder

__all__ = ["voc_folder"]  # a fixture

COCO = Sizing(0, 32, (800, 1333))
CLICKS = dataclasses.replace(COCO, bicubic=True)


# Sizes


def detectron2_size(height: int, width: int, shortest: int, longest: int) -> tuple[int, int]:
    """ResizeShortestEdge.get_output_shape, written out."""
    scale = shortest / min(height, width)
    tall, wide = (shortest, scale * width) if height < width else (scale * height, shortest)
    if max(tall, wide) > longest:
        tall, wide = (n * longest / max(tall, wide) for n in (tall, wide))
    return int(tall + 0.5), int(wide + 0.5)


def torchvision_size(height: int, width: int, shortest: int, longest: int) -> tuple[int, int]:
    """transforms.Resize(shortest, max_size=longest), written out."""
    short, long = (width, height) if width <= height else (height, width)
    small, large = shortest, int(shortest * long / short)
    if large > longest:
        small, large = int(longest * small / large), longest
    return (large, small) if width <= height else (small, large)


@pytest.mark.parametrize("edges", [(800, 1333), (512, 1024), (1000, 1024)])
def test_sizes_are_those_of_the_official_transforms(edges):
    rng = np.random.default_rng(0)
    originals = [(375, 500), (500, 375), (480, 640), (427, 640), (333, 500), (640, 640), (100, 640)]
    originals += [tuple(pair) for pair in rng.integers(60, 900, (300, 2)).tolist()]
    plain, clicks = (Sizing(0, 32, edges, bicubic) for bicubic in (False, True))
    for original in originals:
        assert plain.resized(original) == detectron2_size(*original, *edges)
        assert clicks.resized(original) == torchvision_size(*original, *edges)
        canvas = np.array(plain.canvas(original))
        assert (canvas % 32 == 0).all()
        assert ((canvas - plain.resized(original)) < 32).all()
    # One pixel of difference, as the two transforms round: VOC's usual size.
    assert COCO.resized((375, 500)) == (800, 1067)
    assert CLICKS.resized((375, 500)) == (800, 1066)


def test_configurations_have_the_official_sizes():
    for config, edges, referring, canvas in (
        (focalt.get_config(), (800, 1333), (512, 1024), (800, 1088)),
        (samvitb.get_config(), (1000, 1024), (1000, 1024), (1024, 1024)),
    ):
        validate(config)
        evaluation, divisor = config.evaluation, config.model.backbone.size_divisor
        assert (evaluation.edges, evaluation.referring_edges) == (edges, referring)
        assert Sizing(0, divisor, edges).canvas((480, 640)) == canvas
    assert shapes.get_config().evaluation.edges == ()
    config = focalt.get_config()
    config.evaluation.edges = (800,)
    with pytest.raises(ValueError, match=r"evaluation\.edges = \(800,\): expected \(\) or"):
        validate(config)


@pytest.mark.parametrize(("bicubic", "kind"), [(False, "BILINEAR"), (True, "BICUBIC")])
def test_images_are_resized_by_pillow_and_padded_on_the_right_and_below(bicubic, kind):
    image = np.random.default_rng(1).integers(0, 256, (45, 61, 3), dtype=np.uint8)
    sizing = Sizing(0, 32, (30, 100), bicubic)
    height, width = sizing.resized((45, 61))
    placed = sizing.place(image)
    assert placed.shape[:2] == sizing.canvas((45, 61)) == (32, 64)
    want = Image.fromarray(image).resize((width, height), Image.Resampling[kind])
    np.testing.assert_array_equal(placed[:height, :width], np.asarray(want))
    assert not placed[height:].any()
    assert not placed[:, width:].any()


def test_padding_is_zero_after_normalisation_or_the_grey_of_training():
    class Model:
        """Keeps the pixels that it is given, normalised as SEEM does."""

        def apply(self, variables, images, method):
            config = tiny_config().model
            return (np.asarray(images) - config.pixel_mean) / np.array(config.pixel_std)

    images, sizes = np.full((2, 32, 64, 3), 200, np.uint8), np.array([[20, 64], [32, 33]], np.int32)
    for sizing, value in ((COCO, 0.0), (Sizing(64, 32), (128 - 123.675) / 58.395)):
        pad = sizing.pad_colour(tiny_config().model.pixel_mean)
        got = np.asarray(base.encode_image(Model(), {}, images, sizes, pad=pad))[..., 0]
        inside = (200 - 123.675) / 58.395
        rounding = 1e-6  # the mean is not a float32, so a pixel filled with it is not quite 0
        assert np.allclose(got[0, :20], inside, atol=rounding)
        assert np.allclose(got[0, 20:], value, atol=rounding)
        assert np.allclose(got[1, :, :33], inside, atol=rounding)
        assert np.allclose(got[1, :, 33:], value, atol=rounding)


def test_batches_hold_images_of_one_canvas_and_every_image_once():
    sizes = [(64, 64), (32, 64), (64, 48), (64, 64), (30, 61), (64, 64)]
    split = FakeSplit([record(k, *size, 8) for k, size in enumerate(sizes)])
    split.records[0].phrase_text = [text.upper() for text in split[0].phrase_text]
    sizing = Sizing(0, 32, (32, 64))
    units = group(split, range(6), sizing, 2)
    assert units == [[0, 3], [5], [1, 4], [2]]
    batches = list(read(split, units, sizing, FakeTokenizer(), tiny_config().data, 2))
    assert [batch.samples for batch in batches] == units
    assert [batch.canvas for batch in batches] == [(32, 32), (32, 32), (32, 64), (64, 32)]
    assert batches[1].image_size.tolist() == [[32, 32], [0, 0]]  # a row that fills up
    assert not batches[1].token_valid[1].any()
    words = batches[0].token_ids[0, :, 1]
    want, _ = FakeTokenizer().encode(split[3].phrase_text, 4)  # the same in lower case
    assert words[: len(want)].tolist() == want[:, 1].tolist()


def test_unreadable_records_are_named():
    split = FakeSplit([record(0, 64, 64, 8), record(1, 32, 64, 8)])
    config = tiny_config().data
    with pytest.raises(ValueError, match=r"shapes_fake:val, record 1 \(1\.png\).*one size"):
        list(read(split, [[0, 1]], COCO, FakeTokenizer(), config, 2))
    split.records[0].height = 60
    with pytest.raises(
        ValueError, match=r"shapes_fake:val, record 0 \(0\.png\): the image is \(64, 64\)"
    ):
        list(read(split, [[0]], COCO, FakeTokenizer(), config, 1))
    split.records[1].segment_category[0] = 4
    with pytest.raises(ValueError, match=r"record 1 \(1\.png\): .*classes \[4\]; .* has 4"):
        list(read(split, [[1]], COCO, FakeTokenizer(), config, 1))
    split.records[0].image = b"nothing"
    with pytest.raises(ValueError, match=r"shapes_fake:val, record 0 \(0\.png\).*not an image"):
        list(read(split, [[0]], COCO, FakeTokenizer(), config, 1))


# Objects at model size


def test_grown_masks_are_fatter_by_overshoot_and_nearest_ones_are_not():
    mask = np.zeros((60, 80), bool)
    mask[20:40, 30:50] = True
    nearest, grown = CLICKS.place_map(mask), CLICKS.place_grown(mask)
    height, width = CLICKS.resized(mask.shape)
    cubic = cv2.resize(mask.astype(float), (width, height), interpolation=cv2.INTER_CUBIC)
    np.testing.assert_array_equal(grown[:height, :width], cubic.astype(bool))
    assert not (nearest & ~grown).any()
    assert nearest.sum() == pytest.approx(mask.mean() * height * width, rel=0.01)
    assert 1.1 * nearest.sum() < grown.sum() < 1.6 * nearest.sum()


def test_grey_values_are_those_of_opencv_and_four_pairs_merge():
    index = np.arange(256, dtype=np.uint8)
    bits = [[(index >> (3 * place + c) & 1) << (7 - place) for place in range(3)] for c in range(3)]
    colours = np.stack([np.sum(channel, 0) for channel in bits], -1).astype(np.uint8)[None]
    grey = cv2.cvtColor(colours[..., ::-1].copy(), cv2.COLOR_BGR2GRAY)[0]
    assert [objects.grey_value(i) for i in range(256)] == grey.tolist()
    assert objects.grey_value(255) == 220  # the official ignored value
    for pair in ((1, 16), (3, 18), (6, 21), (9, 24)):
        assert len({objects.grey_value(i) for i in pair}) == 1


def test_grey_ids_merge_objects_of_voc_and_are_named_in_the_result(voc_folder, tmp_path):
    voc.convert(voc_folder, tmp_path / "out", "voc", ["val"], 1)
    split = catalog.open_split(tmp_path / "out", "voc:val")
    options = {"num_things": 20, "sizing": Sizing(64, 32), "grown": False}
    apart = objects.clickable(split[0], **options, grey=False)
    assert [thing.mask.sum() for thing in apart] == [(labels() == n).sum() for n in (1, 16)]
    (merged,) = objects.clickable(split[0], **options, grey=True)
    np.testing.assert_array_equal(merged.mask, (labels() == 1) | (labels() == 16))
    split[0].segment_id[0] = 300
    other = dataclasses.replace(split[0], segment_id=[300, 16])
    with pytest.raises(ValueError, match="segment 1 has the id 300, no palette index"):
        objects.clickable(other, **options, grey=True)


# First drawings


def test_strokes_begin_at_the_deepest_pixel_and_stay_on_the_object():
    mask = np.zeros((200, 240), bool)
    mask[60:160, 40:200] = True
    deepest, covered = (120, 110), []
    for kind in ("circle", "scribble"):
        for seed in range(40):
            pixels = drawings.draw(kind, mask, deepest, np.random.default_rng(seed))
            assert mask[pixels[:, 1], pixels[:, 0]].all()
            near = np.abs(pixels - deepest).max(1).min() if len(pixels) else 0
            assert near < 30  # shaken, but not away
            covered.append(len(pixels))
    several = [len(strokes.draw("circle", mask, np.random.default_rng(k))) for k in range(40)]
    assert 0 < np.mean(covered[:40]) < 0.6 * np.mean(several)  # one stroke instead of 1 to 5
    assert np.mean(covered[40:]) < np.mean(covered[:40])  # scribbles are thin


def test_the_polygon_lies_in_the_box_but_where_shares_of_the_image_say():
    mask = np.zeros((100, 100), bool)
    mask[70:90, 60:80] = True  # rows 70 to 90 of 100 become the lower part of the box
    drawn = [drawings.draw("polygon", mask, (0, 0), np.random.default_rng(k)) for k in range(50)]
    columns, rows = np.concatenate(drawn).T
    assert 60 <= columns.min() <= columns.max() < 80
    assert 70 <= rows.min() <= rows.max() < 90
    assert np.mean(rows) == pytest.approx(70 + 0.8 * 19, abs=1.5)  # not the middle of the object
    assert np.mean(columns) == pytest.approx(60 + 0.7 * 19, abs=1.5)


def protocol_of(monkeypatch, kind: str, by_ritm: bool = False, **options) -> dict:
    monkeypatch.setattr(base.catalog, "open_split", lambda root, name: FakeSplit([]))
    monkeypatch.setattr(base, "Tokenizer", FakeTokenizer)
    config = only(tiny_config(), "interactive", **options)
    task = Interactive(Context(Oracle(), config), "fake:val", kind, by_ritm)
    return evaluator.header_of(task, config, "", 0)


def test_each_choice_changes_the_protocol_and_its_hash(monkeypatch):
    seen = [protocol_of(monkeypatch, kind) for kind in ("point", "box", "circle", "polygon")]
    for kind, options in (
        ("point", {"grown_masks": True}),
        ("point", {"objects_together": 1}),
        ("point", {"voc_grey_ids": True}),
        ("point", {"edges": (800, 1333)}),
        ("point", {"ritm": True}),
        ("box", {"box_is_object": False}),
        ("circle", {"training_strokes": True}),
        ("polygon", {"training_strokes": True}),
    ):
        seen.append(protocol_of(monkeypatch, kind, **options))
    seen.append(protocol_of(monkeypatch, "point", by_ritm=True))
    hashes = [header["protocol_hash"] for header in seen]
    again = hashes.pop(8)  # whether RITM's protocol is measured too changes nothing in this one
    assert again == hashes[0]
    assert len(set(hashes)) == len(hashes)


def test_a_box_stands_for_its_object_only_where_asked():
    masks = np.zeros((1, 1, 32, 32), bool)
    masks[0, 0, 4:28, 4:8] = masks[0, 0, 24:28, 4:28] = True  # an L
    rows = sessions.Rows(masks, None, np.ones((1, 1), bool), None, None, None, None)
    perfect = jnp.where(masks, 1.0, -1.0)
    for only_first, more in ((False, True), (True, False)):
        user = sessions.SeemUser(boxes=True, only_first=only_first)
        points, _, _, marks = user.first(rows)
        assert not masks[0, 0][
            tuple(int(n) for n in points[0, 0, 4, ::-1] * 32)
        ]  # middle of the box
        _, positive, valid, _ = user.next(rows, perfect, None, marks)
        assert bool(valid.any() & positive.all()) == more  # what is missing of the box


# Converted real files


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> Path:
    """The samples as records: two panoptic images, sentences on three, one drawn VOC and DAVIS."""
    root = tmp_path_factory.mktemp("converted")
    refer, drawn = SAMPLES / "refer_ours" / "refcocog", SAMPLES / "layouts_synthetic"
    coco.convert(SAMPLES / "coco", root, "coco_panoptic", ["val"], 1)
    refcoco.convert(SAMPLES / "coco", refer, "umd", root, "refcocog", ["val", "train"], 1)
    voc.convert(drawn / "PascalVOC", root, "voc", ["val"], 1)
    davis.convert(drawn / "DAVIS2017", root, "davis", ["val"], 1)
    return root


@needs_samples
@pytest.mark.parametrize(
    ("tasks", "part"),
    [(("semantic",), 10), pytest.param(evaluator.TASKS, 1, marks=pytest.mark.slow)],
)
def test_real_files_are_evaluated_at_the_official_sizes(
    converted, tmp_path, monkeypatch, tasks, part
):
    """With a tiny model; the default run has one task at a tenth of the size."""
    monkeypatch.setattr(base, "Tokenizer", FakeRealTokenizer)
    official, config = focalt.get_config().evaluation, tiny_config()
    fields = ("edges", "referring_edges", "video_edges")
    sizes = {f: tuple(n // part for n in getattr(official, f)) for f in fields}
    config = only(
        config,
        *tasks,
        **sizes,
        batch_size=1,
        max_images=0,
        grown_masks=True,
        num_pictures=0,
        instance_annotations=str(SAMPLES / "coco/annotations/instances_val2017.json"),
    )
    config.data.root = str(converted)
    for field, split in (("panoptic", "coco_panoptic"), ("referring", "refcocog")):
        setattr(config.data, f"{field}_eval", f"{split}:val")
    config.data.interactive_eval, config.data.video_eval = "voc:val", "davis:val"
    config.data.referring_unseen_eval = ""
    model, params = untrained(config)
    got = evaluator.run(model, params, config, workdir=tmp_path)
    if part == 1:
        things = [len(r.segment_id) for r in records_of(converted, "voc:val")]
        assert got["interactive/click/objects"] == sum(things)
        assert got["video/objects"] == 3
        for key in ("panoptic/pq", "instance/ap", "referring/text/ciou", "video/j&f"):
            assert math.isfinite(got[key])
    assert math.isfinite(got["semantic/miou"])
    header, stored = results.read(tmp_path / "samples" / "semantic.jsonl")
    assert header["protocol"]["image"].startswith(f"shortest edge {sizes['edges'][0]}, longest")
    for result, one in zip(stored, records_of(converted, "coco_panoptic:val"), strict=True):
        png = f"panoptic_semseg_val2017/{Path(one.file_name).stem}.png"
        owner = np.asarray(Image.open(SAMPLES / "coco" / png))
        true = np.zeros(134, int)
        for _, category, pixels in result["confusion"]:
            true[category] += pixels
        assert true[:133].tolist() == np.bincount(owner[owner < 255], minlength=133).tolist()


class FakeRealTokenizer(FakeTokenizer):
    """Numbers for any words."""

    def encode(self, texts, length: int):
        ids = np.zeros((len(texts), length), np.int32)
        for row, text in enumerate(texts):
            words = [3 + sum(map(ord, word)) % 60 for word in text.split()][:length]
            ids[row, : len(words)] = words
        return ids, ids > 0


def records_of(root: Path, spec: str) -> list:
    split = catalog.open_split(root, spec)
    return [split[number] for number in range(len(split))]


@needs_samples
def test_annotations_of_a_coco_file_are_those_of_pycocotools():
    path = SAMPLES / "coco/annotations/instances_val2017.json"
    known = owners_file(path)
    found = read_annotations(path)
    assert sum(map(len, found.values())) == len(known.anns)
    for image, rows in found.items():
        want = [known.anns[number] for number in known.getAnnIds([image])]
        assert [row["rle"] for row in rows] == [known.annToRLE(a)["counts"].decode() for a in want]
        assert [row["area"] for row in rows] == [a["area"] for a in want]


def owners_file(path: Path) -> pycocotools.coco.COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return pycocotools.coco.COCO(str(path))


def test_annotations_that_do_not_fit_are_named(tmp_path, monkeypatch):
    path = tmp_path / "none.json"
    path.write_text('{"images": [{"id": 5, "height": 4, "width": 4}], "annotations": []}')
    split = FakeSplit([record(0, 64, 64, 8)])
    monkeypatch.setattr(base.catalog, "open_split", lambda root, name: split)
    monkeypatch.setattr(base, "Tokenizer", FakeTokenizer)
    config = only(tiny_config(), "instance", instance_annotations=str(path))
    params = {"logit_scale": jnp.float32(4.0), "text": {}, "text_projection": {}}
    with pytest.raises(ValueError, match=r"none\.json has no image 0 \(0\.png\)"):
        evaluator.run(Oracle(), params, config, workdir=tmp_path)
    path.write_text('{"images": [], "annotations": [{"id": 8, "image_id": 3}]}')
    with pytest.raises(ValueError, match=r"none\.json, annotation 8"):
        read_annotations(path)
    image = {"id": 3, "height": 4, "width": 4}
    mask = {"id": 8, "image_id": 3, "category_id": 1, "area": 20}
    for size, code, given in ([4, 5], "d0", r"\(4, 5\)"), ([4, 4], "d0", "covers 20 pixels"):
        row = mask | {"segmentation": {"size": size, "counts": code}}
        path.write_text(json.dumps({"images": [image], "annotations": [row]}))
        with pytest.raises(ValueError, match=rf"none\.json, annotation 8.*{given}.*image 3 is"):
            read_annotations(path)
    for twice in ({"images": [image] * 2}, {"annotations": [mask] * 2}):
        path.write_text(json.dumps({"images": [image], "annotations": []} | twice))
        with pytest.raises(ValueError, match=r"none\.json: ids \[\d\] occur more than once"):
            read_annotations(path)
    path.write_text('{"images": []}')
    with pytest.raises(ValueError, match=r"none\.json is no COCO instance file.*annotations"):
        read_annotations(path)


@needs_samples
def test_jpeg_pixels_are_those_of_pillow():
    for path in sorted((SAMPLES / "coco/val2017").glob("*.jpg")):
        got = decode_image(path.read_bytes())
        np.testing.assert_array_equal(got, np.asarray(Image.open(path).convert("RGB")))
