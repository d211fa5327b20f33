"""The whole evaluation with a model that knows the answer: every decision must be right."""

from __future__ import annotations

import dataclasses
import json

import cv2
import numpy as np
import pytest

from seem_jax.evaluation import evaluator, results
from seem_jax.evaluation.tasks import base
from tests.evaluation_support import Oracle, only, record, setting

__all__ = ["setting"]  # a fixture


def test_right_answers_are_counted_as_right(setting, tmp_path):
    config, params, _ = setting
    got = evaluator.run(Oracle(), params, config, workdir=tmp_path)
    # Bilinear masks round the corners of the blocks, so areas are not perfect, but decisions are.
    exact = [key for key in got if "/rq" in key or "/p@" in key]
    assert len(exact) == 3 + 3 * 5
    assert {key: got[key] for key in exact} == pytest.approx(dict.fromkeys(exact, 100.0))
    high = [key for key in got if key.endswith(("pq", "sq", "ciou", "miou", "iou@1", "iou@3"))]
    assert min(got[key] for key in high) > 97
    assert {got[f"interactive/click/noc@{t}"] for t in (50, 80, 85, 90)} == {1.0}
    assert got["panoptic/risk"] == 0.0
    for key in ("panoptic/pq_things", "referring/text+click/ciou", "referring/unseen/p@0.5"):
        assert key in got
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    tasks = ("panoptic", "referring", "referring_unseen", "interactive_click")
    assert names == {f"{task}.png" for task in tasks}
    sheet = cv2.imread(str(tmp_path / "pictures" / "interactive_click.png"))
    assert sheet.shape[1] == 10 + 4 * 266
    assert sheet.std() > 10


def test_the_other_tasks_of_a_model_that_knows_the_answer(setting, tmp_path):
    config, params, _ = setting
    config = only(config, "instance", "semantic", "referring", referring_ways=("click",))
    got = evaluator.run(Oracle(), params, config, workdir=tmp_path)
    assert got["instance/ap50"] == pytest.approx(100)
    assert got["semantic/miou"] == got["semantic/miou_true"] > 97
    assert got["referring/ciou"] > 97  # one way alone needs no name
    header, _ = results.read(tmp_path / "samples" / "semantic.jsonl")
    assert header["protocol"]["metric"].startswith("SEEM SemSegEvaluator")


@pytest.mark.parametrize(
    "kind", ["circle", *(pytest.param(k, marks=pytest.mark.slow) for k in ("polygon", "box"))]
)
def test_other_first_prompts_and_the_other_user(setting, tmp_path, kind):
    config, params, _ = setting
    config = only(config, "interactive", first_prompts=(kind,), ritm=kind == "circle")
    got = evaluator.run(Oracle(), params, config, workdir=tmp_path)
    for name in (kind, "ritm/click")[: 1 + (kind == "circle")]:
        assert got[f"interactive/{name}/noc@90"] == 1.0
        assert got[f"interactive/{name}/objects"] > 10


def test_an_answer_of_the_second_round_counts_two_clicks(setting, tmp_path):
    config, params, _ = setting
    got = evaluator.run(Oracle(late=True), params, only(config, "interactive"), workdir=tmp_path)
    assert set(got) == {key for key in got if key.startswith("interactive/click/")}
    assert got["interactive/click/noc@85"] == got["interactive/click/noc@90"] == 2.0
    assert got["interactive/click/iou@1"] < 1
    assert got["interactive/click/iou@2"] == got["interactive/click/iou@3"] > 97


def test_a_video_is_followed_from_its_first_frame(setting, tmp_path):
    config, params, split = setting
    split.records = [
        dataclasses.replace(record(5, 64, 64, 8), sequence=name, frame=frame)
        for name, frames in (("a", 5), ("b", 3))
        for frame in range(frames)
    ]
    got = evaluator.run(Oracle(), params, only(config, "video"), workdir=tmp_path)
    assert got["video/j"] > 97
    assert got["video/f"] == pytest.approx(100)
    assert got["video/objects"] == 2 * 7
    _, found = results.read(tmp_path / "samples" / "video.jsonl")
    assert [np.shape(result["region"]) for result in found] == [(7, 3), (7, 1)]
    assert "video/click/j&f" in got


def test_single_images_are_no_video(setting, tmp_path):
    config, params, _ = setting
    with pytest.raises(ValueError, match=r"record 0 \(.*\) is of no sequence; video needs"):
        evaluator.run(Oracle(), params, only(config, "video"), workdir=tmp_path)


def test_evaluating_again_compiles_nothing(setting, tmp_path):
    config, params, _ = setting
    runner = evaluator.Evaluator(Oracle(), config)
    first = runner.run(params, workdir=tmp_path)
    programs = [runner.tasks[-1].encode, runner.tasks[-1].advance]
    sizes = [program._cache_size() for program in programs]
    again = runner.run(params, workdir=tmp_path)
    assert again == first
    assert sizes == [program._cache_size() for program in programs]


def test_a_vocabulary_gives_names_and_must_be_complete(setting, tmp_path):
    config, params, _ = setting
    path = tmp_path / "names.json"
    path.write_text(json.dumps({"c0": "c0", "c1": ["c1"], "c2": "c2", "c3-stuff": "c3"}))
    config = only(config, "panoptic", vocabulary=str(path))
    got = evaluator.run(Oracle(), params, config, workdir=tmp_path)
    assert got["panoptic/rq"] == pytest.approx(100)
    hashes = [results.read(tmp_path / "samples" / "panoptic.jsonl")[0]["protocol_hash"]]
    path.write_text(json.dumps({"c0": "c1", "c1": "c0", "c2": "c2", "c3-stuff": "c3"}))
    assert evaluator.run(Oracle(), params, config, workdir=tmp_path)["panoptic/rq"] < 60
    hashes.append(results.read(tmp_path / "samples" / "panoptic.jsonl")[0]["protocol_hash"])
    assert hashes[0] != hashes[1]  # of the same file with other names
    path.write_text(json.dumps({"c0": "c0"}))
    with pytest.raises(ValueError, match=r"lacks the class 'c1'"):
        evaluator.run(Oracle(), params, config, workdir=tmp_path)


@pytest.mark.parametrize(
    "text", ["[1, 2", "[1, 2]", '{"c0": 5}', '{"c0": [5]}', '{"c0": {"c0": 1}}']
)
def test_a_file_that_is_no_vocabulary_is_named(tmp_path, text):
    path = tmp_path / "names.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"names\.json is no JSON object of class names"):
        base.read_vocabulary(path, ["c0"])


def test_unknown_tasks_are_named(setting):
    config, _, _ = setting
    with pytest.raises(ValueError, match=r"tasks = \('panoptik',\): expected names of"):
        evaluator.Evaluator(Oracle(), only(config, "panoptik"))


def test_pictures_are_the_best_the_median_and_the_worst():
    stored = [{"sample": k, "score": float(k)} for k in range(10)] + [{"sample": 99, "score": None}]
    assert evaluator.ranked(stored, 3) == {9: "best", 5: "median", 0: "worst"}
    assert evaluator.ranked(stored, 1) == {9: "best"}
    assert evaluator.ranked(stored, 0) == {}
    assert evaluator.ranked(stored[:2], 6) == {1: "best", 0: "worst"}
    assert evaluator.ranked([], 3) == {}
