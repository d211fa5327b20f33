"""Your own images with COCO instances: polygons or run-length codes of objects that may overlap."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_prep.annotations import field, file_below, load_json, read_classes, read_objects
from data_prep.coco_files import YEAR
from data_prep.items import Item
from data_prep.own_files import Found, holds, json_files, make_instances, refuse_doubles
from data_prep.writer import Classes


def find_coco(source: Path, things: Sequence[str]) -> Found | None:
    """COCO instances."""
    files: dict[str, Path] = {}
    for path in [*source.glob("annotations/instances_*.json"), *source.glob("*/*.coco.json")]:
        name = path.parent.name if path.parent.name != "annotations" else path.stem
        files[name.removeprefix("instances_").removesuffix(YEAR)] = path
    if not files:
        single = [path for path in json_files(source) if _is_coco(path)]
        if len(single) != 1:
            return None
        files = {"": single[0]}
    classes: Classes | None = None
    items = {}
    for split, path in sorted(files.items()):
        table = load_json(path, ("images", "annotations", "categories"))
        found = read_classes(_used_categories(table), path)
        if classes not in (None, found):
            raise ValueError(f"{path} lists other 'categories' than the other splits.")
        classes = found
        objects = read_objects(table["annotations"], classes, path)
        folders = [
            source / f"{split}{YEAR}",
            source / split,
            source / "images" / split,
            source / "images",
            path.parent,
            source,
        ]
        items[split] = [
            _coco_item(row, objects, folders, f"{path}, image {number}")
            for number, row in enumerate(table["images"])
        ]
        refuse_doubles([item.image_id for item in items[split]], f"{path}: image id")
        strays = set(objects) - {item.image_id for item in items[split]}
        if strays:
            raise ValueError(f"{path}: annotations of images {sorted(strays)[:5]} not in 'images'.")
    return Found(classes, items, make_instances)


def _coco_item(row: dict, objects: dict, folders: Sequence[Path], where: str) -> Item:
    image_id = field(row, "id", int, where)
    paths = [file_below(folder, row, where) for folder in folders]
    path = next((path for path in paths if path.is_file()), paths[0])
    return Item(
        image_id=image_id,
        file_name=path.name,
        image_path=path,
        height=field(row, "height", int, where),
        width=field(row, "width", int, where),
        objects=tuple(objects.get(image_id, ())),
    )


def _used_categories(table: dict) -> list[dict]:
    """Without the category 0 that Roboflow lists as the parent of all others."""
    rows = table["categories"]
    names = {row.get("supercategory") for row in rows if isinstance(row, dict)}
    used = {row.get("category_id") for row in table["annotations"] if isinstance(row, dict)}
    return [
        row for row in rows if not (row.get("id") == 0 and row.get("name") in names) or 0 in used
    ]


def _is_coco(path: Path) -> bool:
    return holds(path, ("images", "annotations", "categories"))
