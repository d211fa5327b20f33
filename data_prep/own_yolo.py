"""Your own images with YOLO segmentation text: "class x y x y ..." in shares of the image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import yaml

from data_prep.annotations import Object, image_header
from data_prep.items import Item
from data_prep.own_files import (
    Found,
    folder_pairs,
    make_instances,
    matched,
    read_lines,
    things_only,
)


def find_yolo(source: Path, things: Sequence[str]) -> Found | None:
    """YOLO segmentation text."""
    pairs = {split: (images, labels) for split, images, labels in folder_pairs(source, "labels")}
    if not pairs:
        return None
    names = yolo_names(source)
    items: dict[str, list[Item]] = {}
    for split, (images, labels) in pairs.items():
        items[split] = []
        for number, (image, label) in enumerate(matched(images, labels, ".txt")):
            height, width = image_header(image)
            objects = tuple(_yolo_objects(label, len(names), height, width))
            items[split].append(
                Item(
                    image_id=number,
                    file_name=image.name,
                    image_path=image,
                    height=height,
                    width=width,
                    objects=objects,
                )
            )
    return Found(things_only(names), items, make_instances)


def yolo_names(source: Path) -> list[str]:
    """The class names in data.yaml, dataset.yaml or classes.txt. ValueError for another YAML."""
    for path in (source / "data.yaml", source / "dataset.yaml"):
        if path.is_file():
            try:
                names = (yaml.safe_load(path.read_text()) or {})["names"]
                if isinstance(names, dict):
                    names = [names[number] for number in range(len(names))]
                return [str(name) for name in names]
            except (yaml.YAMLError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path}: expected 'names', a list or numbers from 0 with names ({error!r})."
                ) from error
    return read_lines(source / "classes.txt")


def _yolo_objects(path: Path, num_classes: int, height: int, width: int) -> Iterable[Object]:
    """The objects of a label file; a missing file has none, as usual in YOLO."""
    if not path.is_file():
        return
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        for _, problem in yolo_problems(line, num_classes):
            raise ValueError(f"{where}: {problem}.")
        category, *numbers = line.split()
        points = np.array([float(text) for text in numbers]).reshape(-1, 2)
        polygon = (np.clip(points, 0, 1) * [width, height]).ravel().tolist()
        yield Object(number, int(category), [polygon], where)


def yolo_problems(line: str, num_classes: int) -> list[tuple[str, str]]:
    """(field, what is wrong with it) of a line of a label file; an empty line is right."""
    category, *numbers = line.split() or ["0", *"000000"]
    if not category.isdigit() or int(category) >= num_classes:
        return [("class", f"class {category}, but there are {num_classes} names, from 0")]
    try:
        points = np.array([float(text) for text in numbers])
    except ValueError as error:
        return [("polygon", f"expected pairs of numbers ({error})")]
    if len(points) < 6 or len(points) % 2:
        text = f"{len(points)} numbers are no polygon of three corners or more"
        return [("polygon", text + "; four are a box, which holds no mask" * (len(points) == 4))]
    if not ((points >= -1e-3) & (points <= 1 + 1e-3)).all():
        return [("polygon", f"coordinates must be shares from 0 to 1; one is {_far(points)}")]
    return []


def _far(points: np.ndarray) -> float:
    return float(points[np.abs(points - 0.5).argmax()])
