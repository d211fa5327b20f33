"""Objects in a stream of frames: what a frame says depends on its objects alone, and memory stays."""

from __future__ import annotations

import functools
import gc

import jax
import numpy as np
import psutil
import pytest
from jax import monitoring

import seem_jax
from seem_jax import postprocess
from seem_jax.evaluation.tasks import video as task
from seem_jax.predictor import Prompts, everything
from seem_jax.types import VisualPrompts
from seem_jax.video import VideoPredictor
from tests.predictor_support import picture, tiny_predictor

SIZE = (80, 120)
compilations: list[str] = []


def note(event: str, duration: float, **_) -> None:
    """Remembers every program that XLA compiles."""
    if event == "/jax/core/compile/backend_compile_duration":
        compilations.append(event)


@pytest.fixture(scope="module")
def predictor():
    monitoring.register_event_duration_secs_listener(note)
    return tiny_predictor()


@pytest.fixture(scope="module")
def frames():
    return [picture(*SIZE, seed=seed) for seed in range(6)]


def half(size=SIZE) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[:, : size[1] // 2] = True
    return mask


def low(predictor, frame, asked: Prompts) -> np.ndarray:
    """float32 [H, W], the logits of the best answer at the size of the frame."""
    image = predictor.encode(frame)
    (reply,) = predictor.decoding.ask([(image, asked)])
    return everything.enlarge(reply.answers[0].logits[0], image.placement)


def test_the_package_offers_it():
    assert seem_jax.VideoPredictor is VideoPredictor


def test_an_object_is_its_tokens_and_the_memory_of_its_first_answer(predictor, frames):
    asked = Prompts(points=[[20, 30], [90, 60]], point_labels=[1, 0])
    tracker = VideoPredictor(predictor)
    tracker.add(4, points=asked.points, point_labels=asked.point_labels)
    found = list(tracker.run(frames))
    first = predictor.encode(frames[0])
    (answer,) = predictor.answer([(first, asked)])
    np.testing.assert_array_equal(found[0].masks, answer.masks)
    shown = predictor.decoding.show(first, asked, located=True)
    for frame, got in zip(frames[1:], found[1:], strict=True):
        later = Prompts(reference=shown, memory=answer.memory)
        np.testing.assert_array_equal(got.masks[0], low(predictor, frame, later) > 0)
    assert [each.index for each in found] == list(range(6))
    assert {each.object_ids for each in found} == {(4,)}
    for each in found:
        assert each.masks.dtype == bool and each.masks.shape == (1, *SIZE)
        assert ((each.scores >= 0) & (each.scores <= 1)).all()
        assert ((each.quality >= 0) & (each.quality <= 1)).all()


@pytest.mark.slow  # for what it compiles
def test_the_evaluation_finds_the_same_pixels(predictor, frames):
    """The task `video` decodes all objects of several frames in one call, on the device alone."""
    square = [frame[:64, :64].copy() for frame in frames[:3]]
    tracker = VideoPredictor(predictor)
    tracker.add(1, points=[[20, 30]])
    found = [each.label_map() for each in tracker.run(square)]
    drawn = predictor.decoding.draw(Prompts(points=[[20, 30]]), predictor.placement((64, 64)))
    prompts = VisualPrompts(
        points=drawn.points[None],
        prompt=np.zeros((1, len(drawn.points)), np.int32),
        positive=drawn.positive[None],
        valid=drawn.valid[None],
    )
    model, params, encode = predictor.programs.model, predictor.params, predictor.programs.encode
    first = jax.jit(functools.partial(task.first_frame, model, num=1))
    given = first(params, encode(params, square[0][None]), prompts)
    plan = postprocess.plan_resize(
        np.full((2, 2), 64), [(64, 64)] * 2, (16, 16), (64, 64), antialias=False
    )
    later = jax.jit(functools.partial(task.later_frames, model))
    labels = np.asarray(later(params, *given, encode(params, np.stack(square[1:])), plan))
    assert len(np.unique(labels)) > 1
    assert (labels == np.stack(found[1:])).mean() > 0.995


def test_a_phrase_is_asked_anew_of_every_frame(predictor, frames):
    tracker = VideoPredictor(predictor)
    tracker.add(1, text="the disc")
    for frame, got in zip(frames, tracker.run(frames), strict=True):
        predictor.set_image(frame)
        answer = predictor.predict(text="the disc")
        np.testing.assert_array_equal(got.masks, answer.masks)
        np.testing.assert_array_equal(got.scores, answer.scores)
        assert got.names == ("the disc",)


def test_a_reference_is_found_on_every_frame(predictor, frames):
    shown = predictor.reference([picture(seed=8)], [{"box": [5, 5, 30, 20]}])
    tracker = VideoPredictor(predictor)
    tracker.add(1, reference=shown)
    for frame, got in zip(frames, tracker.run(frames), strict=True):
        predictor.set_image(frame)
        np.testing.assert_array_equal(got.masks, predictor.predict(reference=shown).masks)


def test_a_pixel_goes_to_the_object_with_the_highest_probability(predictor, frames):
    clicks = {3: [20, 30], 1: [90, 60], 2: [100, 10]}
    tracker = VideoPredictor(predictor)
    for number, click in clicks.items():
        tracker.add(number, points=[click])
    (found,) = tracker.run(frames[:1])
    logits = np.stack([low(predictor, frames[0], Prompts(points=[c])) for c in clicks.values()])
    best = np.where(logits.max(0) > 0, logits.argmax(0), -1)
    np.testing.assert_array_equal(found.masks, best[None] == np.arange(3)[:, None, None])
    assert found.object_ids == (3, 1, 2)
    labels = found.label_map()
    for number, mask in zip(found.object_ids, found.masks, strict=True):
        np.testing.assert_array_equal(labels == number, mask)


def test_objects_come_and_go_without_touching_the_others(predictor, frames):
    alone = VideoPredictor(predictor)
    alone.add(1, text="the disc")
    want = list(alone.run(frames))
    tracker = VideoPredictor(predictor)
    tracker.add(1, text="the disc")
    got = []
    for each in tracker.run(frames):
        got.append(each)
        if each.index == 1:
            tracker.add(2, points=[[60, 40]])
            tracker.add(9, mask=half())
        if each.index == 3:
            tracker.remove(2)
    assert [each.object_ids for each in got] == [(1,)] * 2 + [(1, 2, 9)] * 2 + [(1, 9)] * 2
    np.testing.assert_array_equal(got[2].masks[2], half())  # given, so its own answer
    for one, other in zip(got, want, strict=True):
        assert one.scores[0] == other.scores[0]
        assert (one.masks[0] <= other.masks[0]).all()  # others may only take pixels away
        assert one.masks.sum(0).max() <= 1


def test_further_drawings_refine_an_object(predictor, frames):
    tracker = VideoPredictor(predictor)
    tracker.add(1, points=[[20, 30]])
    first = tracker.push(frames[0])
    tracker.add(1, points=[[100, 70]], point_labels=[0])
    tracker.add(1, scribble=[[10, 10], [30, 30]])
    second = tracker.push(frames[1])
    image = predictor.encode(frames[0])
    asked = Prompts(points=[[20, 30]])
    (answer,) = predictor.answer([(image, asked)])
    want = Prompts(
        points=[[100, 70]],
        point_labels=[0],
        scribble=[[10, 10], [30, 30]],
        reference=predictor.decoding.show(image, asked, located=True),
        memory=answer.memory,
    )
    np.testing.assert_array_equal(second.masks[0], low(predictor, frames[1], want) > 0)
    assert first.object_ids == second.object_ids == (1,)
    assert tracker.push(frames[2]).object_ids == (1,)


def test_below_the_threshold_a_mask_is_empty(predictor, frames):
    tracker = VideoPredictor(predictor, threshold=1.0)
    tracker.add(1, text="the disc")
    found = tracker.push(frames[0])
    assert found.scores[0] < 1 and not found.masks.any()
    with pytest.raises(ValueError, match="threshold"):
        VideoPredictor(predictor, threshold=2)


def test_frames_may_change_their_size_and_objects_may_be_missing(predictor):
    tracker = VideoPredictor(predictor)
    empty = tracker.push(picture(9, 7))
    assert empty.masks.shape == (0, 9, 7) and empty.object_ids == ()
    tracker.add(1, points=[[3, 3]])
    for number, size in enumerate([(50, 40), (64, 64), (1, 200)], 1):
        found = tracker.push(picture(*size))
        assert found.masks.shape == (1, *size) and found.index == number
    tracker.reset()
    assert tracker.object_ids == () and tracker.index == 0


def test_pictures_show_the_objects(predictor, frames):
    tracker = VideoPredictor(predictor)
    tracker.add(1, text="the disc")
    tracker.add(2, mask=half())
    found = tracker.push(frames[0])
    before = frames[0].copy()
    drawn = found.draw(frames[0])
    assert drawn.shape == frames[0].shape and (drawn != before).any()
    assert found.draw(frames[0], 300).shape == (200, 300, 3)
    np.testing.assert_array_equal(frames[0], before)
    with pytest.raises(ValueError, match="the frame of this answer"):
        found.draw(picture(9, 9))


BAD = {
    "nothing": ({}, "no prompt"),
    "labels alone": ({"point_labels": [1]}, "point_labels"),
    "text list": ({"text": ["a", "b"]}, "text"),
    "blank text": ({"text": " "}, "text"),
    "long text": ({"text": "word " * 80}, "text"),
    "reference": ({"reference": "x.npz"}, "reference"),
    "second text": ({"text": "bar"}, "text: object 5 has one"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_object_is_refused_when_it_is_added(predictor, name):
    tracker = VideoPredictor(predictor)
    tracker.add(5, text="disc")
    asked, named = BAD[name]
    with pytest.raises(ValueError, match=named):
        tracker.add(5, **asked)
    assert tracker.object_ids == (5,)


@pytest.mark.parametrize("number", [0, -1, 1.5, "1", None, True, 2**31, [1]])
def test_object_ids_are_whole_numbers_above_zero(predictor, number):
    tracker = VideoPredictor(predictor)
    with pytest.raises(ValueError, match="object_id"):
        tracker.add(number, points=[[1, 1]])
    with pytest.raises(ValueError, match="object_id"):
        tracker.remove(number)
    with pytest.raises(ValueError, match="object_id = 3: there is no such object"):
        tracker.remove(3)


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"points": [[500, 1]]}, "points"),
        ({"points": [[1, 1]], "point_labels": [0]}, "point_labels"),
        ({"box": [9, 9, 3, 3]}, "box"),
        ({"polygon": [[1, 1], [2, 2]]}, "polygon"),
        ({"scribble": [[1, 1], [2, 900]]}, "scribble"),
        ({"mask": np.ones((5, 5), bool)}, "mask"),
        ({"mask": np.zeros(SIZE, bool)}, "mask"),
    ],
)
def test_a_drawing_that_the_frame_cannot_take_is_forgotten(predictor, frames, asked, named):
    tracker = VideoPredictor(predictor)
    tracker.add(1, text="disc")
    tracker.add(2, **asked)
    with pytest.raises(ValueError, match=f"object 2: .*{named}"):
        tracker.push(frames[0])
    found = tracker.push(frames[0])
    assert found.index == 0 and found.object_ids == (1,)


def test_a_frame_that_is_none_changes_nothing(predictor, frames):
    tracker = VideoPredictor(predictor)
    tracker.add(1, points=[[3, 3]])
    for bad in (None, "x.jpg", frames[0].astype(float), frames[0][..., 0], frames[0][:0]):
        with pytest.raises(ValueError, match=r"^frame "):
            tracker.push(bad)
    assert tracker.push(frames[0]).index == 0


def play(tracker, count: int, every: int) -> list[int]:
    """Resident bytes after each `every` frames; then an object is added, or the oldest removed."""
    process, resident = psutil.Process(), []
    kinds = ({"points": [[20, 30]]}, {"text": "disc"}, {"mask": half()}, {"box": [5, 5, 90, 60]})

    def stream():
        for number in range(count):
            yield picture(*SIZE, seed=number % 7)

    tracker.add(1, **kinds[0])
    for found in tracker.run(stream()):
        number = found.index + 1
        assert found.object_ids == tracker.object_ids
        if number % every == 0:
            gc.collect()
            resident.append(process.memory_info().rss)
            turn = number // every
            if len(tracker.object_ids) == 3:
                tracker.remove(tracker.object_ids[0])
            else:
                tracker.add(turn + 1, **kinds[turn % len(kinds)])
    return resident


@pytest.mark.parametrize(
    ("count", "every"), [(300, 30), pytest.param(10_000, 500, marks=pytest.mark.slow)]
)
def test_memory_is_flat_while_objects_come_and_go(predictor, count, every):
    tracker = VideoPredictor(predictor)
    play(tracker, 8 * 5, 5)  # the allocators' own beginnings, and every kind of object once
    tracker.reset()
    gc.collect()
    device, before = sum(a.nbytes for a in jax.live_arrays()), len(compilations)
    resident = play(tracker, count, every)
    half_way = len(resident) // 2
    assert max(resident) <= 1.02 * min(resident), [n >> 20 for n in resident]
    assert np.mean(resident[half_way:]) <= 1.01 * np.mean(resident[:half_way])
    assert len(compilations) == before
    tracker.reset()
    gc.collect()
    assert sum(a.nbytes for a in jax.live_arrays()) == device
