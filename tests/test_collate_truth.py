"""Truth that cannot be is refused when an example is made of it."""

import dataclasses

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from seem_jax.data import collate
from seem_jax.data.schema import run_pixels
from seem_jax.evaluation import truth
from tests.pipeline_support import CONFIG, SIZE, FakeRecords, FakeTokenizer, batches_of, record

BAD = {
    "covers 4 pixels of": lambda r: r.object_rle.__setitem__(0, b"04"),
    "covers -1 pixels of": lambda r: r.object_rle.__setitem__(0, b"\xff"),
    "has classes from 0 to 77, but there are 5": lambda r: r.segment_category.append(77),
    "sentence 0 of .* is empty": lambda r: r.phrase_text.__setitem__(0, " "),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_truth_is_refused_by_name(message):
    bad = record(0)
    BAD[message](bad)
    if message.startswith("covers"):
        bad.phrase_object = [0] * len(bad.phrase_object)
    rng = np.random.default_rng(0)
    names = [f"class {number}" for number in range(5)]
    with pytest.raises(ValueError, match=message):
        collate.training_example(bad, 0, names, ("{}",), CONFIG, FakeTokenizer(), rng)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("height", SIZE + 1, r"3\.png is \(48, 48\).*\(49, 48\)"),
        ("segment_id", [1, 2, 3], "holds segment 6, its table only 3"),
        ("segment_map", b"junk", r"segments of 3\.png"),
    ],
)
def test_truth_that_does_not_fit_its_image_is_refused(field, value, message):
    broken = dataclasses.replace(record(3), **{field: value})
    with pytest.raises(ValueError, match=message):
        batches_of(count=1, splits=(FakeRecords([broken]),))


def test_evaluation_refuses_a_damaged_mask_before_it_is_decoded():
    """pycocotools writes outside its memory where a code is longer than its mask."""
    good, bad = record(0), record(0)
    assert truth.object_mask(good, 0).sum() > 0 and not truth.ignored(good).any()
    bad.object_rle[0], bad.ignore_rle = b"04", [bad.object_rle[1], b"\xff"]
    with pytest.raises(ValueError, match=r"object 0 of 0\.png covers 4 pixels of"):
        truth.object_mask(bad, 0)
    with pytest.raises(ValueError, match=r"ignored region 1 of 0\.png covers -1 pixels of"):
        truth.ignored(bad)


def test_the_length_of_a_run_length_code_is_that_of_its_mask():
    rng = np.random.default_rng(0)
    for _ in range(200):
        height, width = rng.integers(1, 60, 2)
        mask = np.asfortranarray(rng.random((height, width)) < rng.random(), np.uint8)
        code = coco_mask.encode(mask)["counts"]
        assert run_pixels(code) == height * width
        if len(code) > 2:
            assert run_pixels(code[:-1]) != height * width
