"""The drawn data set: deterministic, unambiguous, its files and its records say the same."""

import hashlib
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from data_prep import refcoco, scenes, shapes
from data_prep.expressions import Item
from seem_jax.data.catalog import Split, open_split
from seem_jax.models.language.tokenizer import Tokenizer

SMALL = shapes.Parameters(num_train=20, num_val=8, num_unseen=8, size=96, seed=5, num_videos=4)
SPECS = [f"{name}:{split}" for name, splits in shapes.CONVERTED.items() for split in splits]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("shapes")
    shapes.make(output, SMALL, processes=1)
    return output


def digest(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def decode_image(data: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


def pictures(split: str, count: int) -> list[shapes.Picture]:
    return [shapes.draw(SMALL, split, number) for number in range(count)]


def meant(text: str, items: list[Item]) -> list[int]:
    """The things a plain reader takes a sentence to mean; written apart from data_prep.expressions."""
    words = r"leftmost|rightmost|topmost|bottommost|largest|smallest"
    pattern = rf"(?:the )?(?:({words}) )?(.*?)(?: (left of|right of|above|below) the (.*))?"
    ordinal, noun, relation, anchor = re.fullmatch(pattern, text).groups()

    def fitting(description: str) -> list[int]:
        said = set(description.split()) - {"shape"}
        return [
            i
            for i, item in enumerate(items)
            if said <= {item.shape, item.color, item.texture, item.size}
        ]

    found = fitting(noun)
    if relation:
        (there,) = fitting(anchor)
        other = items[there]
        holds = {
            "left of": lambda item: item.x < other.x,
            "right of": lambda item: item.x > other.x,
            "above": lambda item: item.y < other.y,
            "below": lambda item: item.y > other.y,
        }[relation]
        found = [i for i in found if i != there and holds(items[i])]
    if ordinal:
        key = {
            "leftmost": lambda i: items[i].x,
            "rightmost": lambda i: -items[i].x,
            "topmost": lambda i: items[i].y,
            "bottommost": lambda i: -items[i].y,
            "largest": lambda i: -items[i].radius,
            "smallest": lambda i: items[i].radius,
        }[ordinal]
        assert len(found) > 1, f"{text!r}: nothing to compare with"
        found = [min(found, key=key)]
    return found


def test_every_sentence_means_exactly_its_object():
    count = 0
    for picture in pictures("train", 60) + pictures("unseen", 30):
        items = shapes.visible_items(picture.scene, picture.index)
        for target, sentences in enumerate(picture.sentences):
            for text in sentences:
                assert meant(text, items) == [target], (text, items)
                count += 1
    assert count > 600


def test_every_object_has_two_different_sentences_or_more():
    for picture in pictures("val", 40):
        for sentences in picture.sentences:
            assert len({text.removeprefix("the ") for text in sentences}) == len(sentences) >= 2


def test_sentences_use_attributes_order_and_relations():
    texts = [t for p in pictures("train", 40) for sentences in p.sentences for t in sentences]
    for word in ("most ", "largest", "smallest", "left of", "above", "small ", "dotted", "red"):
        assert any(word in text for text in texts), word


def test_held_out_pairs_are_never_drawn_in_training_and_always_in_unseen():
    for split in ("train", "val"):
        for picture in pictures(split, 100):
            assert not any(scenes.held_out(thing) for thing in picture.scene.things)
    for number in range(10):
        rng = np.random.default_rng([SMALL.seed, len(shapes.SPLITS), number])
        clip = scenes.sample_clip(rng, SMALL.size)
        assert not any(scenes.held_out(thing) for thing in clip.scene.things)
    for picture in pictures("unseen", 40):
        assert any(scenes.held_out(thing) for thing in picture.scene.things)
        for thing, sentences in zip(picture.scene.things, picture.sentences, strict=True):
            assert bool(sentences) <= scenes.held_out(thing)
            for text in sentences:
                assert thing.color in text
                assert text.endswith(thing.shape)


def test_held_out_pairs_leave_every_colour_and_shape_in_training():
    assert len(scenes.HELD_OUT) == len(set(scenes.HELD_OUT.values())) == len(scenes.COLORS) == 8
    assert len(scenes.SHAPES) >= 10
    assert len(scenes.STUFF) >= 4


def test_things_are_visible_and_differ_from_the_ground():
    sizes = set()
    for picture in pictures("val", 40):
        first = len(picture.scene.ground.classes) + 1
        for number, thing in enumerate(picture.scene.things, start=first):
            sizes.add(thing.size)
            alone = scenes.Scene(SMALL.size, picture.scene.ground, (thing,))
            whole = (scenes.index_map(alone) == first).sum()
            assert (picture.index == number).sum() >= 0.4 * whole
            assert whole >= 40
        assert 2 <= len(picture.scene.things) <= 6
        assert 2 <= len(picture.scene.ground.classes) <= 3
    assert sizes == set(scenes.SIZES)
    grounds = [scenes.stuff_tile(name, 96).reshape(-1, 3).mean(axis=0) for name in scenes.STUFF]
    colors = [np.array(color, float) for color in scenes.COLORS.values()]
    for number, color in enumerate(colors):
        others = grounds + colors[:number]
        assert min(np.linalg.norm(color - other) for other in others) > 60


def test_some_things_are_occluded():
    hidden = 0
    for picture in pictures("val", 30):
        first = len(picture.scene.ground.classes) + 1
        for number, thing in enumerate(picture.scene.things, start=first):
            alone = scenes.Scene(SMALL.size, picture.scene.ground, (thing,))
            hidden += (scenes.index_map(alone) == first).sum() > (picture.index == number).sum()
    assert hidden > 10


@pytest.mark.parametrize("split", shapes.SPLITS)
def test_records_hold_what_was_drawn(data, split):
    opened = open_split(data / "records", f"shapes_panoptic:{split}")
    assert len(opened) == SMALL.count(split)
    assert opened.class_names == [*scenes.SHAPES, *scenes.STUFF]
    assert opened.num_things == len(scenes.SHAPES)
    for number in range(4):
        record, picture = opened[number], shapes.draw(SMALL, split, number)
        things = picture.scene.things
        np.testing.assert_array_equal(decode_image(record.segment_map), picture.index)
        error = decode_image(record.image)[..., ::-1].astype(float) - picture.image
        assert np.abs(error).mean() < 6
        names = [opened.class_names[category] for category in record.segment_category]
        assert names == [*picture.scene.ground.classes, *(thing.shape for thing in things)]
        assert max(record.segment_id) > 65535  # all three bytes of the PNG are in use
        assert len(record.object_rle) == len(things)
        first = len(picture.scene.ground.classes) + 1
        for place, counts in enumerate(record.object_rle):
            mask = coco_mask.decode({"size": [record.height, record.width], "counts": counts})
            np.testing.assert_array_equal(mask.astype(bool), picture.index == first + place)
        told = [(text, place) for place, texts in enumerate(picture.sentences) for text in texts]
        assert list(zip(record.phrase_text, record.phrase_object, strict=True)) == told


def test_referring_records_hold_all_sentences_of_their_split(data):
    refs = refcoco.read_refs(data / "raw" / "refer" / "refcocog", "umd")
    for split in ("val", "unseen"):
        opened = open_split(data / "records", f"shapes_referring:{split}")
        records = [opened[number] for number in range(len(opened))]
        texts = [text for record in records for text in record.phrase_text]
        assert texts == [text for ref in refs if ref.split == split for text in ref.sentences]
        assert all(record.segment_map == b"" for record in records)


def test_video_records_run_frame_by_frame_and_things_move(data):
    opened: Split = open_split(data / "records", "shapes_video:train")
    records = [opened[number] for number in range(len(opened))]
    assert len(records) == 3 * shapes.NUM_FRAMES
    assert [record.frame for record in records] == list(range(shapes.NUM_FRAMES)) * 3
    for start in range(0, len(records), shapes.NUM_FRAMES):
        first, last = records[start], records[start + shapes.NUM_FRAMES - 1]
        assert first.sequence == last.sequence
        assert first.segment_id == list(range(1, len(first.segment_id) + 1))
        masks = [decode_image(record.segment_map) for record in (first, last)]
        assert set(np.unique(masks[0])) == {0, *first.segment_id}
        assert (masks[0] != masks[1]).mean() > 0.02


def test_splits_share_no_image_id(data):
    ids = []
    for split in shapes.SPLITS:
        opened = open_split(data / "records", f"shapes_panoptic:{split}")
        ids += [opened[number].image_id for number in range(len(opened))]
    assert len(set(ids)) == len(ids)


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_processes(data, tmp_path):
    shapes.make(tmp_path / "again", SMALL, processes=2)
    assert digest(tmp_path / "again") == digest(data)


def test_another_seed_gives_other_pictures():
    other = shapes.Parameters(seed=6)
    assert (shapes.draw(other, "train", 0).image != shapes.draw(SMALL, "train", 0).image).any()


def test_the_tokenizer_knows_every_word_of_the_data_set(data):
    tokenizer = Tokenizer(data / "records" / "tokenizer.model")
    ids, valid = tokenizer.encode([*scenes.SHAPES, *scenes.STUFF, "the", "small"], 8)
    assert valid.sum(axis=1).max() <= 6
    assert not (ids == tokenizer.pieces.unk_id()).any()


def test_a_second_run_does_nothing_and_other_parameters_are_refused(data, capsys):
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    shapes.make(data, SMALL, processes=1)
    assert "nothing to do" in capsys.readouterr().out
    other = shapes.Parameters(**{**vars(SMALL), "seed": 6})
    with pytest.raises(ValueError, match=r"other parameters \['seed'\].*--force"):
        shapes.make(data, other, processes=1)
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == before


def test_a_lost_shard_is_made_again_and_the_others_are_kept(data, capsys):
    before = digest(data)
    shard = next(data.glob("records/shapes_referring/*/*unseen.tfrecord-00000-of-00001"))
    kept = next(data.glob("records/shapes_panoptic/*/*train.tfrecord-00000-of-00001"))
    written = kept.stat().st_mtime_ns
    shard.unlink()
    shapes.make(data, SMALL, processes=1)
    assert "Converting again what is missing" in capsys.readouterr().out
    assert digest(data) == before
    assert kept.stat().st_mtime_ns == written


def test_force_replaces_the_data_set(tmp_path):
    tiny = shapes.Parameters(num_train=3, num_val=2, num_unseen=2, size=64, num_videos=2)
    shapes.make(tmp_path, tiny, processes=1)
    (tmp_path / "mine.txt").write_text("stays")
    shapes.make(tmp_path, shapes.Parameters(**{**vars(tiny), "seed": 1}), processes=1, force=True)
    for spec in SPECS:
        assert len(open_split(tmp_path / "records", spec)) > 0
    assert (tmp_path / "mine.txt").exists()
