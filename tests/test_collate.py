"""A batch says what its records say: segments, phrases and prompts with their masks."""

import collections
import dataclasses

import cv2
import jax
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from seem_jax.data import collate, pipeline, questions, strokes
from seem_jax.data.schema import Record
from seem_jax.types import Batch
from tests.pipeline_support import (
    BALLS,
    CLASS_RECORDS,
    CLASSES,
    COLOURS,
    CONFIG,
    RECORDS,
    SIZE,
    TEMPLATES,
    FakeRecords,
    FakeTokenizer,
    batches_of,
    masks_of,
    record,
    text_of,
)


def test_shapes_and_types_never_change():
    small = FakeRecords([record(0, height=30, width=90), record(1, phrases=False), _empty()])
    said = collate.batch_shapes(CONFIG, CONFIG.batch_size)
    for batch in batches_of(count=6, splits=(small,)):
        assert isinstance(batch, Batch)
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), batch)
        assert shapes == said
    batch = batches_of(count=1)[0]
    assert batch.image.shape == (4, SIZE, SIZE, 3)
    assert batch.image.dtype == np.uint8
    assert batch.planes.shape == (4, 2, SIZE, SIZE)
    assert batch.planes.dtype == np.uint8
    assert batch.sample_id.dtype == batch.image_size.dtype == np.int32
    assert batch.objects.masks.select.dtype == batch.objects.masks.value.dtype == np.uint8
    assert batch.objects.masks.plane.dtype == batch.objects.label.dtype == np.int32
    assert batch.phrases.token_ids.shape == (4, 3, 12)
    assert batch.phrases.is_class.shape == (4,)
    assert batch.phrases.is_class.dtype == bool
    assert batch.strokes.points.shape == (4, 32, 2)
    assert batch.strokes.points.dtype == np.float32
    assert batch.prompt_masks.valid.shape == (4, 4)


def _empty() -> Record:
    """An image without any truth."""
    blank = cv2.imencode(".png", np.zeros((SIZE, SIZE, 3), np.uint8))[1].tobytes()
    return Record(99, "blank.png", blank, SIZE, SIZE)


def test_segments_show_their_own_colour_and_class_largest_first():
    labels = dict(zip(COLOURS, [3, 2, 0, 0, 0, 1], strict=True))
    for batch in batches_of(count=5):
        masks = masks_of(batch.planes, batch.objects.masks)
        for row in range(4):
            areas = masks[row].sum(axis=(1, 2))
            valid = batch.objects.masks.valid[row]
            assert (areas[valid] > 0).all()
            assert (np.diff(areas) <= 0).all()
            assert masks[row].sum(axis=0).max() <= 1
            height, width = batch.image_size[row]
            assert masks[row, :, :height, :width].any(axis=0).all()
            assert not masks[row, :, height:].any()
            for m in np.flatnonzero(valid):
                colour = np.median(batch.image[row][masks[row, m]].astype(int), axis=0)
                if areas[m] > 40:
                    nearest = min(COLOURS, key=lambda c: np.abs(np.array(c) - colour).sum())
                    assert batch.objects.label[row, m] == labels[nearest]


def test_sentences_point_at_their_object_once_each_and_follow_the_flip():
    seen = collections.Counter()
    for batch in batches_of(count=20):
        masks = masks_of(batch.planes, batch.phrases.masks)
        assert not batch.phrases.is_class.any()
        for row in range(4):
            valid = batch.phrases.masks.valid[row]
            texts = [text_of(ids) for ids in batch.phrases.token_ids[row][valid]]
            balls = [int(text[-1]) for text in texts]
            assert len(set(balls)) == len(balls) >= 1
            assert len(set(batch.phrases.group[row][valid].tolist())) == len(texts)
            seen.update(text[:-2] for text in texts)
            seen[len(texts)] += 1
            for g, ball in enumerate(balls):
                colour = np.median(batch.image[row][masks[row, g]], axis=0)
                if masks[row, g].sum() > 25:
                    assert np.abs(colour - COLOURS[2 + ball]).max() < 60
                in_plane = batch.phrases.masks.plane[row, g]
                assert in_plane == (1 if ball == BALLS - 1 else 0)  # half a ball is no segment
    assert set(seen) == {"ball", "left", "right", 1, 2, 3}
    assert 0.2 < seen["right"] / (seen["left"] + seen["right"]) < 0.8


def test_class_names_bring_all_their_segments_as_one_group():
    spoken = set()
    for batch in batches_of(count=20, splits=(CLASS_RECORDS,)):
        assert batch.phrases.is_class.all()
        for row in range(4):
            valid = batch.phrases.masks.valid[row]
            assert 1 <= valid.sum() <= CONFIG.max_phrases
            groups = collections.defaultdict(list)
            for g in np.flatnonzero(valid):
                value = batch.phrases.masks.value[row, g]
                groups[batch.phrases.group[row, g]].append(batch.objects.label[row, value - 1])
                spoken.add(text_of(batch.phrases.token_ids[row, g]))
            for labels in groups.values():
                assert len(set(labels)) == 1
            labels = [found[0] for found in groups.values()]
            assert len(set(labels)) == len(labels)
            if valid.sum() < CONFIG.max_phrases:  # nothing was cut off
                for found in groups.values():
                    in_sight = batch.objects.label[row][batch.objects.masks.valid[row]]
                    assert len(found) == (in_sight == found[0]).sum()
    names = {"ball", "box", "tree", "sky"}
    assert spoken == {template.format(name) for name in names for template in TEMPLATES}


def test_prompts_lie_on_the_object_they_ask_for():
    linked = unlinked = 0
    for batch in batches_of(count=20):
        prompts = masks_of(batch.planes, batch.prompt_masks)
        phrases = masks_of(batch.planes, batch.phrases.masks)
        points = np.round(batch.strokes.points * SIZE).astype(int)
        assert (batch.strokes.points >= 0).all()
        assert (batch.strokes.points < 1).all()
        np.testing.assert_array_equal(batch.strokes.positive, batch.strokes.valid)
        for row in range(4):
            owners = batch.strokes.prompt[row][batch.strokes.valid[row]]
            drawn = np.flatnonzero(batch.prompt_masks.valid[row])
            assert sorted(set(owners)) == drawn.tolist()  # each prompt has points
            assert len(drawn) >= 1
            assert (prompts[row, drawn].sum(axis=(1, 2)) >= strokes.MIN_AREA).all()
            for p in drawn:
                x, y = points[row][batch.strokes.valid[row]][owners == p].T
                columns = np.flatnonzero(prompts[row, p].any(axis=0))
                rows = np.flatnonzero(prompts[row, p].any(axis=1))
                assert columns[0] <= x.min() <= x.max() <= columns[-1]
                assert rows[0] <= y.min() <= y.max() <= rows[-1]
            links = batch.phrases.prompt[row]
            linked += (links >= 0).sum()
            unlinked += (links[batch.phrases.masks.valid[row]] < 0).sum()
            for g in np.flatnonzero(links >= 0):
                np.testing.assert_array_equal(phrases[row, g], prompts[row, links[g]])
    assert 0.35 < linked / (linked + unlinked) < 0.6


def test_no_prompt_comes_with_a_phrase_unless_asked_for():
    config = dataclasses.replace(CONFIG, phrase_prompt_probability=0.0)
    for batch in batches_of(config):
        assert (batch.phrases.prompt == -1).all()
        assert batch.prompt_masks.valid.any(axis=1).all()


def test_crowds_and_void_are_nobody():
    crowded = record(0)
    crowded.segment_crowd = [False, True, False, False, False, False]
    for batch in batches_of(count=3, splits=(FakeRecords([crowded]),)):
        assert not (batch.objects.label == 2)[batch.objects.masks.valid].any()
        trees = np.abs(batch.image.astype(int) - COLOURS[1]).max(axis=3) < 10
        assert not batch.planes[:, 0][trees].any()


def test_what_does_not_fit_is_dropped_smallest_first_and_counted():
    config = dataclasses.replace(
        CONFIG, max_objects=2, max_phrase_tokens=4, min_scale=1.0, max_scale=1.0, num_threads=0
    )
    batches = pipeline.train_batches(config, FakeTokenizer(), templates=TEMPLATES, splits=[RECORDS])
    for _ in range(3):
        batch = next(batches)
        assert set(batch.objects.label.ravel()) == {2, 3}  # sky and trees
    assert batches.dropped["objects"] == 3 * 4 * 4
    assert batches.dropped["long_phrases"] >= 3 * 4
    assert batches.dropped["class_phrases"] == batches.dropped["hidden_objects"] == 0


def test_overlapping_masks_beyond_the_planes_are_refused():
    many = record(0)
    corner = [
        coco_mask.encode(np.asfortranarray(np.eye(SIZE, k=k, dtype=np.uint8))) for k in range(9)
    ]
    many.object_rle = [rle["counts"] for rle in corner]
    many.object_category = [0] * 9
    many.phrase_text = [f"line {k}" for k in range(9)]
    many.phrase_object = list(range(9))
    config = dataclasses.replace(CONFIG, max_phrases=9, max_texts=9)
    with pytest.raises(ValueError, match="expected at least 3"):
        batches_of(config)
    config = dataclasses.replace(config, min_scale=1.0, max_scale=1.0)

    def example(seed: int, num_planes: int) -> Batch:
        own = dataclasses.replace(config, num_planes=num_planes)
        rng = np.random.default_rng(seed)
        return collate.training_example(many, 0, CLASSES, TEMPLATES, own, FakeTokenizer(), rng)[0]

    counts = set()
    for seed in range(20):  # 1 to 9 of the lines are asked for
        masks = example(seed, 3).phrases.masks
        count = int(masks.valid.sum())
        assert masks.plane[:count].tolist() == ([1] * 8 + [2])[:count]
        if count == 9:
            with pytest.raises(ValueError, match="num_planes = 2 holds 8 overlapping masks"):
                example(seed, 2)
        else:
            assert example(seed, 2).phrases.masks.valid.sum() == count
        counts.add(count)
    assert {8, 9} < counts


def test_sides_change_places_in_mirrored_sentences_only_as_whole_words():
    assert questions.mirror("the leftmost star left of the right bright one") == (
        "the rightmost star right of the left bright one"
    )
