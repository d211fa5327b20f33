"""Your own images with LabelMe JSON: one file of shapes for each image."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_prep.annotations import Object, field, load_json
from data_prep.items import Item
from data_prep.own_files import (
    NO_CLASS,
    SPLITS,
    Found,
    holds,
    json_files,
    make_instances,
    read_lines,
    things_only,
)

CIRCLE_CORNERS = 64  # of the polygon that stands for a circle


def find_labelme(source: Path, things: Sequence[str]) -> Found | None:
    """LabelMe JSON."""
    files = {split: json_files(source / split) for split in SPLITS}
    if not any(files.values()):
        files = {"": json_files(source)}
    files = {split: [path for path in paths if _is_labelme(path)] for split, paths in files.items()}
    if not any(files.values()):
        return None
    tables = {path: load_json(path, ("shapes",)) for paths in files.values() for path in paths}
    labels = source / "labels.txt"
    names = (
        [name for name in read_lines(labels) if name not in NO_CLASS] if labels.is_file() else None
    )
    if names is None:
        names = sorted(
            {
                field(shape, "label", str, f"{path}, shape {number}")
                for path, table in tables.items()
                for number, shape in enumerate(table["shapes"])
            }
        )
    items = {
        split: [_labelme_item(source, i, path, tables[path], names) for i, path in enumerate(paths)]
        for split, paths in files.items()
        if paths
    }
    return Found(things_only(names), items, make_instances)


def _labelme_item(source: Path, number: int, path: Path, table: dict, names: Sequence[str]) -> Item:
    name = field(table, "imagePath", str, str(path)).replace("\\", "/")
    beside = path.parent / Path(name).name
    image = beside if beside.is_file() else path.parent / name
    if not Path(os.path.abspath(image)).is_relative_to(os.path.abspath(source)):
        raise ValueError(
            f"{path}: imagePath {name!r} leads out of {source}; expected one below it."
        )
    groups: dict[object, list[Object]] = {}
    for place, shape in enumerate(table["shapes"]):
        where = f"{path}, shape {place}"
        label = field(shape, "label", str, where)
        if label in NO_CLASS:
            continue
        if label not in names:
            raise ValueError(f"{where}: label {label!r} is not in labels.txt, which has {names}.")
        polygon = labelme_polygon(shape, where)
        group = shape.get("group_id")
        key = (label, group) if group is not None else place
        entry = groups.get(key)
        polygons = [*entry.segmentation, polygon] if entry else [polygon]
        groups[key] = Object(place + 1, names.index(label), polygons, where)
    return Item(
        image_id=number,
        file_name=image.name,
        image_path=image,
        height=field(table, "imageHeight", int, str(path)),
        width=field(table, "imageWidth", int, str(path)),
        objects=tuple(groups.values()),
    )


def labelme_polygon(shape: dict, where: str) -> list[float]:
    """A shape as one polygon [x, y, ...] in pixels. ValueError naming `where` for one without area."""
    kind = shape.get("shape_type") or "polygon"
    try:
        points = np.array(field(shape, "points", list, where), np.float64).reshape(-1, 2)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: 'points' must be pairs of numbers ({error}).") from error
    if kind == "rectangle" and len(points) == 2:
        (x0, y0), (x1, y1) = points
        points = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
    elif kind == "circle" and len(points) == 2:
        angle = np.arange(CIRCLE_CORNERS) * (2 * np.pi / CIRCLE_CORNERS)
        radius = np.linalg.norm(points[1] - points[0])
        points = points[0] + radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    elif kind != "polygon":
        raise ValueError(
            f"{where}: shape_type {kind!r} has no area; expected polygon, rectangle or circle."
        )
    if len(points) < 3:
        raise ValueError(f"{where}: a polygon of {len(points)} points; expected three or more.")
    return points.ravel().tolist()


def _is_labelme(path: Path) -> bool:
    return holds(path, ("shapes", "imagePath"))
