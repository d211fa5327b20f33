"""A killed evaluation goes on from what it had answered, with the numbers of an unbroken one."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

from seem_jax.evaluation import evaluator, results
from seem_jax.evaluation.tasks import base
from tests.evaluation_support import Oracle, only, record, setting

__all__ = ["setting"]  # a fixture


@pytest.fixture
def asked(monkeypatch) -> list[list[list[int]]]:
    """The units of every call that reads batches, in order."""
    calls = []
    seen = base.Context.batches

    def batches(self, split, units, sizing):
        calls.append(list(units))
        return seen(self, split, units, sizing)

    monkeypatch.setattr(base.Context, "batches", batches)
    return calls


def kill_after(monkeypatch, saves: int, run) -> set[int]:
    """Ends `run` before the save of that number; the samples that were saved."""
    saved, add = [], results.Store.add

    def killed(self, new):
        if len(saved) == saves:
            raise KeyboardInterrupt
        add(self, new)
        saved.append(new)

    with monkeypatch.context() as patch:
        patch.setattr(results.Store, "add", killed)
        with pytest.raises(KeyboardInterrupt):
            run()
    return {result["sample"] for new in saved for result in new}


def test_a_killed_evaluation_goes_on_and_another_model_begins_anew(
    setting, asked, tmp_path, monkeypatch
):
    config, params, _ = setting
    config = only(config, "panoptic")
    want = evaluator.run(Oracle(), params, config, workdir=tmp_path / "whole")
    whole = results.read(tmp_path / "whole" / "samples" / "panoptic.jsonl")

    def killed(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(results.Store, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluator.run(Oracle(), params, config, workdir=tmp_path / "cut")
    part = tmp_path / "cut" / "samples" / "panoptic.part0.jsonl"
    lines = part.read_text().splitlines(keepends=True)
    part.write_text("".join(lines[:3]) + lines[3][:20])  # two whole results and a cut one
    asked.clear()
    got = evaluator.run(Oracle(), params, config, workdir=tmp_path / "cut")
    assert asked[0] == [[2]]  # the first batch of two was kept
    assert got == want
    assert results.read(tmp_path / "cut" / "samples" / "panoptic.jsonl") == whole
    assert not part.exists()
    part.write_text("".join(lines))
    other = {"logit_scale": jnp.float32(4.5), "text": {}, "text_projection": {}}
    evaluator.run(Oracle(), other, config, workdir=tmp_path / "cut")
    assert asked[2] == [[0, 1], [2]]


def test_sessions_are_saved_as_they_end(setting, asked, tmp_path, monkeypatch):
    """Images share the rows of a program four batches at a time, and need not wait for each other."""
    config, params, split = setting
    split.records = [record(k, 64, 64, 8) for k in range(7)]
    runner = evaluator.Evaluator(Oracle(late=True), only(config, "interactive"))
    assert len(runner.tasks[0].grouped(range(7))) == 1
    want = runner.run(params, workdir=tmp_path / "whole")
    whole = results.read(tmp_path / "whole" / "samples" / "interactive_click.jsonl")
    for saves in (1, 2, 4):
        folder = tmp_path / str(saves)
        saved = kill_after(monkeypatch, saves, lambda f=folder: runner.run(params, workdir=f))
        assert len(saved) >= saves
        asked.clear()
        assert runner.run(params, workdir=folder) == want
        again = [sample for unit in asked[0] for sample in unit]
        assert again == sorted(set(range(7)) - saved)
        assert results.read(folder / "samples" / "interactive_click.jsonl") == whole


def test_tasks_that_were_finished_before_a_kill_are_not_asked_again(
    setting, asked, tmp_path, monkeypatch
):
    config, params, _ = setting
    runner = evaluator.Evaluator(Oracle(), only(config, "semantic", "panoptic"))
    want = runner.run(params, workdir=tmp_path / "whole")
    kill_after(monkeypatch, 3, lambda: runner.run(params, workdir=tmp_path / "cut"))
    asked.clear()
    assert runner.run(params, workdir=tmp_path / "cut") == want
    panoptic, pictures, semantic, _ = asked
    assert panoptic == [] and pictures == [[0, 1], [2]] and semantic == [[2]]
    assert not list((tmp_path / "cut" / "samples").glob("*.part*"))
