"""Random prompts: whatever is asked, answers are sound, and neither padding nor company changes them."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax import monitoring

from seem_jax.predictor import Prompts
from seem_jax.predictor.programs import MAX_ANSWERS, MAX_POINTS, POINTS
from tests.predictor_support import CLASSES, picture, same, tiny_predictor

SIZES = ((1, 1), (1, 150), (149, 2), (64, 64), (80, 120), (131, 77), (7, 9), (100, 101))
WORDS = ("disc", "the red bar", "é", "🦊", "שלום", "a\0b", "x" * 300, "  two  words ")
compilations: list[str] = []


def note(event: str, duration: float, **_) -> None:
    """Remembers every program that XLA compiles."""
    if event == "/jax/core/compile/backend_compile_duration":
        compilations.append(event)


@functools.cache
def predictor():
    monitoring.register_event_duration_secs_listener(note)
    made = tiny_predictor()
    made.warm_up()
    encoded(made, (7, 9), 5)
    return made


@functools.cache
def encoded(made, size, seed):
    return made.encode(picture(*size, seed=seed))


@functools.cache
def shown(made):
    return made.reference([picture(seed=8)], [{"box": [5, 5, 30, 20]}])


@functools.cache
def remembered(made, size, seed):
    question = (encoded(made, size, seed), Prompts(points=[[0, 0]]))
    return made.answer([question])[0].memory


@st.composite
def questions(draw):
    """(size, seed of the image, fields of `Prompts`): any mix of prompts, at any place of an image."""
    made = predictor()
    size, seed = draw(st.sampled_from(SIZES)), draw(st.integers(0, 1))
    height, width = size
    below = {"exclude_max": True, "allow_nan": False, "width": 32}
    x, y = st.floats(0, width, **below), st.floats(0, height, **below)
    places = st.lists(st.tuples(x, y), min_size=1, max_size=draw(st.sampled_from([1, 5, 80])))

    def box():
        x0, y0 = draw(x), draw(y)
        share = st.floats(0.01, 1)
        x1, y1 = x0 + draw(share) * (width - x0), y0 + draw(share) * (height - y0)
        return [x0, y0, max(x1, np.nextafter(x0, np.inf)), max(y1, np.nextafter(y0, np.inf))]

    def mask():
        rng = np.random.default_rng(draw(st.integers(0, 99)))
        out = rng.random(size) < draw(st.floats(0, 1))
        out[rng.integers(height), rng.integers(width)] = True
        return out

    def polygon():
        corners = st.tuples(st.floats(0, width), st.floats(0, height))
        return draw(st.lists(corners, min_size=3, max_size=9, unique=True))

    makers = {
        "points": lambda: draw(places),
        "box": box,
        "scribble": lambda: draw(places),
        "polygon": polygon,
        "mask": mask,
        "text": lambda: draw(st.sampled_from(WORDS)),
        "reference": lambda: shown(made),
        "memory": lambda: remembered(made, size, seed),
    }
    kinds = draw(st.lists(st.sampled_from(sorted(makers)), min_size=1, max_size=8, unique=True))
    asked = {kind: makers[kind]() for kind in kinds}
    if "points" in asked:
        count = len(asked["points"])
        asked["point_labels"] = [
            True,
            *draw(st.lists(st.booleans(), min_size=count - 1, max_size=count - 1)),
        ]
    return size, seed, asked


def check(question, mate, top_k):
    """The invariants of one question, alone and beside another one."""
    made = predictor()
    size, seed, asked = question
    image, asked = encoded(made, size, seed), Prompts(**asked)
    (alone,) = made.answer([(image, asked)], top_k=top_k)
    before = len(compilations)
    assert alone.masks.dtype == bool and alone.masks.shape == (len(alone), *size)
    assert 1 <= len(alone) <= top_k
    for share in (alone.scores, alone.quality):
        assert np.isfinite(share).all() and (share >= 0).all() and (share <= 1).all()
    assert np.isfinite(alone.logits).all() and (np.diff(alone.scores) <= 0).all()
    other = (encoded(made, mate[0], mate[1]), Prompts(**mate[2]))
    same(made.answer([other, (image, asked), other], top_k=top_k)[1], alone)
    drawn = made.decoding.draw(asked, image.placement)
    if not drawn.valid[POINTS[0] :].any():  # the same with more padding
        row = made.decoding.row(image, asked, drawn, asked.text)
        more = {
            name: np.concatenate(
                [value, np.zeros((MAX_POINTS - len(value), *value.shape[1:]), value.dtype)]
            )
            for name, value in (
                ("points", row.points),
                ("positive", row.positive),
                ("valid", row.valid),
            )
        }
        rows = jax.tree.map(lambda leaf: np.asarray(leaf)[None], row.replace(**more))
        padded = jax.device_get(made.programs.answer(made.params, (image.features,), rows))
        np.testing.assert_allclose(padded.logits[0, 0], alone.logits[0], atol=2e-3, rtol=2e-3)
        np.testing.assert_allclose(padded.score[0, 0], alone.scores[0], atol=1e-4)
    assert len(compilations) == before


def search(number: int):
    return settings(
        max_examples=number,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


random_questions = given(questions(), questions(), st.integers(1, MAX_ANSWERS))


@search(100)
@random_questions
def test_random_questions_are_answered_soundly(question, mate, top_k):
    check(question, mate, top_k)


@pytest.mark.slow
@search(10_000)
@random_questions
def test_ten_thousand_random_questions_are(question, mate, top_k):
    check(question, mate, top_k)


def request(made, turn: int, rng: np.random.Generator) -> None:
    """One of many kinds of calls on the current image, of random numbers of everything."""
    height, width = made.image.size
    points = np.floor(rng.random((int(rng.integers(1, 70)), 2)) * [width, height])
    few, several = points[:1], int(rng.integers(1, 4))
    kinds = (
        lambda: made.predict(points=points, top_k=int(rng.integers(1, 17))),
        lambda: made.predict(text=["disc"] * several, points=few),
        lambda: made.predict(mask=np.ones(made.image.size, bool), classes=CLASSES[:several]),
        lambda: made.predict(reference=shown(made), scribble=points, text="bar"),
        lambda: made.panoptic([f"name {n}" for n in range(several)]),
        lambda: made.instances(["disc"], top_k=3),
        lambda: made.semantic(),
        lambda: made.predict_batch([picture(9, 9)] * several, [{"points": [1, 1]}] * several),
        lambda: made.reference([picture(9, 30)], [{"points": few * 0}]),
    )
    kinds[turn % len(kinds)]()


@pytest.mark.parametrize("number", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_mixed_requests_compile_nothing(number):
    made, rng = predictor(), np.random.default_rng(0)
    before = len(compilations)
    for turn in range(number):
        if turn % 5 == 0:
            made.set_image(picture(*rng.integers(1, 200, 2).tolist(), seed=turn))
        request(made, turn, rng)
    assert len(compilations) == before


def test_odd_but_lawful_inputs_are_answered():
    made = predictor()
    frozen = picture()
    frozen.flags.writeable = False
    for image in (picture()[::-1, ::2], frozen, picture(1, 1), np.zeros((4000, 8192, 3), np.uint8)):
        height, width = image.shape[:2]
        made.set_image(image)
        last = [width - 1, height - 1]
        whole = np.full((height, width), 255, np.uint8)
        for asked in (
            {"points": np.zeros((1000, 2), np.int8)},
            {"points": [last, last], "point_labels": [1, 0]},  # both of it and not of it
            {"points": np.array([[0, 0]], np.uint8), "point_labels": np.array([True])},
            {"box": (0, 0, width, height), "text": "disc"},
            {"polygon": [[0, 0], [width, height], [width, 0], [0, height]]},  # crosses itself
            {"mask": whole},
        ):
            answer = made.predict(**asked, top_k=2)
            assert answer.masks.shape[1:] == (height, width)
            assert np.isfinite(answer.logits).all() and np.isfinite(answer.scores).all()
    made.reset_image()
