"""The files that `seem_jax.predict` writes: pictures, masks and JSON."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from seem_jax.predictor import PanopticPrediction, Prediction

DRAWN_SIDE = 640  # pixels, longer edge of a drawn picture at least


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

    def unused(self, file: Path) -> str:
        """The name of a file without its ending, with a number where another input has it too."""
        name, number = file.stem or "input", 2
        while name in self.used:
            name, number = f"{file.stem}_{number}", number + 1
        self.used.add(name)
        return name

    @contextlib.contextmanager
    def lines(self, name: str) -> Iterator[Callable[[dict], None]]:
        """Writes one line of JSON per call; the file appears when all of them are written."""
        path = self.folder / name
        aside = path.with_name(f".{os.getpid()}.lines.tmp")
        try:
            with aside.open("w") as file:
                yield lambda content: print(json.dumps(content), file=file)
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)

    @contextlib.contextmanager
    def aside(self, name: str) -> Iterator[Path]:
        """A folder to fill; its files go to the folder of that name when all of them are written."""
        path = self.folder / name
        aside = self.folder / f".{os.getpid()}.files.tmp"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        try:
            yield aside
            path.mkdir(parents=True, exist_ok=True)
            for file in aside.iterdir():
                os.replace(file, path / file.name)
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def finish(self) -> None:
        """Writes the JSON files of all pictures."""
        if self.instances["images"]:
            categories = [{"id": number, "name": name} for name, number in self.classes.items()]
            self._json("annotations.json", self.instances | {"categories": categories})
        if self.panoptic["images"]:
            categories = [self.panoptic_classes[key] for key in sorted(self.panoptic_classes)]
            self._json("panoptic.json", self.panoptic | {"categories": categories})

    def _start(self, table: dict[str, list], file: Path, picture: np.ndarray) -> tuple[str, int]:
        """A name that no other input has, and the number of the picture."""
        number = len(table["images"]) + 1
        name = self.unused(file)
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
