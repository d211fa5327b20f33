"""The report: one file, nothing outside it, and no number lost or invented."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from seem_jax.demo import draw
from seem_jax.evaluation import plots, report
from seem_jax.evaluation.sheets import Sheet
from tests.fakes import tiny_config


class Page(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.sources, self.text, self.tags = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def run(tmp_path):
    lines = [
        {"step": s, "loss": 9.0 / s, "object/class": 1.0 * s, "learning_rate": 0.1}
        | {"dropped/objects": 0}
        for s in (1, 2, 3)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 4, "lo')
    sheet = Sheet(("input", "prediction"))
    sheet.add([np.full((20, 30, 3), 90, np.uint8)] * 2, "a <caption>" * 40)
    sheet.save(tmp_path / "pictures" / "panoptic.png")
    return tmp_path


def test_the_report_holds_everything_and_needs_nothing(run):
    numbers = {"panoptic/pq": 71.25, "panoptic/pq_stuff": math.nan, "run/peak_bytes": 3e9}
    path = report.write(run, tiny_config(), numbers)
    assert path == run / "report.html"
    page = Page(path.read_text())
    assert page.sources
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert "71.25" in page.text
    assert page.tags.count("polyline") == 3  # loss, object/class, learning_rate; no line of zeros
    assert any('"learning_rate"' in text for text in page.text)  # the configuration
    stored = json.loads((run / "evaluation.json").read_text())
    assert stored == {"panoptic/pq": 71.25, "panoptic/pq_stuff": None, "run/peak_bytes": 3e9}


def test_a_run_without_curves_and_pictures_still_has_a_report(tmp_path):
    page = Page(report.write(tmp_path, tiny_config(), {}).read_text())
    assert "svg" not in page.tags
    assert "img" not in page.tags


def test_a_resumed_step_counts_once_and_a_cut_last_line_not_at_all(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('\n{"step": 3, "loss": 1.5}\n')
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(
        "\n".join(line for line in text.split("\n") if line[-2:] != "lo")
    )
    history = report.read_metrics(run / "metrics.jsonl")
    assert [entry["step"] for entry in history] == [1, 2, 3]
    assert history[-1]["loss"] == 1.5


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 2"):
        report.read_metrics(tmp_path / "metrics.jsonl")


def test_a_curve_stays_inside_its_frame():
    points = [(0, 2.0), (3, math.nan), (5, 2.0), (10, -1.0)]
    line = plots.Line(points, "a <line>", counts=[1, 7, 4, 9]).finite()
    svg = ElementTree.fromstring(plots.svg([line], plots.Axes(diagonal=True)))
    points = svg.find("polyline").get("points").split()
    x, y = np.array([point.split(",") for point in points], float).T
    assert (np.diff(x) > 0).all()
    assert 0 <= y.min() <= y.max() <= plots.HEIGHT
    assert x.max() <= plots.WIDTH
    dots = [float(dot.get("r")) for dot in svg.iter("circle")]
    np.testing.assert_allclose(dots, plots.DOT * np.sqrt([1 / 9, 4 / 9, 1]), atol=0.06)


@pytest.mark.parametrize(("sign", "anchor"), [(1, "start"), (-1, "end")])
def test_names_of_curves_stand_in_the_emptier_corner(sign, anchor):
    x = np.linspace(0, 1, 20)
    points = np.stack([x, sign * np.maximum(x, 0.8)], axis=1).tolist()
    svg = ElementTree.fromstring(plots.svg([plots.Line(points, "risk")], plots.Axes()))
    (name,) = (text for text in svg.iter("text") if text.text == "risk")
    assert name.get("text-anchor") == anchor
    assert (float(name.get("x")), float(name.get("y"))) == pytest.approx(
        (plots.LEFT, plots.TOP) if sign > 0 else (plots.WIDTH, plots.HEIGHT), abs=32
    )


def test_a_sheet_has_its_rows_and_columns(tmp_path):
    sheet = Sheet(("a", "b", "c"))
    sheet.save(tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
    sheet.add([np.zeros((10, 40, 3), np.uint8)] * 3, "row")
    sheet.save(tmp_path / "some.png")
    assert Image.open(tmp_path / "some.png").size[0] > 3 * 256
    with pytest.raises(ValueError, match="2 pictures"):
        sheet.add([np.zeros((4, 4, 3), np.uint8)] * 2, "row")


def test_drawing_changes_what_it_should_and_never_its_input():
    image = np.full((60, 80, 3), 100, np.uint8)
    mask = np.zeros((60, 80), bool)
    mask[20:40, 30:50] = True
    kept = image.copy()
    tinted = draw.overlay(image, [mask], [draw.RED])
    assert (tinted[~mask] == 100).all()
    assert (tinted[20, 30] == draw.RED).all()
    lit = draw.spotlight(image, mask)
    assert (lit[30, 40] == 100).all()
    assert (lit[0, 0] == 45).all()
    assert (draw.points(image, np.array([[0.5, 0.5]]), [True])[30, 40] == draw.GREEN).all()
    named = draw.names(image, [mask, np.zeros_like(mask)], ["in the corner", "nowhere"])
    assert (named != image).any()
    np.testing.assert_array_equal(image, kept)
    assert len({draw.colour(k, s) for k in range(20) for s in range(3)}) == 60
