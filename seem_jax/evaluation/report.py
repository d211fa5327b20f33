"""One HTML file that shows a run: scores, pictures, loss curves and configuration, nothing outside it."""

from __future__ import annotations

import base64
import html
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

from seem_jax.config import Config, to_json

HEADLINES = {  # score -> what it means; shown first
    "panoptic/pq": "panoptic quality",
    "panoptic/pq_things": "panoptic quality, things",
    "referring/text/ciou": "referring cIoU, text alone",
    "referring/text+click/ciou": "referring cIoU, text and one click",
    "referring/unseen/ciou": "referring cIoU, names never seen together",
    "interactive/click/iou@1": "IoU after one click",
    "interactive/click/noc@85": "clicks to IoU 85",
    "interactive/click/noc@90": "clicks to IoU 90",
}
PICTURES = {
    "panoptic": "Everything, by class names",
    "referring": "By a sentence, and by a sentence with one click",
    "referring_unseen": "By a sentence with a colour and shape that training never joined",
    "interactive_click": "By simulated clicks",
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

    Curves come from WORKDIR/metrics.jsonl (absent: none) and sheets from WORKDIR/pictures. Numbers
    that are not finite are null in the JSON. Both files appear whole or not at all.
    """
    workdir = Path(workdir)
    finite = {key: float(v) if math.isfinite(v) else None for key, v in sorted(numbers.items())}
    _replace(workdir / "evaluation.json", json.dumps(finite, indent=1) + "\n")
    history = read_metrics(workdir / "metrics.jsonl")
    parts = [
        f"<h1>{html.escape(config.name)}</h1>",
        f"<p>{_summary(config, history)}</p>",
        _cards(numbers),
        *_sheets(workdir / "pictures"),
        _curves(history),
        _table(numbers),
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
        if len(points) > 1:
            caption = f"<figcaption>{html.escape(name)}</figcaption>"
            drawn.append(f"<figure>{svg_curve(points)}{caption}</figure>")
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
