"""The predictor: any mix of prompts, one program, no influence of company, answers in every format."""

from __future__ import annotations

import copy
import itertools
import json
import shutil

import jax
import numpy as np
import pytest
from jax import monitoring

from seem_jax import kept_files, postprocess
from seem_jax.data import catalog
from seem_jax.predictor import Predictor, Prompts, Reference, everything, results
from seem_jax.predictor.programs import MAX_ANSWERS
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


def test_everything_is_drawn_at_the_size_of_the_image_or_larger(predictor):
    image = picture(20, 30)
    predictor.set_image(image)
    for answer in (predictor.panoptic(threshold=0.0), predictor.semantic()):
        assert answer.draw(image).shape == image.shape
        assert answer.draw(image, 300).shape == (200, 300, 3)


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
    with pytest.raises(ValueError, match="no checkpoint"):
        seem_jax.Predictor.from_checkpoint(tmp_path / "nowhere")


def test_a_moved_work_folder_needs_no_data_set(predictor, tmp_path):
    from data_prep.tokenizer import train_tokenizer
    from seem_jax.checkpoint import save_params

    config = copy.deepcopy(predictor.config)
    data, run, moved = tmp_path / "data", tmp_path / "run", tmp_path / "elsewhere" / "model"
    config.data.root, config.data.tokenizer = str(data), str(data / "words.model")
    vocabulary = catalog.classes_path(data, config.data.train[0])
    vocabulary.parent.mkdir(parents=True)
    vocabulary.write_text(json.dumps({"names": ["disc", "bar", "sky"], "num_things": 2}))
    names = ("disc", "bar", "sky", "background")
    texts = [f"{article} {name}" for article in ("the", "a") for name in names]
    train_tokenizer(texts, data / "words.model", 64)
    save_params(run, jax.device_get(predictor.params), config)
    with_data = Predictor.from_checkpoint(run)
    kept_files.keep(run, config)
    moved.parent.mkdir()
    run.rename(moved)
    shutil.rmtree(data)

    without = Predictor.from_checkpoint(moved)
    assert without.classes == with_data.classes == ("disc", "bar", "sky")
    assert without.naming.num_things == with_data.naming.num_things == 2
    for each in (with_data, without):
        each.texts.programs = each.programs = predictor.programs  # compiled already
        each.naming.programs = each.decoding.programs = predictor.programs
        each.set_image(picture())
    same(without.predict(text="disc"), with_data.predict(text="disc"))
    assert without.panoptic().classes == ("disc", "bar", "sky")
    (moved / "classes.json").write_text("[")
    with pytest.raises(ValueError, match=r"elsewhere/model/classes.json is damaged"):
        Predictor.from_checkpoint(moved)
