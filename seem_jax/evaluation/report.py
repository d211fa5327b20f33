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

from seem_jax.config import Config, to_json
from seem_jax.evaluation.calibration import reliability, risk_coverage
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
    "instance": "Instances",
    "semantic": "A class for every pixel",
    "video": "Video, masks of the first frame given",
    "video_click": "Video, one click given",
}
WIDTH, HEIGHT, LEFT, BOTTOM = 420, 190, 46, 22  # pixels of a curve and of its margins
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#222;max-width:1120px;margin:2em auto;padding:0 1em}
h1{margin-bottom:0} h2{margin-top:2em;border-bottom:1px solid #ddd} img{max-width:100%}
table{border-collapse:collapse} td,th{padding:2px 14px 2px 0;text-align:left}
td.n{text-align:right;font-variant-numeric:tabular-nums} .cards{display:flex;flex-wrap:wrap;gap:12px}
.card{border:1px solid #ddd;border-radius:6px;padding:8px 14px;min-width:150px}
.card b{display:block;font-size:26px} .curves{display:flex;flex-wrap:wrap;gap:14px}
pre{background:#f6f6f6;padding:1em;overflow:auto;font-size:12px} figure{margin:0}
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
        *_sheets(workdir / "pictures"),
        _score_curves(tasks),
        _curves(history),
        _table(numbers),
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
    return f"<h2>Protocols</h2><table>{''.join(rows)}</table>" if rows else ""


def _score_curves(tasks: dict[str, tuple[dict, list[dict]]]) -> str:
    """IoU against clicks, and share right against confidence and against coverage."""
    drawn = []
    for task, (_, results) in tasks.items():
        curves = [curve for result in results for curve in result.get("curves", [])]
        if curves:
            mean = np.nanmean(np.array(curves, np.float64), axis=0)
            points = list(enumerate((100 * mean).tolist(), 1))
            drawn.append(_figure(points, f"{task}: mean IoU against clicks"))
        segments = [segment for result in results for segment in result.get("segments", [])]
        if segments:
            confidence = np.array([segment["confidence"] for segment in segments])
            correct = np.array([s["category"] == s["meant"] for s in segments], bool)
            table = reliability(confidence, correct)
            filled = table[table[:, 0] > 0, 1:]
            drawn.append(_figure((100 * filled).tolist(), f"{task}: % right against confidence"))
            risk = risk_coverage(confidence, correct)
            drawn.append(_figure((100 * risk).tolist(), f"{task}: % wrong against coverage"))
    drawn = [figure for figure in drawn if figure]
    return f'<h2>Curves</h2><div class="curves">{"".join(drawn)}</div>' if drawn else ""


def _figure(points: Sequence[tuple[float, float]], caption: str) -> str:
    points = [point for point in points if all(map(math.isfinite, point))]
    if len(points) < 2:
        return ""
    return f"<figure>{svg_curve(points)}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def _summary(config: Config, history: list[dict]) -> str:
    model, data = config.model, config.data
    steps = (
        f"{int(history[-1]['step'])} of {config.num_steps} steps" if history else "not trained here"
    )
    return html.escape(
        f"{model.backbone.name}, width {model.decoder.width}, {model.decoder.num_layers} decoder "
        f"layers; {data.image_size} pixels, batch {data.batch_size}; {steps} on "
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
    for path in sorted(folder.glob("*.png"), key=lambda p: (p.stem not in PICTURES, p.stem)):
        data = base64.b64encode(path.read_bytes()).decode()
        title = html.escape(PICTURES.get(path.stem, path.stem))
        out.append(f'<h2>{title}</h2><img alt="{title}" src="data:image/png;base64,{data}">')
    return out


def _table(numbers: dict[str, float]) -> str:
    rows = [
        f'<tr><td>{html.escape(key)}</td><td class="n">{_number(value)}</td></tr>'
        for key, value in sorted(numbers.items())
    ]
    return f"<h2>All scores</h2><table>{''.join(rows)}</table>"


def _curves(history: list[dict]) -> str:
    """A curve for the loss and for each of its terms."""
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
        drawn.append(_figure(points, name))
    drawn = [figure for figure in drawn if figure]
    return f'<h2>Training</h2><div class="curves">{"".join(drawn)}</div>' if drawn else ""


def svg_curve(points: Sequence[tuple[float, float]]) -> str:
    """An SVG line through (step, value), two or more, with the ends of both axes written on."""
    steps, values = zip(*points, strict=True)
    low, high = min(values), max(values)
    span, run = high - low or 1.0, steps[-1] - steps[0] or 1
    width, height = WIDTH - LEFT - 8, HEIGHT - BOTTOM - 8

    def place(step: float, value: float) -> str:
        x = LEFT + (step - steps[0]) / run * width
        y = 8 + (high - value) / span * height
        return f"{x:.1f},{y:.1f}"

    floor = 8 + height
    line = " ".join(place(*point) for point in points)
    return (
        f'<svg width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}">'
        f'<path d="M{LEFT} 8V{floor}H{LEFT + width}" fill="none" stroke="#bbb"/>'
        f'<polyline points="{line}" fill="none" stroke="#1668b8" stroke-width="1.5"/>'
        f'<text x="{LEFT - 4}" y="16" text-anchor="end">{high:.3g}</text>'
        f'<text x="{LEFT - 4}" y="{floor}" text-anchor="end">{low:.3g}</text>'
        f'<text x="{LEFT}" y="{HEIGHT - 6}">{steps[0]:g}</text>'
        f'<text x="{LEFT + width}" y="{HEIGHT - 6}" text-anchor="end">{steps[-1]:g}</text></svg>'
    )
