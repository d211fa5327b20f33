"""Bad calls: each is a ValueError that names the argument, and leaves the predictor as it was."""

from __future__ import annotations

import numpy as np
import pytest

from seem_jax.predictor import MaskMemory, Prompts
from tests.predictor_support import picture, tiny_predictor

HEIGHT, WIDTH = 80, 120


@pytest.fixture(scope="module")
def predictor():
    made = tiny_predictor()
    # What is checked here fails before any program runs; an encoded image is all that is needed.
    made.set_image(picture(HEIGHT, WIDTH))
    return made


IMAGES = {
    "a list": [[[0, 0, 0]]],
    "none": None,
    "a path": "photo.jpg",
    "float": np.zeros((8, 8, 3), np.float32),
    "int64": np.zeros((8, 8, 3), np.int64),
    "bool": np.zeros((8, 8, 3), bool),
    "grey": np.zeros((8, 8), np.uint8),
    "one channel": np.zeros((8, 8, 1), np.uint8),
    "alpha": np.zeros((8, 8, 4), np.uint8),
    "channels first": np.zeros((3, 8, 8), np.uint8),
    "batch": np.zeros((1, 8, 8, 3), np.uint8),
    "no rows": np.zeros((0, 8, 3), np.uint8),
    "no columns": np.zeros((8, 0, 3), np.uint8),
    "too large": np.broadcast_to(np.zeros(3, np.uint8), (9000, 9000, 3)),
}


@pytest.mark.parametrize("name", IMAGES)
def test_a_bad_image_is_refused(predictor, name):
    with pytest.raises(ValueError, match=r"^image "):
        predictor.set_image(IMAGES[name])
    with pytest.raises(ValueError, match=r"^images\[0\]"):
        predictor.predict_batch([IMAGES[name]], [{"points": [0, 0]}])


BAD = [
    ({}, "no prompt"),
    ({"points": []}, "points"),
    ({"points": [[1]]}, "points"),
    ({"points": [[1, 2, 3]]}, "points"),
    ({"points": [[1, 2], [3]]}, "points"),
    ({"points": [[[1, 2]]]}, "points"),
    ({"points": [[np.nan, 2]]}, "points"),
    ({"points": [[np.inf, 2]]}, "points"),
    ({"points": [[-1, 2]]}, "points"),
    ({"points": [[WIDTH, 2]]}, "points"),
    ({"points": [[HEIGHT + 1, WIDTH - 1]]}, "points"),  # as (row, column)
    ({"points": [["a", "b"]]}, "points"),
    ({"points": [[None, 2]]}, "points"),
    ({"points": [[True, False]]}, "points"),
    ({"points": [[1j, 2]]}, "points"),
    ({"points": 3}, "points"),
    ({"points": "1,2"}, "points"),
    ({"points": {"x": 1, "y": 2}}, "points"),
    ({"points": [[1, 2]], "point_labels": [1, 0]}, "point_labels"),
    ({"points": [[1, 2]], "point_labels": [2]}, "point_labels"),
    ({"points": [[1, 2]], "point_labels": [-1]}, "point_labels"),
    ({"points": [[1, 2]], "point_labels": [np.nan]}, "point_labels"),
    ({"points": [[1, 2]], "point_labels": ["yes"]}, "point_labels"),
    ({"points": [[1, 2]], "point_labels": [[1], [1]]}, "point_labels"),
    ({"points": [[1, 2]], "point_labels": [0]}, "point_labels"),  # says only what it is not
    ({"point_labels": [1]}, "point_labels"),
    ({"box": [10, 10, 5, 20]}, "box"),
    ({"box": [10, 10, 10, 20]}, "box"),
    ({"box": [0, 0, WIDTH + 1, 5]}, "box"),
    ({"box": [-1, 0, 5, 5]}, "box"),
    ({"box": [0, 0, HEIGHT, WIDTH]}, "box"),  # height and width exchanged
    ({"box": [1, 2, 3]}, "box"),
    ({"box": [[1, 2, 3, 4, 5]]}, "box"),
    ({"box": [0, 0, np.nan, 5]}, "box"),
    ({"box": []}, "box"),
    ({"box": "0,0,5,5"}, "box"),
    ({"polygon": []}, "polygon"),
    ({"polygon": [[1, 1], [2, 2]]}, "polygon"),
    ({"polygon": [[1, 1], [2, 2], [1, 1]]}, "polygon"),
    ({"polygon": [[1, 1], [2, 2], [500, 1]]}, "polygon"),
    ({"polygon": [[1, 1], [2, 2], [np.nan, 1]]}, "polygon"),
    ({"polygon": [1, 2, 3, 4, 5, 6]}, "polygon"),
    ({"polygon": [[]]}, "polygon"),
    ({"polygon": 5}, "polygon"),
    ({"scribble": []}, "scribble"),
    ({"scribble": np.zeros((0, 2))}, "scribble"),
    ({"scribble": [[1, 1], [2, np.inf]]}, "scribble"),
    ({"scribble": [[1, 1], [2, 900]]}, "scribble"),
    ({"scribble": np.zeros((HEIGHT, WIDTH), bool)}, "scribble"),
    ({"scribble": np.ones((WIDTH, HEIGHT), bool)}, "scribble"),
    ({"scribble": [[1, 1], [2, 2]], "scribble_labels": [1, 1]}, "scribble_labels"),
    ({"scribble_labels": [1]}, "scribble_labels"),
    ({"mask": np.zeros((HEIGHT, WIDTH), bool)}, "mask"),
    ({"mask": np.ones((WIDTH, HEIGHT), bool)}, "mask"),
    ({"mask": np.ones((HEIGHT, WIDTH, 1), bool)}, "mask"),
    ({"mask": np.full((HEIGHT, WIDTH), 0.5)}, "mask"),
    ({"mask": np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)}, "mask"),
    ({"mask": np.full((HEIGHT, WIDTH), np.nan)}, "mask"),
    ({"mask": "mask.png"}, "mask"),
    ({"text": ""}, "text"),
    ({"text": "  \n"}, "text"),
    ({"text": []}, "text"),
    ({"text": ["fine", ""]}, "text"),
    ({"text": 5}, "text"),
    ({"text": ["a", 5]}, "text"),
    ({"text": b"bytes"}, "text"),
    ({"text": "word " * 80}, "text"),
    ({"text": "\ud800"}, "text"),
    ({"reference": "file.npz"}, "reference"),
    ({"memory": np.zeros(32)}, "memory"),
    ({"memory": MaskMemory(np.zeros(5, np.float32))}, "memory"),
    ({"memory": MaskMemory(np.full(32, np.nan, np.float32))}, "memory"),
    ({"memory": MaskMemory(None)}, "memory"),
    ({"points": [1, 1], "top_k": 0}, "top_k"),
    ({"points": [1, 1], "top_k": 17}, "top_k"),
    ({"points": [1, 1], "top_k": 1.5}, "top_k"),
    ({"points": [1, 1], "top_k": True}, "top_k"),
    ({"points": [1, 1], "threshold": 1.5}, "threshold"),
    ({"points": [1, 1], "threshold": np.nan}, "threshold"),
    ({"points": [1, 1], "threshold": "0.5"}, "threshold"),
    ({"points": [1, 1], "threshold": None}, "threshold"),
    ({"points": [1, 1], "classes": "cat"}, "classes"),
    ({"points": [1, 1], "classes": []}, "classes"),
    ({"points": [1, 1], "classes": ["cat", "cat"]}, "classes"),
    ({"points": [1, 1], "classes": ["cat", ""]}, "classes"),
    ({"points": [1, 1], "classes": ["cat", 3]}, "classes"),
    ({"points": [1, 1], "classes": ["-other"]}, "classes"),
    ({"points": [1, 1], "classes": ["background"]}, "classes"),
    ({"points": [1, 1], "classes": {"cat": 1}}, "classes"),
    ({"points": [1, 1], "classes": ["word " * 80]}, "classes"),
]


@pytest.mark.parametrize(
    ("call", "named"), BAD, ids=[f"{n}-{named}" for n, (_, named) in enumerate(BAD)]
)
def test_a_bad_call_names_its_argument(predictor, call, named):
    image = predictor.image
    with pytest.raises(ValueError, match=named):
        predictor.predict(**call)
    assert predictor.image is image


def test_a_call_without_an_image_says_what_to_do():
    empty = tiny_predictor()
    for call in (lambda: empty.predict(points=[1, 1]), empty.panoptic, empty.semantic):
        with pytest.raises(ValueError, match="call set_image"):
            call()


def test_bad_batches_name_the_entry(predictor):
    image = picture()
    for prompts, named in (
        ([], "1 images were given with 0 prompts"),
        (None, "a NoneType prompts"),
        ([5], r"prompts\[0\]"),
        ([[5]], r"prompts\[0\]"),
        (["text"], r"prompts\[0\]"),
        ([{"point": [1, 1]}], r"prompts\[0\] has \['point'\]"),
        ([Prompts()], "no prompt"),
    ):
        with pytest.raises(ValueError, match=named):
            predictor.predict_batch([image], prompts)


def test_a_reference_needs_a_positive_drawing(predictor):
    image = picture()
    for images, prompts, named in (
        ([], [], "at least one image"),
        ([image], [], "with 0 prompts"),
        ([image], [{"text": "a"}], r"prompts\[0\] of a reference has a text"),
        ([image], [{}], "no prompt"),
        ([image], [{"points": [1, 1], "point_labels": [0]}], "no positive point"),
        ([image[..., :1]], [{"points": [1, 1]}], r"images\[0\]"),
        ([image], [[{"points": [1, 1]}] * 2], r"prompts\[0\]"),
    ):
        with pytest.raises(ValueError, match=named):
            predictor.reference(images, prompts)


def test_vocabularies_are_checked(predictor):
    for call, named in (
        (lambda: predictor.panoptic("cat"), "classes"),
        (lambda: predictor.panoptic(["cat"], ["cat"]), "classes"),
        (lambda: predictor.panoptic(["cat"], "sky"), "stuff"),
        (lambda: predictor.panoptic(["cat"], 5), "stuff"),
        (lambda: predictor.panoptic(5), "classes"),
        (lambda: predictor.panoptic(threshold=2), "threshold"),
        (lambda: predictor.panoptic(overlap=-1), "overlap"),
        (lambda: predictor.instances(top_k=101), "top_k"),
        (lambda: predictor.semantic([]), "classes"),
    ):
        with pytest.raises(ValueError, match=named):
            call()


@pytest.mark.parametrize("side", [0, -64, 63])
def test_the_side_of_the_models_image_is_a_positive_multiple(side):
    with pytest.raises(ValueError, match=f"image_size = {side}; expected a positive multiple"):
        tiny_predictor(image_size=side)
