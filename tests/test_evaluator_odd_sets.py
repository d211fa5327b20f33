"""Sets without truth, things or stuff have numbers; records that are damaged are named."""

from __future__ import annotations

import dataclasses
import math

import cv2
import numpy as np
import pytest

from seem_jax.evaluation import evaluator, report
from seem_jax.evaluation.tasks import base
from tests.evaluation_support import Oracle, only, setting

__all__ = ["setting"]  # a fixture


@pytest.mark.parametrize("missing", ["truth", "things"])
def test_a_set_without_truth_or_without_things_has_numbers(setting, tmp_path, missing):
    config, params, split = setting
    if missing == "truth":
        bare = {"segment_id": [], "segment_category": [], "segment_crowd": []}
        empty = cv2.imencode(".png", np.zeros((32, 64), np.uint8))[1].tobytes()
        split.records = [dataclasses.replace(split.records[1], segment_map=empty, **bare)]
    else:
        split.num_things = 0
    tasks = ("panoptic", "instance", "semantic", "interactive")
    got = evaluator.run(Oracle(), params, only(config, *tasks), workdir=tmp_path)
    assert math.isnan(got["instance/ap"])
    assert math.isnan(got["interactive/click/noc@90"])
    assert got["interactive/click/objects"] == 0
    assert math.isnan(got["semantic/miou"]) == (missing == "truth")
    if missing == "things":
        assert math.isnan(got["panoptic/pq_things"])
        assert got["panoptic/pq"] == got["panoptic/pq_stuff"] > 0


def test_a_set_without_stuff_and_answers_without_a_segment_have_numbers(setting, tmp_path):
    config, params, split = setting
    config = only(config, "panoptic", calibrate=True)
    split.num_things = 4
    got = evaluator.run(Oracle(), params, config, workdir=tmp_path / "things")
    assert math.isnan(got["panoptic/pq_stuff"])
    assert got["panoptic/pq"] == got["panoptic/pq_things"] > 0
    assert math.isfinite(got["panoptic/temperature"])
    config.evaluation.object_threshold = 1.0  # nothing is surer than that
    got = evaluator.run(Oracle(), params, config, workdir=tmp_path / "nothing")
    assert got["panoptic/pq"] == got["panoptic/rq"] == 0
    undefined = (
        "ece",
        "risk",
        "temperature",
        "ece_before",
        "ece_after",
        "nll_after",
        "ece_perfect",
    )
    assert all(math.isnan(got[f"panoptic/{key}"]) for key in undefined)
    report.write(tmp_path / "nothing", config, got)  # NaN everywhere is no reason to fail
    assert "&ndash;" in (tmp_path / "nothing" / "report.html").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segment_map": b"nothing"}, "its segment map .*is not an image"),
        ({"segment_map": b""}, "it has no segment map"),
        (
            {"segment_map": cv2.imencode(".png", np.ones((8, 9), np.uint8))[1].tobytes()},
            r"\(8, 9\)",
        ),
    ],
)
def test_a_damaged_segment_map_is_named(setting, tmp_path, change, message):
    """By data set, number and file, in every task that reads it."""
    config, params, split = setting
    split.records[1] = dataclasses.replace(split.records[1], **change)
    split.records[:] = [
        dataclasses.replace(record, sequence="all", frame=number)
        for number, record in enumerate(split.records)
    ]
    context = base.Context(Oracle(), only(config, "panoptic", batch_size=1))
    for task in (
        evaluator.Panoptic(context, "fake:val"),
        evaluator.Semantic(context, "fake:val"),
        evaluator.Instances(context, "fake:val"),
        evaluator.Interactive(context, "fake:val"),
        evaluator.Video(context, "fake:val"),
    ):
        with pytest.raises(ValueError, match=rf"shapes_fake:val, record 1 \(1\.png\): .*{message}"):
            list(task.answers(params, [[0] if task.count() == 1 else [1]]))
