"""Converts your own images, annotated in one of five formats, into records.

    python -m data_prep.custom --input data/mine --output data/mine/records

The format is recognised by the files below --input, or said with --format. <split> is train, val,
valid or test; files without a folder of that name are one set, of which the share --val_share
becomes the split val (by a hash of the file name, so the same on every machine).

  coco       annotations/instances_<split>.json, images in <split>/, images/<split>/ or images/;
             or <split>/_annotations.coco.json beside its images
  panoptic   annotations/panoptic_<split>.json, panoptic_<split>/*.png, images in <split>/
  masks      images/ and masks/ with the same file names (in or above a folder <split>);
             masks/*.png hold the class of each pixel, classes.txt a name a line (line 0 for pixel 0)
  yolo       data.yaml or classes.txt; images/ and labels/*.txt: "class x y x y ..." in 0 to 1
  labelme    *.json beside their images (in folders <split>, or together)

Class names become the vocabulary. In `masks`, background, void and ignore are no classes, 255 is
void, and a class is a thing if --things names it (each of its connected parts is an object).
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
import yaml
from PIL import Image, UnidentifiedImageError

from data_prep import coco
from data_prep.annotations import (
    Object,
    field,
    image_header,
    image_orientation,
    load_json,
    read_classes,
    read_objects,
)
from data_prep.items import Item, Map, Segment, instance_map, make_record
from data_prep.writer import (
    Classes,
    MissingInputError,
    Plan,
    chosen_splits,
    converter_parser,
    message_only,
    write_dataset,
)
from seem_jax.data.schema import Record

SPLITS = ("train", "val", "valid", "test")
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
NO_CLASS = ("background", "_background_", "__background__", "__ignore__", "ignore", "void")
VOID = 255  # of an index mask, unless classes.txt has so many lines
CIRCLE_CORNERS = 64  # of the polygon that stands for a circle


@dataclasses.dataclass(frozen=True)
class Found:
    """A folder in one of the formats: its classes, and the items of each split."""

    classes: Classes
    items: dict[str, list[Item]]
    make: Callable[[Item], Record]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskItem(Item):
    """An item with an index mask."""

    class_of_pixel: tuple[int, ...]  # contiguous class of each pixel value; -1 for none
    num_things: int


def make_instances(item: Item) -> Record:
    """A record whose objects are its segments."""
    return make_record(_upright(item), instance_map)


def make_masks(item: MaskItem) -> Record:
    """A record with the segments of an index mask."""
    return make_record(_upright(item), read_index_mask)


def read_index_mask(item: MaskItem, masks: Sequence[bytes]) -> Map:
    """A segment for each class of stuff, and for each connected part of a class of things."""
    labels = read_mask(item.map_path)
    if labels.shape != (item.height, item.width):
        raise ValueError(
            f"{item.map_path} is {labels.shape} pixels, its image {(item.height, item.width)}."
        )
    values = np.unique(labels).tolist()
    void = VOID if len(item.class_of_pixel) <= VOID else -1
    values = [value for value in values if value != void]
    unknown = [value for value in values if not 0 <= value < len(item.class_of_pixel)]
    if unknown:
        raise ValueError(
            f"{item.map_path} has the pixel values {unknown}, for which classes.txt has no line "
            f"({len(item.class_of_pixel)} values are known)."
        )
    pixels = np.zeros(labels.shape, np.int64)
    segments: list[Segment] = []
    for value in values:
        category = item.class_of_pixel[value]
        if category < 0:
            continue
        mask = (labels == value).astype(np.uint8)
        count, parts = 1, mask
        if category < item.num_things:
            total, parts = cv2.connectedComponents(mask, connectivity=8)
            count = total - 1
        for part in range(1, count + 1):
            segments.append(Segment(len(segments) + 1, category))
            pixels[parts == part] = len(segments)
    return Map(pixels, tuple(segments))


def read_mask(path: Path) -> np.ndarray:
    """The numbers of a one-channel PNG [H, W], as they are stored."""
    try:
        with Image.open(path) as image:
            labels = np.array(image)
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} is missing or no readable PNG.") from error
    if labels.ndim != 2 or labels.dtype not in (np.uint8, np.uint16, np.int32, bool):
        raise ValueError(
            f"{path}: expected a mask with one channel of class numbers, found {labels.dtype} "
            f"{labels.shape}; colours must be turned into numbers first."
        )
    return labels.astype(np.int64)


def _upright(item: Item) -> Item:
    turn = image_orientation(item.image_path)
    if turn != 1:
        raise ValueError(
            f"{item.image_path} has the EXIF orientation {turn}, so viewers turn it and its masks "
            "may not fit. Rotate its pixels (for example: mogrify -auto-orient) and remove the tag."
        )
    return item


def find_coco(source: Path, things: Sequence[str]) -> Found | None:
    """COCO instances."""
    files: dict[str, Path] = {}
    for path in [*source.glob("annotations/instances_*.json"), *source.glob("*/*.coco.json")]:
        name = path.parent.name if path.parent.name != "annotations" else path.stem
        files[name.removeprefix("instances_").removesuffix(coco.YEAR)] = path
    if not files:
        single = [path for path in _json_files(source) if _is_coco(path)]
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
            source / f"{split}{coco.YEAR}",
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
        _refuse_doubles([item.image_id for item in items[split]], f"{path}: image id")
        strays = set(objects) - {item.image_id for item in items[split]}
        if strays:
            raise ValueError(f"{path}: annotations of images {sorted(strays)[:5]} not in 'images'.")
    return Found(classes, items, make_instances)


def _coco_item(row: dict, objects: dict, folders: Sequence[Path], where: str) -> Item:
    image_id = field(row, "id", int, where)
    name = field(row, "file_name", str, where)
    there = [folder / name for folder in folders if (folder / name).is_file()]
    return Item(
        image_id=image_id,
        file_name=Path(name).name,
        image_path=there[0] if there else folders[0] / name,
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


def find_panoptic(source: Path, things: Sequence[str]) -> Found | None:
    """COCO panoptic."""
    splits = coco.find_splits(source)
    if not splits:
        return None
    plans = [coco.plan_split(source, split) for split in splits]
    if len({classes for _, classes in plans}) > 1:
        raise ValueError(f"{source}: the splits {splits} list different 'categories'.")
    items = {plan.split: list(plan.items) for plan, _ in plans}
    return Found(plans[0][1], items, plans[0][0].make)


def find_masks(source: Path, things: Sequence[str]) -> Found | None:
    """Images and index masks."""
    pairs = {split: (images, masks) for split, images, masks in folder_pairs(source, "masks")}
    if not pairs:
        return None
    names = read_lines(source / "classes.txt")
    listed = [name for name in names if name.lower() not in NO_CLASS]
    missing = sorted(set(things) - set(listed))
    if missing:
        raise ValueError(
            f"--things {missing}: not in {source / 'classes.txt'}, which has {listed}."
        )
    ordered = [name for name in listed if name in things]
    ordered += [name for name in listed if name not in things]
    of_pixel = [ordered.index(name) if name in ordered else -1 for name in names]
    classes = Classes(tuple(ordered), len(things), tuple(names.index(name) for name in ordered))
    items: dict[str, list[Item]] = {}
    for split, (images, masks) in pairs.items():
        items[split] = [
            MaskItem(
                image_id=number,
                file_name=image.name,
                image_path=image,
                map_path=mask,
                class_of_pixel=tuple(of_pixel),
                num_things=len(things),
            )
            for number, (image, mask) in enumerate(_matched(images, masks, ".png"))
        ]
    return Found(classes, items, make_masks)


def find_yolo(source: Path, things: Sequence[str]) -> Found | None:
    """YOLO segmentation text."""
    pairs = {split: (images, labels) for split, images, labels in folder_pairs(source, "labels")}
    if not pairs:
        return None
    names = yolo_names(source)
    items: dict[str, list[Item]] = {}
    for split, (images, labels) in pairs.items():
        items[split] = []
        for number, (image, label) in enumerate(_matched(images, labels, ".txt")):
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
    return Found(_things_only(names), items, make_instances)


def yolo_names(source: Path) -> list[str]:
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


def find_labelme(source: Path, things: Sequence[str]) -> Found | None:
    """LabelMe JSON."""
    files = {split: _json_files(source / split) for split in SPLITS}
    if not any(files.values()):
        files = {"": _json_files(source)}
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
        split: [_labelme_item(i, path, tables[path], names) for i, path in enumerate(paths)]
        for split, paths in files.items()
        if paths
    }
    return Found(_things_only(names), items, make_instances)


def _labelme_item(number: int, path: Path, table: dict, names: Sequence[str]) -> Item:
    name = field(table, "imagePath", str, str(path)).replace("\\", "/")
    beside = path.parent / Path(name).name
    image = beside if beside.is_file() else path.parent / name
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


FORMATS = {
    "panoptic": find_panoptic,
    "coco": find_coco,
    "masks": find_masks,
    "yolo": find_yolo,
    "labelme": find_labelme,
}


def read_folder(source: Path, kind: str | None, things: Sequence[str]) -> Found:
    """The folder in the format `kind`, or in the first that fits."""
    for name in [kind] if kind else FORMATS:
        found = FORMATS[name](source, things)
        if found:
            if not found.classes.names:
                raise ValueError(f"{source}: no class is named, so nothing can be learned.")
            print(f"{source} is read as format {name!r}, {len(found.classes.names)} classes.")
            return found
    raise MissingInputError(f"{source} holds no data set of the format {kind or list(FORMATS)}.")


def split_items(items: dict[str, list[Item]], val_share: float) -> dict[str, list[Item]]:
    """The items by split; those of no split become train and val."""
    if not 0 <= val_share < 1:
        raise ValueError(f"--val_share {val_share}: expected a share from 0 to less than 1.")
    out = {("val" if split == "valid" else split): rows for split, rows in items.items() if split}
    single = items.get("", [])
    if single:
        order = sorted(single, key=lambda item: hashlib.sha256(item.file_name.encode()).hexdigest())
        count = max(1, round(val_share * len(order))) if val_share and len(order) > 1 else 0
        held = {id(item) for item in order[:count]}
        out["train"] = [item for item in single if id(item) not in held]
        if count:
            out["val"] = [item for item in single if id(item) in held]
    return out


def convert(
    source: Path,
    root: Path,
    name: str,
    splits: Sequence[str] | None = None,
    processes: int = 1,
    kind: str | None = None,
    things: Sequence[str] = (),
    val_share: float = 0.1,
) -> None:
    """Converts a folder to `<root>/<name>`; see the top of this file."""
    if not source.is_dir():
        raise MissingInputError(f"{source} is no folder.")
    found = read_folder(source, kind, things)
    items = split_items(found.items, val_share)
    plans = []
    for split in chosen_splits(splits, list(items), source):
        if split not in items:
            raise ValueError(f"{source} has the splits {sorted(items)}, not {split!r}.")
        plans.append(Plan(split, items[split], found.make))
    write_dataset(root, name, found.classes, plans, processes=processes)


def folder_pairs(source: Path, truth: str) -> list[tuple[str, Path, Path]]:
    """(split, folder of images, folder of truth) in the two usual arrangements."""
    found = []
    for split in SPLITS:
        for images, other in (
            (source / "images" / split, source / truth / split),
            (source / split / "images", source / split / truth),
        ):
            if images.is_dir() and other.is_dir():
                found.append((split, images, other))
    if not found and (source / "images").is_dir() and (source / truth).is_dir():
        found = [("", source / "images", source / truth)]
    return found


def _matched(images: Path, truth: Path, suffix: str) -> list[tuple[Path, Path]]:
    """Images by name, with their files of truth. ValueError for what has no partner."""
    pictures = sorted(path for path in images.iterdir() if path.suffix.lower() in PICTURES)
    _refuse_doubles([path.stem for path in pictures], f"{images}: file name")
    files = {path.stem: path for path in truth.glob(f"*{suffix}")}
    files.pop("classes", None)
    lonely = sorted(set(files) - {path.stem for path in pictures})
    if lonely:
        raise ValueError(f"{truth}: {lonely[:5]}{suffix} have no image in {images}.")
    without = sorted({path.stem for path in pictures} - set(files))
    if without and suffix == ".png":
        raise ValueError(f"{images}: {without[:5]} have no mask in {truth}.")
    return [(path, truth / f"{path.stem}{suffix}") for path in pictures]


def _refuse_doubles(values: Sequence[object], what: str) -> None:
    counts: dict[object, int] = defaultdict(int)
    for value in values:
        counts[value] += 1
    doubled = [value for value, count in counts.items() if count > 1]
    if doubled:
        raise ValueError(f"{what} {doubled[0]!r} occurs {counts[doubled[0]]} times.")


def read_lines(path: Path) -> list[str]:
    if not path.is_file():
        raise MissingInputError(f"{path} does not exist; it names the classes, one a line.")
    return [
        line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()
    ]


def _things_only(names: Sequence[str]) -> Classes:
    _refuse_doubles(names, "class name")
    return Classes(tuple(names), len(names), tuple(range(len(names))))


def _json_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.json")) if folder.is_dir() else []


def _is_coco(path: Path) -> bool:
    return _has(path, ("images", "annotations", "categories"))


def _is_labelme(path: Path) -> bool:
    return _has(path, ("shapes", "imagePath"))


def _has(path: Path, names: Sequence[str]) -> bool:
    """Whether a JSON object has these fields; a damaged file is refused by name."""
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); it may be truncated.") from error
    return isinstance(value, dict) and all(name in value for name in names)


def main() -> None:
    parser = converter_parser(__doc__, "custom")
    parser.add_argument("--format", choices=sorted(FORMATS))
    parser.add_argument("--things", nargs="*", default=[], help="classes of things of `masks`")
    parser.add_argument("--val_share", type=float, default=0.1)
    args: argparse.Namespace = parser.parse_args()
    with message_only(__doc__):
        convert(
            args.input,
            args.output,
            args.name,
            args.splits,
            args.processes,
            args.format,
            args.things,
            args.val_share,
        )


if __name__ == "__main__":
    main()
