"""Draws the picture of the tour, docs/tour.png: python -m docs.tour --checkpoint=runs/shapes"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from data_prep.shapes import Parameters
from data_prep.shapes import draw as drawn
from seem_jax import Predictor
from seem_jax.demo import draw

TILE, GAP, LINE, COLUMNS = 384, 16, 36, 4  # pixels; tiles side by side
CLICK, BOX, SHOWN = (52, 38), (29, 50, 63, 82), (67, 27)  # those of docs/tutorial.md
SCRIBBLE = ((44, 38), (52, 38), (60, 36))


def tiles(predictor: Predictor) -> list[tuple[str, np.ndarray]]:
    """(caption, picture) of some answers of the tour."""
    image, other = (drawn(Parameters(), "val", number).image for number in (2, 69))
    predictor.set_image(image)
    size = np.array(image.shape[1::-1])
    place = lambda *corners: (np.array(corners) + 0.5) / size  # noqa: E731
    x0, y0, x1, y1 = BOX
    yes = np.array([True])
    heart = predictor.reference([other], [{"points": [SHOWN]}])

    def answer(clear=(), **prompt) -> np.ndarray:
        return predictor.predict(**prompt).draw(image, TILE, clear)

    click, box = place(CLICK), place((x0, y0), (x1, y0), (x1, y1), (x0, y1))
    line = place(*SCRIBBLE)
    return [
        ("the picture", draw.fit(image, TILE)),
        ("a click", draw.points(answer(click, points=[CLICK]), click, yes)),
        ("a box", draw.line(answer(box=BOX), box, closed=True)),
        ("a scribble", draw.line(answer(line, scribble=SCRIBBLE), line)),
        ("text: the blue heart", answer(text="the blue heart")),
        (
            "a reference, on another picture ...",
            draw.points(draw.fit(other, TILE), place(SHOWN), yes),
        ),
        ("... is found on this one", answer(reference=heart)),
        ("everything, with names", predictor.panoptic().draw(image, TILE)),
    ]


def main() -> None:
    """Draws the tiles and writes them as one picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("tour.png"))
    options = parser.parse_args()
    shown = tiles(Predictor.from_checkpoint(options.checkpoint))
    rows = -(-len(shown) // COLUMNS)
    size = (COLUMNS * (TILE + GAP) - GAP, rows * (LINE + TILE))
    canvas = Image.new("RGB", size, draw.WHITE)
    pen = ImageDraw.Draw(canvas)
    for number, (caption, picture) in enumerate(shown):
        row, column = divmod(number, COLUMNS)
        x, y = column * (TILE + GAP), row * (LINE + TILE)
        pen.text((x, y + 6), caption, fill=draw.INK, font=draw.font(20))
        canvas.paste(Image.fromarray(picture), (x, y + LINE))
    canvas.save(options.output, optimize=True)


if __name__ == "__main__":
    main()
