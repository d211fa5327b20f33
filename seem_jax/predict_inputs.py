"""What the command line of `seem_jax.predict` means: files, and prompts out of flags."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seem_jax.image import decode_image
from seem_jax.predictor import Predictor, Prompts, Reference, checks
from seem_jax.predictor.everything import TOP
from seem_jax.predictor.programs import MAX_ANSWERS
from seem_jax.video.reading import PICTURE_SUFFIXES, VIDEO_SUFFIXES

MAX_BYTES = 2**29  # of a picture file


def find_inputs(paths: Sequence[str], *, frames: bool, output: str) -> list[Path]:
    """The pictures and videos named, and those in the folders named, in order.

    With `frames` a folder is one video. What lies in the output folder, a result of the run before,
    is not looked for. Raises ValueError where there are none.
    """
    out: list[Path] = []
    for path in paths:
        try:
            out += _inputs(path, frames, output)
        except (OSError, ValueError) as error:
            raise ValueError(f"INPUT {path[:200]!r}: {error}") from error
    return out


def check_output(output: str, files: Sequence[Path], options: argparse.Namespace) -> None:
    """Raises ValueError where a result could take the place of a file that the command reads."""
    folder = Path(os.path.realpath(output))
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output {output} is a file; expected a folder, which need not exist.")
    given = [options.mask, options.reference, options.objects, *(options.scribble or ())]
    for file in (*files, *(Path(name) for name in given if name)):
        if Path(os.path.realpath(file.parent)) in (folder, folder / "masks", folder / "panoptic"):
            raise ValueError(
                f"--output {output} is where {file} lies, and a result could replace it; give a "
                "folder of its own."
            )


def check_flags(options: argparse.Namespace, files: Sequence[Path]) -> None:
    """Raises ValueError for numbers out of range, and for flags that this call would not heed."""
    asked = any_prompt(options)
    if options.threshold is not None:
        checks.share(options.threshold, "--threshold")
    if options.top_k is not None:
        checks.count(options.top_k, MAX_ANSWERS if asked else TOP, "--top-k")
    if options.text is not None:
        checks.text(options.text, "--text")
    for flag, names in (("--classes", options.classes), ("--stuff", options.stuff)):
        if names is not None:
            checks.classes(split_names(names, flag), flag)
    if options.frame < 0:
        raise ValueError(f"--frame {options.frame}: expected 0 or more.")
    videos = [is_video(file) for file in files]
    saved = options.reference is not None and Path(options.reference).suffix == ".npz"
    told = all(videos) and (asked or options.objects is not None)  # each answer is an object given
    about_videos = "is about videos, and no input is one (--video for folders)."
    everything = "means nothing to --panoptic, which gives every segment that it finds."
    one_mask = "means nothing here: of a video, each object that was given has one mask a frame."
    on_picture = "goes with a reference that is a picture; a saved one knows its object."
    for flag, idle, reason in (
        ("--frame", options.frame != 0 and not any(videos), about_videos),
        ("--objects", options.objects is not None and not any(videos), about_videos),
        ("--fps", options.fps is not None and not any(videos), about_videos),
        ("--stuff", options.stuff is not None and not options.panoptic, "goes with --panoptic."),
        ("--top-k", options.top_k is not None and options.panoptic, everything),
        ("--top-k", options.top_k is not None and told, one_mask),
        ("--classes", options.classes is not None and told, one_mask),
        ("--reference-point", options.reference_point is not None and saved, on_picture),
        ("--reference-box", options.reference_box is not None and saved, on_picture),
    ):
        if idle:
            raise ValueError(f"{flag} {reason}")


def is_video(path: Path) -> bool:
    """Whether an input of `find_inputs` is a video: a folder of frames, or a file with such a name."""
    return path.is_dir() or path.suffix.lower() in VIDEO_SUFFIXES


def any_prompt(options: argparse.Namespace) -> bool:
    """Whether the command line says which object is meant."""
    kinds = ("point", "box", "scribble", "polygon", "mask", "text", "reference")
    return any(getattr(options, kind) is not None for kind in kinds)


def read_file(path: Path, flag: str) -> bytes:
    """The bytes of a plain file of reasonable size."""
    if not path.is_file():
        raise ValueError(f"{flag} {path}: there is no such file.")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"{flag} {path} has {size} bytes, more than the {MAX_BYTES} allowed.")
    return path.read_bytes()


def read_prompts(options: argparse.Namespace) -> Prompts:
    """The prompts of the command line, without the reference."""
    if (options.reference_point or options.reference_box) and options.reference is None:
        raise ValueError("--reference-point or --reference-box without --reference PICTURE.")
    if options.panoptic and any_prompt(options):
        raise ValueError("--panoptic answers about everything: give no prompts with it.")
    points, labels = _clicks(options.point, "--point")
    return Prompts(
        points=points,
        point_labels=labels,
        box=_numbers(options.box, "--box", 4),
        scribble=[_scribble(Path(file)) for file in options.scribble] if options.scribble else None,
        polygon=_polygons(options.polygon),
        mask=_painted(Path(options.mask), "--mask") if options.mask is not None else None,
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
    return predictor.reference(
        [decode_image(read_file(path, "--reference"), name=str(path))], [drawn]
    )


def split_names(text: str | None, flag: str) -> list[str] | None:
    """The names in a comma separated list."""
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise ValueError(f"{flag} {text!r}: expected names with commas between them.")
    return names


def _inputs(name: str, frames: bool, output: str) -> list[Path]:
    path = Path(name)
    if not name:  # which would be the current folder
        raise ValueError("it has no name.")
    if path.is_dir() and not frames:
        suffixes = (*PICTURE_SUFFIXES, *VIDEO_SUFFIXES)
        results = Path(os.path.realpath(output))
        inside = sorted(
            file
            for file in path.rglob("*")
            if file.suffix.lower() in suffixes
            and file.is_file()
            and not Path(os.path.realpath(file.parent)).is_relative_to(results)
        )
        if not inside:
            raise ValueError(f"it holds no pictures or videos ({', '.join(suffixes)}).")
        return inside
    if path.is_dir() or path.is_file():
        return [path]
    raise ValueError("there is no such picture, video or folder.")


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
        return np.asarray(json.loads(read_file(path, "--scribble")), np.float64)
    except (ValueError, TypeError) as error:
        raise ValueError(f"--scribble {path}: expected JSON [[x, y], ...] ({error}).") from error


def _painted(path: Path, flag: str) -> np.ndarray:
    """bool [H, W], where a picture is not black."""
    return decode_image(read_file(path, flag), name=f"{flag} {path}").any(-1)
