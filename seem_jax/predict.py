"""Segments pictures from the shell, with any mix of prompts or everything in them.

    python -m seem_jax.predict photo.jpg --checkpoint=runs/shapes --point 120,80 --output=out
    python -m seem_jax.predict photo.jpg --checkpoint=runs/shapes --text "the red star" --output=out
    python -m seem_jax.predict FOLDER --checkpoint=runs/shapes --panoptic --output=out

Coordinates are pixels (x, y) of each picture as stored; all prompts together mean one object, and each
--text is a question of its own. Without a prompt, all things are found. In the output folder:

    NAME.png             the picture, small ones enlarged, with masks, names and scores
    masks/NAME_0.png     one mask per answer, 255 inside; best first
    annotations.json     the same as COCO instances (RLE, box, area, score)
    panoptic/NAME.png    with --panoptic: segment ids as COCO writes them (R + 256 G + 65536 B)
    panoptic.json        and what they are
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image
from tqdm import tqdm

from seem_jax.image import decode_image
from seem_jax.predictor import PanopticPrediction, Prediction, Predictor, Prompts, Reference

DRAWN_SIDE = 640  # pixels, longer edge of a drawn picture at least
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(
        prog="python -m seem_jax.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = out.add_argument
    add("images", nargs="+", metavar="IMAGE", help="picture, or folder of pictures")
    add("--checkpoint", required=True, metavar="DIR", help="work folder of a training run")
    add("--output", required=True, metavar="DIR", help="folder for the results")
    add("--tokenizer", metavar="FILE", help="tokenizer model, where it is no longer as trained")
    asked = out.add_argument_group("prompts, all about one object")
    add = asked.add_argument
    add("--point", action="append", metavar="X,Y[,-]", help="click; with ,- on what it is not")
    add("--box", action="append", metavar="X0,Y0,X1,Y1")
    add(
        "--scribble", action="append", metavar="FILE", help="painted picture, or JSON [[x, y], ...]"
    )
    add("--polygon", action="append", metavar="X,Y,X,Y,X,Y,...")
    add("--mask", metavar="FILE", help="picture of the size of the image, 0 outside of the object")
    add("--text", action="append", metavar="PHRASE")
    add("--reference", metavar="FILE", help="picture that shows the object, or a saved .npz")
    add("--reference-point", action="append", metavar="X,Y[,-]", help="click on the reference")
    add("--reference-box", metavar="X0,Y0,X1,Y1", help="box on the reference")
    every = out.add_argument_group("answers")
    add = every.add_argument
    add("--panoptic", action="store_true", help="cut the whole picture into segments")
    add("--classes", metavar="NAME,NAME,...", help="vocabulary for names")
    add("--stuff", metavar="NAME,NAME,...", help="with --panoptic: classes without instances")
    add("--top-k", type=int, default=None, help="most masks per question (1), or things (100)")
    add("--threshold", type=float, default=None, help="lowest score from 0 to 1")
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; 0 where every picture was answered, else 1 with reasons on stderr."""
    options = parser().parse_args(argv)
    try:
        files = find_pictures(options.images)
        asked = read_prompts(options)
        predictor = Predictor.from_checkpoint(options.checkpoint, tokenizer=options.tokenizer)
        cache = predictor.config.compile_cache
        if cache and not jax.config.jax_compilation_cache_dir:
            jax.config.update("jax_compilation_cache_dir", cache)
        if options.reference:
            asked = dataclasses.replace(asked, reference=read_reference(options, predictor))
        writer = Writer(Path(options.output))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    failures = []
    for file in tqdm(files, unit="picture", disable=len(files) == 1):
        try:
            answer_file(predictor, file, asked, options, writer)
        except (ValueError, OSError) as error:
            failures.append(f"{file}: {error}")
    writer.finish(predictor)
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    print(f"{len(files) - len(failures)} of {len(files)} pictures answered in {options.output}")
    return 1 if failures else 0


def answer_file(
    predictor: Predictor, file: Path, asked: Prompts, options: argparse.Namespace, writer: Writer
) -> None:
    """Answers one picture and writes its files."""
    picture = decode_image(file.read_bytes(), name=str(file))
    predictor.set_image(picture)
    classes = split_names(options.classes, "--classes")
    names = {} if options.threshold is None else {"threshold": options.threshold}
    if options.panoptic:
        stuff = split_names(options.stuff, "--stuff")
        writer.add_panoptic(file, picture, predictor.panoptic(classes, stuff, **names))
        return
    if options.top_k is not None:
        names["top_k"] = options.top_k
    if not asked.given:
        answer = predictor.instances(classes, **{"threshold": 0.3} | names)
    else:
        answer = predictor.predict(**vars(asked), classes=classes, **names)
    writer.add(file, picture, answer)


class Writer:
    """Collects answers and writes them below one folder; every file aside first, then renamed."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.used: set[str] = set()
        self.instances: dict[str, list] = {"images": [], "annotations": []}
        self.panoptic: dict[str, list] = {"images": [], "annotations": []}
        self.classes: dict[str, int] = {}
        self.panoptic_classes: dict[int, dict] = {}

    def add(self, file: Path, picture: np.ndarray, answer: Prediction) -> None:
        """Writes the picture and the masks of one answer, and notes its annotations."""
        name, number = self._start(self.instances, file, picture)
        for index, mask in enumerate(answer.masks):
            self._png(f"masks/{name}_{index}.png", mask.astype(np.uint8) * 255)
        for entry in answer.to_coco(number):
            said = entry.get("name", entry.get("text", "object"))
            entry["category_id"] = self.classes.setdefault(said, len(self.classes) + 1)
            entry["id"] = len(self.instances["annotations"]) + 1
            entry["iscrowd"] = 0
            self.instances["annotations"].append(entry)
        self._png(f"{name}.png", answer.draw(picture, max(DRAWN_SIDE, *picture.shape[:2])))

    def add_panoptic(self, file: Path, picture: np.ndarray, answer: PanopticPrediction) -> None:
        """Writes the picture and the id map of one answer, and notes its segments."""
        name, number = self._start(self.panoptic, file, picture)
        self._png(f"panoptic/{name}.png", answer.to_png())
        self._png(f"{name}.png", answer.draw(picture, max(DRAWN_SIDE, *picture.shape[:2])))
        segments = answer.segments_info()
        for segment in segments:
            self.panoptic_classes[segment["category_id"]] = {
                "id": segment["category_id"],
                "name": segment["name"],
                "isthing": segment["isthing"],
            }
        self.panoptic["annotations"].append(
            {"image_id": number, "file_name": f"{name}.png", "segments_info": segments}
        )

    def finish(self, predictor: Predictor) -> None:
        """Writes the JSON files of all pictures."""
        if self.instances["images"]:
            categories = [{"id": number, "name": name} for name, number in self.classes.items()]
            self._json("annotations.json", self.instances | {"categories": categories})
        if self.panoptic["images"]:
            categories = [self.panoptic_classes[key] for key in sorted(self.panoptic_classes)]
            self._json("panoptic.json", self.panoptic | {"categories": categories})

    def _start(self, table: dict[str, list], file: Path, picture: np.ndarray) -> tuple[str, int]:
        """A name that no other picture has, and the number of the picture."""
        number = len(table["images"]) + 1
        name = file.stem if file.stem not in self.used else f"{file.stem}_{number}"
        while name in self.used:
            name += "_"
        self.used.add(name)
        height, width = picture.shape[:2]
        entry = {"id": number, "file_name": file.name, "height": height, "width": width}
        table["images"].append(entry)
        return name, number

    def _png(self, name: str, pixels: np.ndarray) -> None:
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, format="PNG")
        self._write(name, data.getvalue())

    def _json(self, name: str, content: dict) -> None:
        self._write(name, json.dumps(content, indent=1).encode())

    def _write(self, name: str, data: bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        aside = path.with_name(f".{os.getpid()}.tmp")
        aside.write_bytes(data)
        os.replace(aside, path)


def find_pictures(paths: Sequence[str]) -> list[Path]:
    """The pictures named, and those in the folders named, in order; ValueError where there are none."""
    out: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
            if not inside:
                raise ValueError(f"{path} holds no pictures ({', '.join(sorted(SUFFIXES))}).")
            out += inside
        elif path.is_file():
            out.append(path)
        else:
            raise ValueError(f"there is no picture or folder {path}.")
    return out


def read_prompts(options: argparse.Namespace) -> Prompts:
    """The prompts of the command line, without the reference."""
    if (options.reference_point or options.reference_box) and not options.reference:
        raise ValueError("--reference-point or --reference-box without --reference PICTURE.")
    if options.panoptic and _any_prompt(options):
        raise ValueError("--panoptic answers about everything: give no prompts with it.")
    points, labels = _clicks(options.point, "--point")
    return Prompts(
        points=points,
        point_labels=labels,
        box=_numbers(options.box, "--box", 4),
        scribble=[_scribble(Path(file)) for file in options.scribble] if options.scribble else None,
        polygon=_polygons(options.polygon),
        mask=_painted(Path(options.mask), "--mask") if options.mask else None,
        text=options.text,
    )


def read_reference(options: argparse.Namespace, predictor: Predictor) -> Reference:
    """The reference of the command line: a saved file, or a picture with clicks or a box."""
    path = Path(options.reference)
    if path.suffix == ".npz":
        return Reference.load(path)
    points, labels = _clicks(options.reference_point, "--reference-point")
    box = [options.reference_box] if options.reference_box else None
    drawn = Prompts(points=points, point_labels=labels, box=_numbers(box, "--reference-box", 4))
    if not drawn.given:
        raise ValueError(f"--reference {path} needs --reference-point or --reference-box on it.")
    return predictor.reference([decode_image(_bytes(path, "--reference"), name=str(path))], [drawn])


def split_names(text: str | None, flag: str) -> list[str] | None:
    """The names in a comma separated list."""
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise ValueError(f"{flag} {text!r}: expected names with commas between them.")
    return names


def _any_prompt(options: argparse.Namespace) -> bool:
    kinds = ("point", "box", "scribble", "polygon", "mask", "text", "reference")
    return any(getattr(options, kind) for kind in kinds)


def _clicks(values: list[str] | None, flag: str) -> tuple[Any, Any]:
    """(points [n, 2], labels [n]) of X,Y and X,Y,- ; None, None without any."""
    if not values:
        return None, None
    parts = [value.split(",") for value in values]
    for value, part in zip(values, parts, strict=True):
        if len(part) not in (2, 3) or part[2:] not in ([], ["-"], ["+"]):
            raise ValueError(f"{flag} {value!r}: expected X,Y or X,Y,- in pixels.")
    points = _numbers([",".join(part[:2]) for part in parts], flag, 2)
    return points, np.array([part[2:] != ["-"] for part in parts])


def _numbers(values: list[str] | None, flag: str, count: int) -> np.ndarray | None:
    """float64 [n, count] of strings with commas."""
    if not values:
        return None
    rows = []
    for value in values:
        try:
            row = [float(part) for part in value.split(",")]
        except ValueError as error:
            raise ValueError(f"{flag} {value!r}: expected numbers with commas.") from error
        if len(row) != count:
            raise ValueError(f"{flag} {value!r} has {len(row)} numbers; expected {count}.")
        rows.append(row)
    return np.array(rows)


def _polygons(values: list[str] | None) -> list[np.ndarray] | None:
    if not values:
        return None
    rings = []
    for value in values:
        count = value.count(",") + 1
        if count % 2:
            raise ValueError(f"--polygon {value!r} has {count} numbers; expected pairs X,Y.")
        rings.append(_numbers([value], "--polygon", count).reshape(-1, 2))
    return rings


def _scribble(path: Path) -> np.ndarray:
    """A painted picture bool [H, W], or the corners of a line [n, 2] in a JSON file."""
    if path.suffix.lower() != ".json":
        return _painted(path, "--scribble")
    try:
        return np.asarray(json.loads(_bytes(path, "--scribble")), np.float64)
    except (ValueError, TypeError) as error:
        raise ValueError(f"--scribble {path}: expected JSON [[x, y], ...] ({error}).") from error


def _painted(path: Path, flag: str) -> np.ndarray:
    """bool [H, W], where a picture is not black."""
    return decode_image(_bytes(path, flag), name=f"{flag} {path}").any(-1)


def _bytes(path: Path, flag: str) -> bytes:
    if not path.is_file():
        raise ValueError(f"{flag} {path}: there is no such file.")
    return path.read_bytes()


if __name__ == "__main__":
    sys.exit(main())
