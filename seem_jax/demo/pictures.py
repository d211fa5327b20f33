"""What a desk looks like: the picture with masks, names and marks, the list of answers, the parcel.

Arrays, HTML text and bytes; nothing of the web server.
"""

from __future__ import annotations

import base64
import html
import io
import itertools
import json
import zipfile
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import simplejpeg

from seem_jax.demo import draw, label_studio
from seem_jax.demo.studio import Desk, Mark, Sample
from seem_jax.postprocess import Segment
from seem_jax.predict_outputs import Writer

SIDES = (720, 1280)  # pixels, longer edge of a shown picture: small ones grow, large ones shrink
NAME = Path("picture.png")  # of a picture in its parcel; what a user called it goes nowhere


def board(desk: Desk) -> np.ndarray:
    """uint8 [h, w, 3]: the picture, the masks of the answer with names and scores, and the marks."""
    if desk.prediction is None:
        shown = fitted(desk.picture)
    else:
        shown = desk.prediction.draw(desk.picture, side_of(desk.picture), _places(desk))
    return marked(shown, desk.marks.values())


def sample(shown: Sample) -> np.ndarray:
    """uint8 [h, w, 3]: a reference picture with its marks."""
    return marked(fitted(shown.picture), shown.marks)


def segments(desk: Desk) -> np.ndarray:
    """uint8 [h, w, 3]: every segment of the picture with its name."""
    if desk.everything is None:
        raise ValueError("the picture was not cut into segments yet.")
    return desk.everything.draw(desk.picture, side_of(desk.picture))


def side_of(picture: np.ndarray) -> int:
    """Longer edge of the shown picture in pixels."""
    return int(np.clip(max(picture.shape[:2]), *SIDES))


def fitted(picture: np.ndarray) -> np.ndarray:
    """uint8 [h, w, 3], at the size in which it is shown."""
    return draw.fit(picture, side_of(picture))


def marked(shown: np.ndarray, marks: Iterable[Mark]) -> np.ndarray:
    """A copy with all marks: green for what is meant, red for what is not."""
    for mark in marks:
        if mark.tool == "click":
            where = mark.where[-1:] * 0.9999  # the far edge is the last pixel
            shown = draw.points(shown, where, np.array([mark.positive]), max(shown.shape) // 90)
        else:
            corners = mark.where
            if mark.tool == "box":
                (x0, y0), (x1, y1) = corners.min(0), corners.max(0)
                corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
            closed = mark.tool != "scribble"
            shown = draw.line(shown, corners, positive=mark.positive, closed=closed)
    return shown


def on_page(shown: np.ndarray) -> dict[str, str | int]:
    """A picture as the page shows it: source and size, so that nothing moves while it loads."""
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(shown), 92, "RGB", "444")
    source = "data:image/jpeg;base64," + base64.b64encode(data).decode()
    return {"src": source, "width": shown.shape[1], "height": shown.shape[0]}


def answers(desk: Desk) -> str:
    """The answers as an HTML list: colour, name or phrase, score, share of the picture."""
    prediction = desk.prediction
    if prediction is None:
        return ""
    if not len(prediction):
        return "<p>No answer reaches the lowest score that you ask for.</p>"
    rows = []
    for index, (name, text) in enumerate(zip(prediction.names, prediction.texts, strict=True)):
        said = " &middot; ".join(html.escape(part) for part in (name, text) if part) or "object"
        share = 100 * float(prediction.masks[index].mean())
        rows.append(
            f"<tr><td>{_chip(draw.colour(index))}</td><td>{said}</td>"
            f"<td>{prediction.scores[index]:.2f}</td><td>{share:.1f}%</td></tr>"
        )
    return table(("", "answer", "score", "area"), rows)


def inventory(desk: Desk) -> str:
    """The segments of the picture as an HTML list: colour, name, score, share of the picture."""
    found = desk.everything
    if found is None:
        return ""
    if not found.segments:
        return "<p>Nothing of what the names say was found.</p>"
    ids, areas = np.unique(found.segmentation, return_counts=True)
    area = dict(zip(ids.tolist(), (areas / found.segmentation.size).tolist(), strict=True))
    rows = [
        f"<tr><td>{_chip(colour)}</td><td>{html.escape(found.classes[segment.category])}</td>"
        f"<td>{segment.score:.2f}</td><td>{100 * area.get(segment.id, 0):.1f}%</td></tr>"
        for segment, colour in zip(found.segments, _colours(found.segments), strict=True)
    ]
    return table(("", "segment", "score", "area"), rows)


def parcel(desk: Desk) -> bytes:
    """A zip of all results, with the files that `python -m seem_jax.predict` writes.

    object/ with masks/, annotations.json (COCO instances) and label_studio.json; everything/ with panoptic/ and panoptic.json.
    """
    out = io.BytesIO()
    with TemporaryDirectory() as folder, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        if desk.prediction is not None:
            writer = Writer(Path(folder) / "object")
            writer.add(NAME, desk.picture, desk.prediction)
            writer.finish()
            said = json.dumps(label_studio.task(desk.prediction, NAME.name))
            (writer.folder / "label_studio.json").write_text(said)
        if desk.everything is not None:
            writer = Writer(Path(folder) / "everything")
            writer.add_panoptic(NAME, desk.picture, desk.everything)
            writer.finish()
        for file in sorted(Path(folder).rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder))
    return out.getvalue()


def _places(desk: Desk) -> list[np.ndarray]:
    """Where clicks, scribbles and outlines are, (x, y) in [0, 1]: names must not hide them."""
    marks = desk.marks.values()
    clicks = [mark.where[-1] for mark in marks if mark.tool == "click"]
    lines = [mark.where for mark in marks if mark.tool == "scribble"]
    lines += [np.concatenate([m.where, m.where[:1]]) for m in marks if m.tool == "outline"]
    return clicks + [place for line in lines for place in _along(line)]


def _along(line: np.ndarray) -> np.ndarray:
    """Places [n, 2] on a line through corners [k, 2] in [0, 1], no farther apart than letters are high."""
    parts = [line[:1]]
    for start, end in itertools.pairwise(line):
        steps = 1 + int(np.abs(end - start).max() * 22)
        parts.append(start + (end - start) * np.linspace(1 / steps, 1, steps)[:, None])
    return np.concatenate(parts)


def _colours(found: Iterable[Segment]) -> list[draw.Colour]:
    """As `PanopticPrediction.draw` chooses them: a hue per class, a shade per segment of it."""
    seen: dict[int, int] = {}
    colours = []
    for segment in found:
        shade = seen.get(segment.category, 0)
        colours.append(draw.colour(segment.category, shade=shade))
        seen[segment.category] = shade + 1
    return colours


def _chip(colour: draw.Colour) -> str:
    return f'<span class="chip" style="background: rgb{colour}"></span>'


def table(heads: tuple[str, ...], rows: list[str]) -> str:
    """An HTML table of finished rows."""
    top = "".join(f"<th>{head}</th>" for head in heads)
    return f'<table class="answers"><tr>{top}</tr>{"".join(rows)}</table>'
