"""One HTML file that shows a run: scores, pictures, loss curves and configuration, nothing outside it."""

from __future__ import annotations

import base64
import html
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from seem_jax.config import Config
from seem_jax.config_files import to_json
from seem_jax.evaluation import calibration
from seem_jax.evaluation.plots import Axes, Line, figure
from seem_jax.evaluation.results import read

HEADLINES = {  # score -> what it means; shown first
    "panoptic/pq": "panoptic quality",
    "panoptic/pq_things": "panoptic quality, things",
    "referring/text/ciou": "referring cIoU, text alone",
    "referring/text+click/ciou": "referring cIoU, text and one click",
    "referring/unseen/ciou": "referring cIoU, names never seen together",
    "interactive/click/iou@1": "IoU after one click",
    "interactive/click/noc@85": "clicks to IoU 85",
    "interactive/click/noc@90": "clicks to IoU 90",
    "instance/ap": "average precision of instances",
    "semantic/miou": "mean IoU of classes",
    "video/j&f": "video J&F, masks given",
}
PICTURES = {
    "panoptic": "Everything, by class names",
    "referring": "By a sentence, and by a sentence with one click",
    "referring_unseen": "By a sentence with a colour and shape that training never joined",
    "interactive_click": "By simulated clicks",
    "interactive_circle": "By simulated clicks after a first circle",
    "interactive_scribble": "By simulated clicks after a first scribble",
    "interactive_polygon": "By simulated clicks after a first polygon",
    "interactive_box": "By simulated clicks after a first box",
    "interactive_ritm_click": "By simulated clicks of RITM's user",
    "instance": "Instances",
    "semantic": "A class for every pixel",
    "video": "Video, masks of the first frame given",
    "video_click": "Video, one click given",
}
MOST_COLUMNS = 10  # of a table of scores; with more scores these become its rows
Tasks = dict[str, tuple[dict, list[dict]]]  # name -> (header, results)
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#222;max-width:1120px;margin:2em auto;padding:0 1em}
h1{margin-bottom:0} h2{margin-top:2em;border-bottom:1px solid #ddd} img{max-width:100%}
table{border-collapse:collapse} td,th{padding:2px 14px 2px 0;text-align:left}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums} .wide{overflow-x:auto;margin:1em 0}
td{vertical-align:top} .cards{display:flex;flex-wrap:wrap;gap:12px}
.card{border:1px solid #ddd;border-radius:6px;padding:8px 14px;min-width:150px}
.card b{display:block;font-size:26px} .curves{display:flex;flex-wrap:wrap;gap:14px}
.curves figure{width:430px} pre{background:#f6f6f6;padding:1em;overflow:auto;font-size:12px} figure{margin:0}
figcaption{font-size:13px;color:#555} svg text{font:11px system-ui,sans-serif;fill:#555}
"""


def write(workdir: str | Path, config: Config, numbers: dict[str, float]) -> Path:
    """Writes WORKDIR/evaluation.json and WORKDIR/report.html; returns the path of the latter.

    The JSON is flat: every number (null where not finite), and for each task its split, the choices
    of its protocol and their hash, and the versions. Curves come from WORKDIR/metrics.jsonl and
    WORKDIR/samples (absent: none), sheets from WORKDIR/pictures. Both files appear whole or not at
    all.
    """
    workdir = Path(workdir)
    stored = {path.stem: read(path) for path in sorted((workdir / "samples").glob("*.jsonl"))}
    tasks = {
        header["task"]: (header, results)
        for header, results in stored.values()
        if any(key.startswith(f"{header['task']}/") for key in numbers)
    }
    flat: dict[str, float | str | None] = {
        key: float(v) if math.isfinite(v) else None for key, v in sorted(numbers.items())
    }
    flat |= _facts([header for header, _ in tasks.values()])
    _replace(workdir / "evaluation.json", json.dumps(flat, indent=1) + "\n")
    history = read_metrics(workdir / "metrics.jsonl")
    parts = [
        f"<h1>{html.escape(config.name)}</h1>",
        f"<p>{_summary(config, history)}</p>",
        _cards(numbers),
        _score_curves(tasks),
        _tables(numbers),
        *_sheets(workdir / "pictures"),
        _curves(history),
        _protocols([header for header, _ in tasks.values()]),
        f"<h2>Configuration</h2><details><summary>all fields</summary>"
        f"<pre>{html.escape(to_json(config))}</pre></details>",
    ]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(config.name)}</title><style>{STYLE}</style></head>"
        f"<body>{''.join(parts)}</body></html>\n"
    )
    path = workdir / "report.html"
    _replace(path, page)
    return path


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a metrics file in step order; a step written twice counts once, the later one.

    A last line cut short by a kill is left out; any other damage is a ValueError naming the line.
    """
    if not path.is_file():
        return []
    lines = path.read_text().splitlines()
    steps: dict[int, dict[str, float]] = {}
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}, line {number} is no JSON: {line[:80]!r}.") from error
        steps.setdefault(entry["step"], {}).update(entry)
    return [steps[step] for step in sorted(steps)]


def _facts(headers: list[dict]) -> dict[str, str]:
    """What the numbers of each task mean, and what computed them, as flat text."""
    out = {}
    for header in headers:
        task = header["task"]
        out[f"{task}/split"] = header["split"]
        out[f"{task}/protocol_hash"] = header["protocol_hash"]
        for name, choice in header["protocol"].items():
            out[f"{task}/protocol/{name}"] = choice if isinstance(choice, str) else str(choice)
        out |= {f"version/{name}": version for name, version in header["versions"].items()}
    return out


def _protocols(headers: list[dict]) -> str:
    rows = [
        f"<tr><td>{html.escape(key)}</td><td>{html.escape(text)}</td></tr>"
        for key, text in _facts(headers).items()
    ]
    if not rows:
        return ""
    table = f"<table>{''.join(rows)}</table>"
    return f"<h2>Protocols</h2><details><summary>all choices</summary>{table}</details>"


def _score_curves(tasks: Tasks) -> str:
    """IoU against clicks, and share right against confidence and against coverage."""
    clicks = []
    for task, (_, results) in tasks.items():
        curves = [curve for result in results for curve in result.get("curves", [])]
        if curves:
            values = np.array(curves, np.float64)
            known = values[~np.isnan(values).all(1)]  # an object without pixels has no IoU
            mean = 100 * np.nanmean(known, axis=0) if len(known) else []
            clicks.append(Line(list(enumerate(mean, 1)), task.removeprefix("interactive/")))
    drawn = [figure(clicks, "mean IoU against clicks, by first prompt", Axes(y=(0, 100)))]
    for task, (_, results) in tasks.items():
        segments = [segment for result in results for segment in result.get("segments", [])]
        if segments:
            drawn += _belief(task, results, segments)
    drawn = [chart for chart in drawn if chart]
    return f'<h2>Curves</h2><div class="curves">{"".join(drawn)}</div>' if drawn else ""


def _belief(task: str, results: list[dict], segments: list[dict]) -> list[str]:
    """Reliability and risk of the scores of segments; before and after a temperature if there is one."""
    confidence = np.array([segment["confidence"] for segment in segments])
    correct = np.array([s["category"] == s["meant"] for s in segments], bool)
    believed = {"": (confidence, correct)}
    which = f"all {len(segments)} segments"
    if "logits" in segments[0]:
        fitting, testing = calibration.halves(results)
        temperature = calibration.fit_temperature(*fitting)
        if math.isfinite(temperature) and len(testing[1]):
            believed = {
                "as trained": calibration.believed(*testing, 1.0),
                f"temperature {temperature:.2f}": calibration.believed(*testing, temperature),
            }
            which = f"{len(testing[1])} segments of the half not fitted on"
    reliability, risk = [], []
    for name, pair in believed.items():
        table = calibration.reliability(*pair)
        table = table[table[:, 0] > 0]
        reliability.append(Line((100 * table[:, 1:]).tolist(), name, table[:, 0].tolist()))
        risk.append(Line((100 * calibration.risk_coverage(*pair)).tolist(), name))
    whole = (0.0, 100.0)
    return [
        figure(
            reliability,
            f"{task}: % right against % confidence, {which}; dots by their number",
            Axes(whole, whole, True),
        ),
        figure(risk, f"{task}: % wrong against % kept, surest first, {which}", Axes(x=whole)),
    ]


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def _summary(config: Config, history: list[dict]) -> str:
    model, data = config.model, config.data
    steps = f"{int(history[-1]['step'])} of {config.num_steps} steps" if history else "training set"
    return html.escape(
        f"{model.backbone.name}, width {model.decoder.width}, {model.decoder.num_layers} decoder "
        f"layers; {data.image_size} pixels, batch {data.batch_size}; {steps}: "
        f"{', '.join(data.train)}."
    )


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "&ndash;"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.2f}"


def _cards(numbers: dict[str, float]) -> str:
    cards = [
        f'<div class="card"><b>{_number(numbers[key])}</b>{html.escape(meaning)}</div>'
        for key, meaning in HEADLINES.items()
        if key in numbers
    ]
    return f'<div class="cards">{"".join(cards)}</div>'


def _sheets(folder: Path) -> list[str]:
    out = []
    order = list(PICTURES)
    paths = sorted(folder.glob("*.png"))
    for path in sorted(paths, key=lambda p: order.index(p.stem) if p.stem in order else len(order)):
        data = base64.b64encode(path.read_bytes()).decode()
        title = html.escape(PICTURES.get(path.stem, path.stem))
        out.append(f'<h2>{title}</h2><img alt="{title}" src="data:image/png;base64,{data}">')
    return out


def _tables(numbers: dict[str, float]) -> str:
    """The scores: tasks with the same scores in one table; those of classes folded away."""
    tasks: dict[str, dict[str, float]] = {}
    for key, value in numbers.items():
        task, _, score = key.rpartition("/")
        if score.isdigit():  # noc@90/5
            task, _, start = task.rpartition("/")
            score = f"{start}/{score}"
        tasks.setdefault(task, {})[score] = value
    alike: dict[tuple[str, ...], list[str]] = {}
    for task, scores in tasks.items():
        per_class = "class" if "/class/" in f"/{task}/" else ""
        alike.setdefault((per_class, *scores), []).append(task)
    out = ["<h2>All scores</h2>"]
    for (per_class, *names), same in sorted(alike.items(), key=lambda item: item[0][0]):
        if len(names) > MOST_COLUMNS:
            cells = [[_number(tasks[task][name]) for task in same] for name in names]
            table = _table(same, names, cells)
        else:
            cells = [[_number(tasks[task][name]) for name in names] for task in same]
            table = _table(names, same, cells)
        if per_class:
            table = f"<details><summary>{len(same)} rows of classes</summary>{table}</details>"
        out.append(table)
    return "".join(out)


def _table(columns: Sequence[str], rows: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th class="n">{html.escape(name)}</th>' for name in columns)
    lines = [
        f"<tr><td>{html.escape(name)}</td>{''.join(f'<td class=n>{cell}</td>' for cell in own)}</tr>"
        for name, own in zip(rows, cells, strict=True)
    ]
    return f'<div class="wide"><table><tr><th></th>{head}</tr>{"".join(lines)}</table></div>'


def _curves(history: list[dict]) -> str:
    """A curve for the loss and for each of its terms; none for what was always 0."""
    names = sorted(
        {name for entry in history for name in entry if "/" in name and "evaluation/" not in name}
    )
    names = ["loss", *names, "learning_rate", "steps_per_second"]
    drawn = []
    for name in names:
        points = [
            (entry["step"], entry[name])
            for entry in history
            if isinstance(entry.get(name), (int, float)) and math.isfinite(entry[name])
        ]
        if any(value for _, value in points):
            drawn.append(figure([Line(points)], name))
    drawn = [chart for chart in drawn if chart]
    return f'<h2>Training</h2><div class="curves">{"".join(drawn)}</div>' if drawn else ""
