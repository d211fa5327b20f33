"""Pictures of a few records, to see at a glance whether a conversion is right.

    python -m data_prep.show --input data/coco/records --output pictures

Each row of `<output>/<data set>-<split>.png` is a record: the image, its segments with their class
names, its objects and expressions with their masks, and prompts that training could simulate. White
is what no score counts (borders). --input is a folder of converted data sets, or one of them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from data_prep.doctor import converted_sets
from data_prep.writer import MissingInputError, message_only
from seem_jax.data import strokes
from seem_jax.data.catalog import Split, open_split
from seem_jax.data.schema import Record
from seem_jax.demo import draw
from seem_jax.image import decode_image, decode_index_png

COLUMNS = ("image", "segments", "expressions and objects", "simulated prompts")
SIDE = 480  # pixels, longer edge in which names are written
GAP = 8
LINE = 22  # pixels, height of a line of text
MAX_SENTENCES = 4  # in the caption of a record
KINDS = ("point", "scribble", "circle", "polygon")


def show_split(split: Split, output: Path, count: int, seed: int) -> Path:
    """Writes the sheet of some random records of a split, and returns its path."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in sorted(rng.permutation(len(split))[:count].tolist()):
        record = split[number]
        rows.append((pictures(record, split.class_names, rng), caption(record, number)))
    path = output / f"{split.name}-{split.split}.png"
    output.mkdir(parents=True, exist_ok=True)
    sheet(rows).save(path)
    return path


def sheet(rows: list[tuple[list[np.ndarray], list[str]]]) -> Image.Image:
    """The pictures of each record side by side, with lines of text above them."""
    font = draw.font(LINE - 5)
    heights = [
        LINE * (len(lines) + 1) + max(picture.shape[0] for picture in shown)
        for shown, lines in rows
    ]
    canvas = Image.new("RGB", (len(COLUMNS) * (SIDE + GAP), LINE + sum(heights)), draw.WHITE)
    pen = ImageDraw.Draw(canvas)
    for place, title in enumerate(COLUMNS):
        pen.text((place * (SIDE + GAP), 2), title, fill=draw.INK, font=font)
    top = LINE
    for (shown, lines), height in zip(rows, heights):
        for number, line in enumerate(lines):
            pen.text((0, top + LINE * number), line, fill=draw.INK, font=font)
        for place, picture in enumerate(shown):
            below = top + LINE * len(lines)
            canvas.paste(Image.fromarray(picture), (place * (SIDE + GAP), below))
        top += height
    return canvas


def pictures(record: Record, class_names: list[str], rng: np.random.Generator) -> list[np.ndarray]:
    """The pictures of a record, uint8 [h, w, 3] each, in the order of COLUMNS."""
    image = draw.fit(decode_image(record.image, name=record.file_name), SIDE)
    size = [record.height, record.width]
    objects = [
        coco_mask.decode({"size": size, "counts": counts}) > 0 for counts in record.object_rle
    ]
    masks = segment_masks(record, objects)
    ignored = [
        coco_mask.decode({"size": size, "counts": counts}) > 0 for counts in record.ignore_rle
    ]
    masks, objects, ignored = (
        [draw.fit(mask, SIDE) for mask in group] for group in (masks, objects, ignored)
    )
    labels = [
        class_names[category] + " (crowd)" * crowd
        for category, crowd in zip(record.segment_category, record.segment_crowd)
    ]
    segments = draw.overlay(draw.overlay(image, masks), ignored, [draw.WHITE] * len(ignored))
    segments = draw.names(segments, masks, labels)
    numbers = sorted(set(record.phrase_object)) or list(range(len(objects)))
    chosen = [objects[number] for number in numbers]
    titles = [
        f"{number}: {sentence_of(record, number) or class_names[record.object_category[number]]}"
        for number in numbers
    ]
    referred = draw.names(draw.overlay(image, chosen), chosen, titles)
    return [image, segments, referred, prompts(image, masks or chosen, rng)]


def segment_masks(record: Record, objects: list[np.ndarray]) -> list[np.ndarray]:
    """bool [height, width] of each segment."""
    if not record.segment_map:
        return []
    pixels = decode_index_png(record.segment_map, name=f"segments of {record.file_name}")
    exact = record.segment_object or [-1] * len(record.segment_id)
    return [
        objects[number] if number >= 0 else pixels == place + 1
        for place, number in enumerate(exact)
    ]


def sentence_of(record: Record, number: int) -> str:
    """The first sentence about an object, "" without one."""
    for text, place in zip(record.phrase_text, record.phrase_object):
        if place == number:
            return text
    return ""


def prompts(image: np.ndarray, masks: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """The image with a drawing of each kind, on random masks."""
    out = image.copy()
    for kind, place in zip(KINDS, rng.permutation(len(masks)).tolist()):
        columns, rows = strokes.draw(kind, masks[place], rng).T
        canvas = np.zeros(masks[place].shape, bool)
        canvas[rows, columns] = True
        if kind == "point":
            out = draw.points(out, np.stack([columns, rows], 1) / out.shape[1::-1], columns >= 0)
        else:
            out = draw.overlay(out, [canvas], [draw.colour(KINDS.index(kind))], alpha=0.8)
        out = draw.names(out, [canvas], [kind])
    return out


def caption(record: Record, number: int) -> list[str]:
    """The lines above a row."""
    parts = [
        f"record {number}: {record.file_name}, image id {record.image_id}, "
        f"{record.width} x {record.height} pixels, {len(record.segment_id)} segments, "
        f"{len(record.object_rle)} objects, {len(record.phrase_text)} sentences, "
        f"{len(record.caption)} captions"
    ]
    pairs = zip(record.phrase_object, record.phrase_text)
    parts += [f"{place}: {text}" for place, text in list(pairs)[:MAX_SENTENCES]]
    return parts + record.caption[:1]


def main() -> None:
    """Writes the pictures that the flags ask for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", type=Path, required=True, help="converted data sets")
    parser.add_argument("--output", type=Path, default=Path("pictures"))
    parser.add_argument("--splits", nargs="+", help="default: all")
    parser.add_argument("--count", type=int, default=6, help="records of each split")
    parser.add_argument("--seed", type=int, default=0, help="chooses the records")
    args = parser.parse_args()
    with message_only(__doc__):
        folders = converted_sets(args.input)
        if not folders:
            raise MissingInputError(
                f"{args.input} holds no converted data set: there is no dataset_info.json in it, in "
                "<name>/<version>/ or in <version>/. The programs of data_prep write it."
            )
        for folder in folders:
            names = {path.name.split(".tfrecord-")[0] for path in folder.glob("*.tfrecord-*")}
            for name in sorted(names):
                split = name.removeprefix(f"{folder.parent.name}-")
                if args.splits and split not in args.splits:
                    continue
                opened = open_split(folder.parents[1], f"{folder.parent.name}:{split}")
                print(show_split(opened, args.output, args.count, args.seed))


if __name__ == "__main__":
    main()
