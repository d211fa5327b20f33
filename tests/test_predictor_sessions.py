"""Sessions: what stands decides, whatever came before, whoever else is there."""

from __future__ import annotations

import gc

import jax
import numpy as np
import pytest

from seem_jax.predictor import SessionPool
from tests.predictor_support import picture, same, tiny_predictor


@pytest.fixture(scope="module")
def predictor():
    return tiny_predictor()


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_session_gives_what_predict_gives(predictor):
    image = picture()
    session = predictor.session(image)
    session.add_point(20, 30)
    session.add_point(90, 60, positive=False)
    session.add_box([5, 5, 40, 50])
    session.add_scribble([[10, 10], [30, 20]])
    session.add_scribble([[80, 70], [110, 70]], positive=False)
    session.add_polygon([[5, 5], [50, 5], [20, 60]])
    mask = np.zeros(image.shape[:2], bool)
    mask[10:20, 10:20] = True
    session.add_mask(mask)
    session.add_text("the disc")
    got = session.predict(top_k=2)
    predictor.set_image(image)
    same(
        got,
        predictor.predict(
            points=[[20, 30], [90, 60]],
            point_labels=[1, 0],
            box=[5, 5, 40, 50],
            scribble=[[[10, 10], [30, 20]], [[80, 70], [110, 70]]],
            scribble_labels=[1, 0],
            polygon=[[5, 5], [50, 5], [20, 60]],
            mask=mask,
            text="the disc",
            top_k=2,
        ),
    )


def test_memory_is_carried_and_undone_rounds_are_forgotten(predictor):
    image = picture()
    session = predictor.session(image)
    session.add_point(20, 30)
    first = session.predict()
    wrong = session.add_point(90, 60)
    session.predict()
    session.undo()
    same(session.predict(), first)
    session.add_point(40, 40)
    second = session.predict()
    predictor.set_image(image)
    points = [[20, 30], [40, 40]]
    same(second, predictor.predict(points=points, memory=first.memory))
    assert not np.array_equal(second.logits, predictor.predict(points=points).logits)
    with pytest.raises(ValueError, match=f"number = {wrong}"):
        session.undo(wrong)


def test_prompts_may_be_undone_in_any_order(predictor):
    image = picture()
    session, plain = predictor.session(image), predictor.session(image)
    numbers = [session.add_point(10 * k + 3, 7 * k + 2) for k in range(5)]
    text = session.add_text("disc")
    for number in (numbers[1], text, numbers[3], numbers[0]):
        session.undo(number)
    assert session.actions == (numbers[2], numbers[4])
    for k in (4, 2):
        plain.add_point(10 * k + 3, 7 * k + 2)
    same(session.predict(), plain.predict())
    session.reset()
    with pytest.raises(ValueError, match="no prompt"):
        session.predict()
    with pytest.raises(ValueError, match="no such prompt"):
        session.undo()


def test_a_bad_prompt_is_refused_when_it_is_added(predictor):
    session = predictor.session(picture())
    for bad, named in (
        (lambda: session.add_point(1000, 1), "points"),
        (lambda: session.add_point(float("nan"), 1), "points"),
        (lambda: session.add_box([5, 5, 5, 5]), "box"),
        (lambda: session.add_text(" "), "text"),
        (lambda: session.add_text(["a", "b"]), "text"),
        (lambda: session.add_mask(np.zeros((80, 120), bool)), "mask"),
        (lambda: session.add_reference("x"), "reference"),
    ):
        with pytest.raises(ValueError, match=named):
            bad()
    assert session.actions == ()
    session.add_text("one")
    with pytest.raises(ValueError, match="text: the session has one"):
        session.add_text("two")


def play(seed: int, turns: int):
    """The actions of one user, the same for the same seed."""
    rng = np.random.default_rng(seed)
    for _ in range(turns):
        yield rng.random(), rng.integers(0, 120), rng.integers(0, 80)


def act(session, choice, x, y) -> None:
    if choice < 0.2 and len(session.actions) > 1:
        session.undo()
    else:
        session.add_point(int(x), int(y), positive=choice < 0.8 or not session.actions)


@pytest.mark.parametrize(
    ("count", "turns"), [(10, 4), pytest.param(200, 50, marks=pytest.mark.slow)]
)
def test_users_of_a_pool_get_what_they_get_alone(predictor, count, turns):
    image_of = [picture(seed=seed % 5) for seed in range(count)]
    solo = []
    for seed in range(count):
        session = predictor.session(image_of[seed])
        answers = []
        for move in play(seed, turns):
            act(session, *move)
            answers.append(session.predict())
        solo.append(answers)
    one = predictor.encode(image_of[0]).nbytes
    gc.collect()
    held = sum(array.nbytes for array in jax.live_arrays())
    pool = SessionPool(predictor, max_bytes=int(2.5 * one))
    sessions = [pool.open(image) for image in image_of]
    moves = [list(play(seed, turns)) for seed in range(count)]
    for turn in range(turns):
        order = np.random.default_rng(turn).permutation(count)
        for part in np.array_split(order, 3):
            for user in part:
                act(sessions[user], *moves[user][turn])
            answers = pool.predict([sessions[user] for user in part])
            for user, answer in zip(part, answers, strict=True):
                same(answer, solo[user][turn])
            assert pool.nbytes <= pool.max_bytes
    for session in sessions:
        pool.close(session)
    assert pool.nbytes == 0 and len(pool) == 0
    del session, sessions
    gc.collect()
    assert sum(array.nbytes for array in jax.live_arrays()) == held


def test_a_round_of_many_images_holds_no_more_than_it_may(predictor, monkeypatch):
    one = predictor.encode(picture()).nbytes
    pool = SessionPool(predictor, max_bytes=int(2.5 * one))
    sessions = [pool.open(picture(seed=seed)) for seed in range(6)]
    for number, session in enumerate(sessions):
        session.add_point(10 + number, 20)
    held, answer = [], predictor.answer

    def counted(questions, **options):
        held.append(len({id(image) for image, _ in questions}))
        return answer(questions, **options)

    monkeypatch.setattr(predictor, "answer", counted)
    got = pool.predict(sessions)
    assert sum(held) == 6 and max(held) == 2
    monkeypatch.undo()
    for number, prediction in enumerate(got):
        predictor.set_image(picture(seed=number))
        same(prediction, predictor.predict(points=[[10 + number, 20]]))
    predictor.reset_image()


def test_a_session_ends_when_nobody_uses_it(predictor):
    clock = Clock()
    pool = SessionPool(predictor, time_to_live=10, clock=clock)
    left, used = pool.open(picture(seed=1)), pool.open(picture(seed=2))
    for session in (left, used):
        session.add_point(3, 3)
    clock.now = 8.0
    pool.predict([used])
    clock.now = 15.0
    pool.sweep()
    assert len(pool) == 1
    with pytest.raises(ValueError, match="ended"):
        pool.predict([left])
    with pytest.raises(ValueError, match="ended"):
        left.predict()
    pool.predict([used])
    clock.now = 100.0
    pool.sweep()
    assert pool.nbytes == 0 and len(pool) == 0


def test_one_bad_session_of_a_round_is_named_before_anything_happens(predictor):
    pool = predictor.pool()
    good, bare = pool.open(picture()), pool.open(picture())
    good.add_point(3, 3)
    with pytest.raises(ValueError, match="the session has no prompt"):
        pool.predict([good, bare])
    with pytest.raises(ValueError, match="holds one twice"):
        pool.predict([good, good])
    assert good.actions == (1,)
