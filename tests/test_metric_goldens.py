"""Every stored number of the metric owners, and that a wrong one is noticed."""

from __future__ import annotations

import json
import math
import shutil
import sys

import numpy as np
import pytest

from tests.goldens import path
from tests.metric_goldens import __main__ as command
from tests.metric_goldens.figures import Figure

FAST = sorted(set(command.CHECKS) - {"stroke_statistics"})  # tests/test_strokes.py has these laws


@pytest.mark.parametrize("name", FAST)
def test_the_owners_numbers(name):
    found = list(command.figures(path(name)))
    assert found
    assert [command.line(name, figure) for figure in found if not figure.passed] == []


@pytest.mark.slow
def test_the_owners_drawings():
    found = list(command.figures(path("stroke_statistics")))
    assert [figure.name for figure in found if not figure.passed] == []


def run(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["metric_goldens", *arguments])
    return command.main()


def semantic_case(folder, miou: object) -> None:
    case = folder / "semantic_miou"
    case.mkdir(exist_ok=True)
    expected = {"mIoU": miou, "pACC": 75.0, "IoU-c2": "nan"}
    cases = {"own": {"num_classes": 3, "num_images": 1, "expected": expected}}
    (case / "cases.json").write_text(json.dumps({"cases": cases}))
    truth, found = np.array([[0, 0, 1, 1, 255]]), np.array([[0, 0, 1, 0, 2]])
    np.savez(case / "labels.npz", **{"own/0/gt": truth, "own/0/pred": found})


def test_the_exit_status_tells_of_a_wrong_number(tmp_path, monkeypatch, capsys):
    semantic_case(tmp_path, 100 * (2 / 3 + 1 / 2) / 2)
    assert run(monkeypatch, str(tmp_path)) == 0
    assert "3 passed, 0 failed" in capsys.readouterr().out
    semantic_case(tmp_path, 58.0)
    assert run(monkeypatch, str(tmp_path), "--failures-only") == 1
    assert "FAIL  semantic_miou          own mIoU" in capsys.readouterr().out


def test_a_broken_case_and_a_folder_without_cases_fail(tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, str(tmp_path)) == 1
    assert "holds none of the folders" in capsys.readouterr().err
    semantic_case(tmp_path, 0.0)
    (tmp_path / "semantic_miou" / "labels.npz").unlink()
    assert run(monkeypatch, str(tmp_path)) == 1
    assert "KeyError" in capsys.readouterr().out


def test_a_changed_click_is_noticed(tmp_path):
    folder = tmp_path / "clicks_ritm"
    shutil.copytree(path("clicks_ritm"), folder)
    cases = json.loads((folder / "cases.json").read_text())
    cases["cases"]["0"]["clicks"][1]["row"] += 7
    (folder / "cases.json").write_text(json.dumps(cases))
    wrong = [figure.name for figure in command.figures(folder) if not figure.passed]
    assert "0 click 1" in wrong


def test_nan_equals_nan_only_and_kinds_must_agree():
    assert Figure("a", math.nan, math.nan).passed
    assert not Figure("a", math.nan, 0.0).passed
    assert not Figure("a", 1.0, math.nan).passed
    assert not Figure("a", [1, 2], [1, 2, 3]).passed
    assert not Figure("a", 1.0, "absent").passed
    assert Figure("a", 50.0, 50.00005, unit=100).passed
    assert not Figure("a", 0.5, 0.50001).passed
