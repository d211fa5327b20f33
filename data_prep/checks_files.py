"""What the checks of raw data sets share: files, rows of tables, pairs of files."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data_prep import own_files
from data_prep.annotations import image_header
from data_prep.faults import FETCH, Fault, repeated

CORRECT = "Correct the annotation, or take the file from its source again."
PAIR = "Add the missing file, or remove the entry."
Job = Callable[[], list[Fault]]
Examined = tuple[list[Fault], list[Job]]


def read_lists(path: Path, lists: Sequence[str]) -> tuple[dict[str, Any] | None, list[Fault]]:
    """The JSON object in a file, lists that are missing being empty."""
    try:
        table = json.loads(path.read_bytes())
        if not isinstance(table, dict):
            raise ValueError(f"it holds a {type(table).__name__}, not an object")
    except ValueError as error:
        return None, [Fault(str(path), "", "", f"no JSON ({error}); it may be cut off", FETCH)]
    faults = []
    for name in lists:
        if not isinstance(table.get(name), list):
            faults.append(Fault(str(path), "", name, "expected a list", FETCH))
            table[name] = []
    return table, faults


class Rows:
    """The rows of a list in a JSON file; what does not fit is noted as a fault."""

    def __init__(self, path: Path, table: dict, name: str, faults: list[Fault]):
        self.path, self.name, self.faults = path, name, faults
        self.rows = [row for row in table[name] if isinstance(row, dict)]
        for number, row in enumerate(table[name]):
            if not isinstance(row, dict):
                self.note(f"{name}[{number}]", "", f"is {row!r:.60}, not an object")

    def note(self, record: str, field: str, problem: str, repair: str = CORRECT) -> None:
        self.faults.append(Fault(str(self.path), record, field, problem, repair))

    def label(self, row: dict) -> str:
        for key in ("id", "ref_id", "image_id"):
            if key in row:
                return f"{self.name.removesuffix('s')} {key} {row[key]}"
        return f"{self.name}[{self.rows.index(row)}]"

    def get(self, row: dict, field: str, kind: type | tuple[type, ...]) -> Any:
        """The value of a field, or None, which is noted."""
        value = row.get(field)
        if not isinstance(value, kind) or isinstance(value, bool):
            given = repr(value)[:60] if field in row else "nothing"
            self.note(self.label(row), field, f"is {given}, expected {kind}")
            return None
        return value

    def unique(self, field: str) -> None:
        """Notes values of a field that stand in more than one row."""
        values = [row[field] for row in self.rows if isinstance(row.get(field), (int, str))]
        for value in repeated(values):
            self.note(f"{self.name.removesuffix('s')} {field} {value}", field, "occurs repeatedly")


def size_of(path: Path) -> tuple[int, int] | None:
    try:
        return image_header(path)
    except ValueError:
        return None


def image_folders(source: Path) -> list[Path]:
    """Where the images of a COCO folder may lie."""
    inside = [*sorted(source.glob("*")), *sorted((source / "images").glob("*")), source]
    return [path for path in inside if path.is_dir() and not path.name.startswith("panoptic")]


def pictures_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in own_files.PICTURES)


def unpaired(images: Path, truth: Path, suffix: str) -> list[Fault]:
    pictures = {path.stem: path for path in pictures_in(images)}
    files = {path.stem: path for path in truth.glob(f"*{suffix}") if path.stem != "classes"}
    faults = [
        Fault(str(files[name]), name, "", f"there is no image of this name in {images}", PAIR)
        for name in sorted(set(files) - set(pictures))
    ]
    return faults + [
        Fault(str(pictures[name]), name, "", f"there is no {name}{suffix} in {truth}", PAIR)
        for name in sorted(set(pictures) - set(files))
    ]


def repeated_lines(path: Path) -> list[Fault]:
    return [
        Fault(str(path), name, "", "the name stands in the list repeatedly", "Remove the others.")
        for name in repeated(path.read_text().split())
    ]
