"""The predictor: any mix of prompts, one program, no influence of company, answers in every format."""

from __future__ import annotations

import copy
import itertools
import json

import jax
import numpy as np
import pytest
from jax import monitoring
from pycocotools import mask as coco_mask

from seem_jax import postprocess
from seem_jax.data import transforms
from seem_jax.predictor import Predictor, Prompts, Reference, everything, results
from seem_jax.predictor.predictor import default_classes
from seem_jax.predictor.programs import MAX_ANSWERS, MAX_POINTS
from seem_jax.predictor.prompts import draw
from seem_jax.predictor.thinning import fair_shares, thin
from tests.predictor_support import CLASSES, picture, same, tiny_predictor

compilations: list[str] = []


def note(event: str, duration: float, **_) -> None:
    """Remembers every program that XLA compiles."""
    if event == "/jax/core/compile/backend_compile_duration":
        compilations.append(event)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    monitoring.register_event_duration_secs_listener(note)
    made = tiny_predictor()
    made.warm_up()
    return made


@pytest.fixture(scope="module")
def reference(predictor) -> Reference:
    shown = [{"points": [[10, 10], [40, 30]], "point_labels": [1, 0]}, {"box": [5, 5, 30, 20]}]
    return predictor.reference([picture(seed=8), picture(50, 40, seed=9)], shown)


def one_of_each(predictor, reference, size=(80, 120)) -> dict:
    """A value for every kind of prompt on an image of this size."""
    height, width = size
    mask = np.zeros(size, bool)
    mask[height // 4 : height // 2, width // 3 : width // 2] = True
    return {
        "points": [[width * 0.5, height * 0.5], [1, 1]],
        "box": [width * 0.2, height * 0.2, width * 0.6, height * 0.7],
        "scribble": [[2, 2], [width - 1, height - 1]],
        "polygon": [[0, 0], [width, 0], [width / 2, height]],
        "mask": mask,
        "text": "the red disc",
        "reference": reference,
        "memory": predictor.predict(points=[[3, 3]]).memory,
    }


def check_sound(prediction, size, top_k=1):
    assert prediction.masks.dtype == bool
    assert prediction.masks.shape == (len(prediction), *size)
    assert len(prediction) <= top_k * len(set(prediction.texts))
    for values in (prediction.scores, prediction.quality, prediction.probabilities):
        assert np.isfinite(values).all() and (values >= 0).all() and (values <= 1).all()
    assert np.isfinite(prediction.logits).all()


def test_every_mix_of_prompts_is_answered_and_nothing_compiles(predictor, reference):
    predictor.set_image(picture())
    every = one_of_each(predictor, reference)
    alone = {}
    before = len(compilations)
    for number in range(1, len(every) + 1):
        for kinds in itertools.combinations(every, number):
            asked = {kind: every[kind] for kind in kinds}
            prediction = predictor.predict(**asked, classes=CLASSES, top_k=3)
            check_sound(prediction, (80, 120), top_k=3)
            assert len(prediction) >= 1
            if number == 1:
                alone[kinds[0]] = prediction.logits[0]
    assert len(compilations) == before
    for one, other in itertools.combinations(alone, 2):
        assert not np.array_equal(alone[one], alone[other]), (one, other)


def test_no_size_vocabulary_or_number_of_prompts_compiles(predictor):
    before = len(compilations)
    for height, width in ((1, 1), (1, 300), (200, 3), (64, 64), (333, 217)):
        predictor.set_image(picture(height, width))
        check_sound(predictor.predict(points=[[width - 1, height - 1]]), (height, width))
        names = [f"name {n}" for n in range(height % 7 + 1)]
        assert predictor.panoptic(names, threshold=0.0).segmentation.shape == (height, width)
        assert predictor.semantic(names).labels.shape == (height, width)
        assert predictor.instances(names).masks.shape[1:] == (height, width)
    images = [picture(seed=seed) for seed in range(3)]
    predictor.predict_batch(images, [[{"points": [[1, 1]]}] * n for n in (0, 3, 1)])
    assert len(compilations) == before


def test_a_batch_gives_the_bits_of_single_calls(predictor, reference):
    sizes = [(80, 120), (33, 21), (64, 64), (300, 17)]
    images = [picture(*size, seed=3) for size in sizes]
    prompts = []
    for image, size in zip(images, sizes, strict=True):
        predictor.set_image(image)
        every = one_of_each(predictor, reference, size)
        mixes = [("points",), ("text", "box"), ("reference", "memory"), tuple(every)]
        prompts.append([Prompts(**{kind: every[kind] for kind in mix}) for mix in mixes])
    prompts[1] = prompts[1][:1]
    prompts[3] = prompts[3][2]
    batch = predictor.predict_batch(images, prompts, classes=CLASSES, top_k=2)
    assert isinstance(batch[3], results.Prediction)
    for image, asked, got in zip(images, prompts, batch, strict=True):
        predictor.set_image(image)
        single = isinstance(asked, Prompts)
        for question, answer in zip([asked] if single else asked, [got] if single else got):
            fields = {kind: getattr(question, kind) for kind in question.given}
            same(predictor.predict(**fields, classes=CLASSES, top_k=2), answer)


def test_rows_that_share_a_decoder_call_agree_with_single_ones(predictor):
    together = Predictor(
        predictor.params, predictor.config, predictor.texts.tokenizer, rows_together=3
    )
    images = [picture(seed=seed) for seed in range(4)]
    prompts = [{"points": [[10 * n + 5, 40]]} for n in range(4)]
    for one, other in zip(
        predictor.predict_batch(images, prompts), together.predict_batch(images, prompts)
    ):
        np.testing.assert_allclose(one.logits, other.logits, atol=2e-3)
        assert (one.masks == other.masks).mean() > 0.99


def test_the_order_of_prompts_changes_nothing(predictor):
    predictor.set_image(picture())
    points, labels = np.array([[5, 5], [60, 40], [100, 70]]), np.array([1, 0, 1])
    once = predictor.predict(points=points, point_labels=labels)
    same(once, predictor.predict(points=points[::-1], point_labels=labels[::-1]))
    same(once, predictor.predict(points=np.tile(points, (3, 1)), point_labels=np.tile(labels, 3)))


def test_several_phrases_are_several_questions(predictor):
    predictor.set_image(picture())
    both = predictor.predict(text=["the disc", "a long bar"], points=[[20, 20]], top_k=2)
    parts = [
        predictor.predict(text=t, points=[[20, 20]], top_k=2) for t in ("the disc", "a long bar")
    ]
    assert both.texts == parts[0].texts + parts[1].texts
    np.testing.assert_array_equal(both.masks, np.concatenate([p.masks for p in parts]))


def test_top_k_are_different_masks_in_the_order_of_their_scores(predictor):
    predictor.set_image(picture())
    answer = predictor.predict(text="disc", top_k=MAX_ANSWERS)
    assert (np.diff(answer.scores) <= 0).all()
    assert answer.scores.sum() <= 1 + 1e-5
    overlap = everything.alike(answer.logits > 0, answer.logits > 0)
    np.fill_diagonal(overlap, 0)
    assert overlap.max() < 0.75
    high = predictor.predict(text="disc", top_k=MAX_ANSWERS, threshold=float(answer.scores[0]))
    assert len(high) == 1
    none = predictor.predict(text="disc", threshold=1.0)
    assert len(none) == 0 and none.masks.shape == (0, 80, 120)
    with pytest.raises(ValueError, match="no mask reached the threshold"):
        _ = none.memory


def test_memory_keeps_the_object_of_a_phrase(predictor):
    predictor.set_image(picture())
    first = predictor.predict(text="disc", top_k=4)
    assert len(first) > 1
    kept = [predictor.predict(text="disc", memory=memory) for memory in first.memories]
    overlap = [everything.alike(k.logits > 0, first.logits > 0)[0] for k in kept]
    assert np.argmax(overlap[0]) == 0
    alone = predictor.predict(memory=first.memory)
    check_sound(alone, (80, 120))


def test_a_reference_is_one_file_that_works_on_other_images(predictor, reference, tmp_path):
    reference.save(tmp_path / "object")
    assert [path.name for path in tmp_path.iterdir()] == ["object.npz"]
    loaded = Reference.load(tmp_path / "object.npz")
    predictor.set_image(picture(seed=5))
    same(predictor.predict(reference=reference), predictor.predict(reference=loaded))
    other = predictor.reference([picture(seed=6)], [{"points": [[30, 30]]}])
    assert not np.array_equal(
        predictor.predict(reference=other).logits, predictor.predict(reference=loaded).logits
    )
    stranger = tiny_predictor(seed=1)
    stranger.set_image(picture())
    with pytest.raises(ValueError, match="another model"):
        stranger.predict(reference=loaded)


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "other", "pickle", "nan"])
def test_a_file_that_is_no_reference_is_refused(reference, tmp_path, damage):
    path = tmp_path / "object.npz"
    reference.save(path)
    data = path.read_bytes()
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "text":
        path.write_text("hello")
    elif damage == "other":
        np.savez(path, levels=np.zeros(3))
    elif damage == "pickle":
        np.savez(path, about=np.array([{"format": 1}], object), pooled=np.zeros(3))
    else:
        broken = Reference(
            reference.model, reference.levels, reference.pooled * np.nan, reference.count, 1
        )
        broken.save(path)
    with pytest.raises(ValueError, match=r"object\.npz is no reference"):
        Reference.load(path)


def test_rules_without_memory_slots_answer_too():
    shared = tiny_predictor(rules="shared")
    shared.set_image(picture())
    first = shared.predict(points=[[20, 20]])
    check_sound(shared.predict(points=[[20, 20], [40, 40]], memory=first.memory), (80, 120))


# Drawing


def placed(height=80, width=120, side=64):
    return transforms.fitted((height, width), side)


def pixels(drawn, side=64):
    return np.round(drawn.points[drawn.valid] * side).astype(int)


def test_a_click_is_nine_pixels_around_its_own():
    drawn = draw(Prompts(points=[[60.4, 40.9]]), placed(), 48)
    centre = np.floor((np.array([60, 40]) + 0.5) * 64 / 120)
    np.testing.assert_array_equal(pixels(drawn).mean(0), centre)
    assert len(pixels(drawn)) == 9
    assert len(pixels(draw(Prompts(points=[[0, 0]]), placed(), 48))) == 4  # cut by the corner


@pytest.mark.parametrize("size", [(80, 120), (1, 1), (1, 500), (700, 2), (64, 64)])
def test_what_is_drawn_lies_where_it_was_drawn(size):
    height, width = size
    placement = placed(*size)
    x0, x1 = width * 0.25, max(width * 0.75, width * 0.25 + 0.5)
    y0, y1 = height * 0.25, max(height * 0.75, height * 0.25 + 0.5)
    mask = np.zeros(size, bool)
    mask[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))] = True
    corners = [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]
    for asked in (
        Prompts(box=[x0, y0, x1, y1]),
        Prompts(polygon=corners),
        Prompts(mask=mask),
        Prompts(scribble=[[x0, y0], [x1 - 0.01, y1 - 0.01]]),
    ):
        found = pixels(draw(asked, placement, 10_000)) + 0.5
        scale = np.array(placement.resized[::-1]) / np.array([width, height])
        assert len(found), asked.given
        margin = 2.5  # a pixel of rounding and half of a stroke
        low, high = np.floor([x0, y0]), np.ceil([x1, y1])
        assert (found >= low * scale - margin).all(), asked.given
        assert (found <= high * scale + margin).all(), asked.given


def test_too_many_points_are_thinned_fairly_and_counted():
    rng = np.random.default_rng(0)
    points = np.floor(rng.random((1000, 2)) * [120, 80])
    drawn = draw(Prompts(points=points, box=[0, 0, 120, 80]), placed(), 48)
    assert drawn.valid.sum() <= MAX_POINTS
    assert drawn.dropped > 0
    again = draw(Prompts(points=points[::-1], box=[0, 0, 120, 80]), placed(), 48)
    np.testing.assert_array_equal(again.points, drawn.points)
    assert draw(Prompts(points=points[:5]), placed(), 48).dropped == 0


def test_fair_shares_keep_small_drawings_whole():
    assert fair_shares([9, 9, 1000], 100) == [9, 9, 82]
    assert fair_shares([5, 5, 5], 6) == [2, 2, 2]
    assert fair_shares([], 6) == []
    rows = np.arange(2304)
    np.testing.assert_array_equal(thin(rows, 48), thin(rows, 48))
    assert len(np.unique(thin(rows, 48) % 48)) > 10  # not a single column of a 48 pixel wide box


def test_a_negative_stroke_is_negative(predictor):
    asked = Prompts(scribble=[[[5, 5], [30, 5]], [[5, 60], [30, 60]]], scribble_labels=[1, 0])
    drawn = draw(asked, placed(), 48)
    rows = pixels(drawn)[:, 1]
    positive = drawn.positive[drawn.valid]
    assert rows[positive].max() < rows[~positive].min()


# Everything


def test_panoptic_agrees_with_the_evaluation(predictor):
    image = picture(64, 64)
    predictor.set_image(image)
    answer = predictor.panoptic(threshold=0.0, overlap=0.1)
    objects = predictor.image.objects
    probability = predictor.naming.probability(objects, CLASSES)
    plan = postprocess.plan_resize(
        np.array([[64, 64]]), [(64, 64)], (16, 16), (64, 64), antialias=False
    )
    full = postprocess.resize(objects.logits[None], plan)[0]
    slots = jax.device_get(
        postprocess.panoptic_slots(np.log(probability), full, plan.inside[0], 0.0)
    )
    ids, segments = postprocess.panoptic_segments(slots, 2, 0.1)
    assert [(s.id, s.category) for s in segments] == [(s.id, s.category) for s in answer.segments]
    assert (ids == answer.segmentation).mean() > 0.999


def test_class_tables_are_those_of_the_evaluation(predictor):
    from seem_jax.models.language import class_names

    ids, valid = class_names.class_token_ids(
        predictor.texts.tokenizer,
        CLASSES,
        predictor.config.data.max_phrase_tokens,
        predictor.texts.templates,
    )
    table = class_names.embed(predictor.programs.model, predictor.params, ids, valid)
    np.testing.assert_allclose(predictor.texts.table(CLASSES), table, atol=1e-6)


def test_instances_are_sorted_and_within_their_limits(predictor):
    predictor.set_image(picture())
    every = predictor.instances(["disc", "bar"])
    assert (np.diff(every.scores) <= 0).all()
    assert (every.areas > 0).all()
    assert set(every.names) <= {"disc", "bar"}
    assert len(predictor.instances(["disc", "bar"], top_k=2)) <= 2
    some = predictor.instances(["disc", "bar"], threshold=float(np.median(every.scores)))
    assert 0 < len(some) < len(every)


# Formats


def made_prediction():
    masks = np.zeros((2, 20, 30), bool)
    masks[0, 2:10, 3:20] = True
    masks[0, 4:6, 5:9] = False  # a hole
    return results.Prediction(
        masks=masks,
        scores=np.array([0.9, 0.1], np.float32),
        quality=np.ones(2, np.float32),
        texts=("a thing", None),
        logits=np.zeros((2, 4, 4), np.float32),
        memories=(),
        classes=("cat", "dog"),
        labels=np.array([1, 0], np.int32),
        probabilities=np.array([[0.2, 0.8], [0.6, 0.1]], np.float32),
        dropped_points=0,
    )


def test_coco_results_hold_the_same_masks():
    prediction = made_prediction()
    entries = json.loads(json.dumps(prediction.to_coco(7, category_ids=[17, 18])))
    decoded = coco_mask.decode([entry["segmentation"] for entry in entries])
    np.testing.assert_array_equal(np.moveaxis(decoded, -1, 0).astype(bool), prediction.masks)
    assert entries[0]["bbox"] == [3, 2, 17, 8]
    assert entries[0]["area"] == prediction.masks[0].sum()
    assert (entries[0]["category_id"], entries[0]["image_id"], entries[0]["name"]) == (18, 7, "dog")
    assert entries[1]["bbox"] == [0, 0, 0, 0]
    with pytest.raises(ValueError, match="category_ids has 1 numbers for 2 classes"):
        prediction.to_coco(7, category_ids=[1])


def test_polygons_and_boxes_surround_the_mask():
    prediction = made_prediction()
    (ring,) = prediction.to_polygons()[0]
    assert (ring.min(0) == [3, 2]).all() and (ring.max(0) == [19, 9]).all()
    assert prediction.to_polygons()[1] == []
    fields = prediction.to_supervision()
    np.testing.assert_array_equal(fields["xyxy"][0], [3, 2, 20, 10])
    assert fields["xyxy"].shape == (2, 4) and fields["mask"].shape == (2, 20, 30)
    assert list(fields["data"]["class_name"]) == ["dog", "cat"]


def test_panoptic_png_holds_the_ids():
    ids = np.array([[0, 1, 300], [70000, 1, 0]], np.int32)
    segments = tuple(postprocess.Segment(n, 0, True, 0.5) for n in (1, 300, 70000))
    prediction = results.PanopticPrediction(ids, segments, ("cat",))
    png = prediction.to_png().astype(int)
    np.testing.assert_array_equal(png[..., 0] + 256 * png[..., 1] + 65536 * png[..., 2], ids)
    info = json.loads(json.dumps(prediction.segments_info()))
    assert [(s["id"], s["area"]) for s in info] == [(1, 2), (300, 1), (70000, 1)]
    assert info[0]["bbox"] == [1, 0, 1, 2]


def test_pictures_show_the_mask_and_leave_the_image_alone(predictor):
    image = picture(20, 30)
    before = image.copy()
    drawn = made_prediction().draw(image)
    assert drawn.shape == image.shape and (drawn != image).any()
    assert made_prediction().draw(image, 300).shape == (200, 300, 3)
    np.testing.assert_array_equal(image, before)
    predictor.set_image(image)
    for answer in (predictor.panoptic(threshold=0.0), predictor.semantic()):
        assert answer.draw(image).shape == image.shape
        assert answer.draw(image, 300).shape == (200, 300, 3)
    with pytest.raises(ValueError, match="the image of this prediction"):
        made_prediction().draw(picture(21, 30))


# From a checkpoint


def test_a_checkpoint_becomes_a_predictor(predictor, tmp_path):
    import seem_jax
    from data_prep.tokenizer import train_tokenizer
    from seem_jax.checkpoint import save_params

    config = copy.deepcopy(predictor.config)
    config.data.root = str(tmp_path)
    config.data.tokenizer = str(tmp_path / "tokenizer.model")
    save_params(tmp_path / "run", jax.device_get(predictor.params), config)
    with pytest.raises(ValueError, match="no tokenizer at"):
        seem_jax.Predictor.from_checkpoint(tmp_path / "run")
    texts = [f"the {colour} {kind}" for colour in ("red", "blue") for kind in ("disc", "bar")]
    train_tokenizer(texts, tmp_path / "moved.model", 48)
    restored = seem_jax.Predictor.from_checkpoint(
        tmp_path / "run", tokenizer=tmp_path / "moved.model"
    )
    assert restored.fingerprint() == predictor.fingerprint()
    assert restored.classes == ()
    assert restored.texts.tables.cache == tmp_path / "run" / "class_tables"
    restored.programs = predictor.programs  # compiled already; the parameters are its own
    restored.decoding.programs = predictor.programs
    for each in (restored, predictor):
        each.set_image(picture())
    same(restored.predict(points=[[20, 20]]), predictor.predict(points=[[20, 20]]))
    with pytest.raises(ValueError, match="classes is missing"):
        restored.panoptic()
    folder = tmp_path / "shapes_panoptic" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "classes.json").write_text(json.dumps({"names": ["a", "b"], "num_things": 1}))
    assert default_classes(config) == (("a", "b"), 1)
    with pytest.raises(ValueError, match="no checkpoint"):
        seem_jax.Predictor.from_checkpoint(tmp_path / "nowhere")
