"""The checks of downloaded or home-made data sets for data_prep/doctor.py, format by format."""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from data_prep import custom, davis, sbd, voc
from data_prep.annotations import image_header
from data_prep.coco import YEAR, Files
from data_prep.faults import FETCH, Fault, file_faults, repeated
from data_prep.refcoco import read_refs
from seem_jax.data.schema import run_pixels

CORRECT = "Correct the annotation, or take the file from its source again."
PAIR = "Add the missing file, or remove the entry."
SLACK = 1.0  # pixels that a polygon may lie outside its image, from rounding
Job = Callable[[], list[Fault]]
Examined = tuple[list[Fault], list[Job]]


def _read(path: Path, lists: Sequence[str]) -> tuple[dict[str, Any] | None, list[Fault]]:
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


def _images(
    path: Path, table: dict, folders: Sequence[Path], faults: list[Fault]
) -> tuple[dict[int, tuple[int, int]], list[Job]]:
    """Sizes of the images by id, and the work of looking into their files."""
    rows = Rows(path, table, "images", faults)
    rows.unique("id")
    rows.unique("file_name")
    sizes, jobs = {}, []
    for row in rows.rows:
        identity, name = rows.get(row, "id", int), rows.get(row, "file_name", str)
        size = rows.get(row, "height", int), rows.get(row, "width", int)
        for field, value in zip(("height", "width"), size):
            if value is not None and value <= 0:
                rows.note(rows.label(row), field, f"is {value}, it must be > 0")
        good = all(value and value > 0 for value in size)
        if identity is not None:
            sizes[identity] = size if good else None
        if name is None:
            continue
        there = [folder / name for folder in folders if (folder / name).is_file()]
        label = rows.label(row)
        file = there[0] if there else folders[0] / name
        jobs.append(functools.partial(file_faults, file, size if good else None, label))
    return sizes, jobs


def _categories(path: Path, table: dict, faults: list[Fault], isthing: bool) -> set[int]:
    rows = Rows(path, table, "categories", faults)
    rows.unique("id")
    rows.unique("name")
    for row in rows.rows:
        rows.get(row, "id", int)
        name = rows.get(row, "name", str)
        if name is not None and not name.strip():
            rows.note(rows.label(row), "name", "is empty")
        if isthing and row.get("isthing") not in (0, 1):
            rows.note(rows.label(row), "isthing", f"is {row.get('isthing')!r}, expected 0 or 1")
    if not rows.rows:
        rows.note("", "categories", "lists no class")
    return {row["id"] for row in rows.rows if isinstance(row.get("id"), int)}


def examine_panoptic(source: Path, split: str) -> Examined:
    """COCO panoptic: the JSON file, and each PNG against it."""
    files = Files(source, split)
    path = files.path("annotations/panoptic_", ".json")
    table, faults = _read(path, ("images", "annotations", "categories"))
    if table is None:
        return faults, []
    known = _categories(path, table, faults, isthing=True)
    sizes, jobs = _images(path, table, [files.path(""), *_image_folders(source)], faults)
    rows = Rows(path, table, "annotations", faults)
    rows.unique("image_id")
    folder, names, seen = files.path("panoptic_"), set(), set()
    for row in rows.rows:
        image_id, name = rows.get(row, "image_id", int), rows.get(row, "file_name", str)
        segments = rows.get(row, "segments_info", list)
        seen.add(image_id)
        if image_id is not None and image_id not in sizes:
            rows.note(rows.label(row), "image_id", f"{image_id} is not among 'images'")
        if name is None or segments is None:
            continue
        names.add(name)
        label = f"image id {image_id}"
        jobs.append(
            functools.partial(
                _panoptic_png, path, folder / name, label, segments, known, sizes.get(image_id)
            )
        )
    for image_id in sorted(set(sizes) - seen):
        rows.note(f"image id {image_id}", "annotations", "the image has no annotation", PAIR)
    for file in sorted(folder.glob("*.png")):
        if file.name not in names:
            faults.append(Fault(str(file), "", "", f"the PNG has no entry in {path.name}", PAIR))
    return faults, jobs


def _panoptic_png(
    table: Path, path: Path, label: str, segments: list, known: set[int], size: object
) -> list[Fault]:
    """Faults of one panoptic PNG and its segments_info."""
    faults: list[Fault] = []
    rows = Rows(table, {"segments_info": segments}, "segments_info", faults)
    by_id: dict[int, dict] = {}
    for row in rows.rows:
        where = f"{label}, segment id {row.get('id')}"
        identity, category = row.get("id"), row.get("category_id")
        if not isinstance(identity, int) or not 0 < identity < 1 << 24:
            rows.note(where, "id", f"is {identity!r}, expected 1 to 16777215")
            continue
        if identity in by_id:
            rows.note(where, "id", "occurs repeatedly")
        by_id[identity] = row
        if category not in known:
            rows.note(where, "category_id", f"{category!r} is not among 'categories'")
        if row.get("iscrowd", 0) not in (0, 1):
            rows.note(where, "iscrowd", f"is {row['iscrowd']!r}, expected 0 or 1")
    if not path.is_file():
        return [*faults, Fault(str(path), label, "file_name", "the file does not exist", FETCH)]
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        return [*faults, Fault(str(path), label, "", "no readable PNG; it may be cut off", FETCH)]
    if pixels.ndim != 3 or pixels.dtype != np.uint8:
        text = f"{pixels.dtype} {pixels.shape}; ids are stored in the three bytes of RGB"
        return [*faults, Fault(str(path), label, "", text, FETCH)]
    if size and pixels.shape[:2] != tuple(size):
        text = f"{pixels.shape[:2]} (height, width), annotated as {tuple(size)}"
        faults.append(Fault(str(path), label, "height, width", text, CORRECT))
    ids = pixels[..., :3].astype(np.int64) @ np.array([65536, 256, 1])
    found = dict(zip(*(values.tolist() for values in np.unique(ids, return_counts=True))))
    for identity in sorted(set(found) - set(by_id) - {0}):
        text = f"id {identity} of the PNG ({found[identity]} pixels) is not in segments_info"
        faults.append(Fault(str(path), label, "segments_info", text, CORRECT))
    for identity in sorted(set(by_id) - set(found)):
        text = f"id {identity} of segments_info has no pixel in {path.name}"
        faults.append(Fault(str(table), label, "segments_info", text, CORRECT))
    for identity, row in by_id.items():
        area = row.get("area")
        if area is not None and identity in found and area != found[identity]:
            text = f"is {area!r}, the PNG has {found[identity]} pixels"
            rows.note(f"{label}, segment id {identity}", "area", text)
    return faults


def examine_instances(source: Path, path: Path, split: str) -> Examined:
    """COCO instances: images, categories, polygons and run-length codes."""
    table, faults = _read(path, ("images", "annotations", "categories"))
    if table is None:
        return faults, []
    known = _categories(path, table, faults, isthing=False)
    folders = [path.parent, *_image_folders(source)]
    folders.insert(0 if path.parent.name == "annotations" else 1, Files(source, split).path(""))
    sizes, jobs = _images(path, table, folders, faults)
    _instances(path, table, known, sizes, faults)
    return faults, jobs


def _instances(path: Path, table: dict, known: set[int], sizes: dict, faults: list[Fault]) -> None:
    rows = Rows(path, table, "annotations", faults)
    rows.unique("id")
    for row in rows.rows:
        label = rows.label(row)
        rows.get(row, "id", int)
        image_id, category = rows.get(row, "image_id", int), row.get("category_id")
        if image_id is not None and image_id not in sizes:
            rows.note(label, "image_id", f"{image_id} is not among 'images'")
        if category not in known:
            rows.note(label, "category_id", f"{category!r} is not among 'categories'")
        if row.get("iscrowd", 0) not in (0, 1):
            rows.note(label, "iscrowd", f"is {row['iscrowd']!r}, expected 0 or 1")
        if "area" in row and (not isinstance(row["area"], (int, float)) or not row["area"] > 0):
            rows.note(label, "area", f"is {row['area']!r}, it must be > 0")
        if "bbox" in row:
            problem = _box_problem(row["bbox"], sizes.get(image_id))
            if problem:
                rows.note(label, "bbox", problem)
        for problem in segmentation_problems(row.get("segmentation"), sizes.get(image_id)):
            rows.note(label, "segmentation", problem)


def _box_problem(box: object, size: tuple[int, int] | None) -> str:
    """What is wrong with a box [x, y, width, height]; "" for nothing."""
    numbers = isinstance(box, list) and all(isinstance(value, (int, float)) for value in box)
    if not numbers or len(box) != 4:
        return f"is {box!r:.60}, expected [x, y, width, height]"
    x, y, width, height = box
    if not (width > 0 and height > 0):
        return f"has the width {width} and the height {height}; both must be > 0"
    if size and not (
        x >= -SLACK
        and y >= -SLACK
        and x + width <= size[1] + SLACK
        and y + height <= size[0] + SLACK
    ):
        return f"{box} lies outside the image of {size} (height, width)"
    return ""


def segmentation_problems(segmentation: object, size: tuple[int, int] | None) -> Iterator[str]:
    """What is wrong with polygons or a run-length code in COCO's manner."""
    if isinstance(segmentation, dict):
        yield from _code_problems(segmentation, size)
        return
    if not isinstance(segmentation, list) or not segmentation:
        yield f"is {segmentation!r:.60}, expected polygons or a run-length code"
        return
    for place, polygon in enumerate(segmentation):
        name = f"polygon {place}"
        if not isinstance(polygon, list) or not all(isinstance(v, (int, float)) for v in polygon):
            yield f"{name} is no list of numbers"
        elif len(polygon) % 2 or len(polygon) < 6:
            yield f"{name} has {len(polygon)} numbers; expected an even number, 6 or more"
        elif not np.isfinite(polygon).all():
            yield f"{name} has numbers that are not finite"
        else:
            points = np.reshape(polygon, (-1, 2))
            x, y = points[:, 0], points[:, 1]
            if np.ptp(x) == 0 or np.ptp(y) == 0:
                yield f"{name} has no area"
            if size and not (
                x.min() >= -SLACK
                and y.min() >= -SLACK
                and x.max() <= size[1] + SLACK
                and y.max() <= size[0] + SLACK
            ):
                yield f"{name} reaches outside the image of {size} (height, width)"


def _code_problems(code: dict, size: tuple[int, int] | None) -> Iterator[str]:
    counts, own = code.get("counts"), code.get("size")
    if not isinstance(own, list) or len(own) != 2:
        yield f"has the size {own!r}, expected [height, width]"
        return
    if size and tuple(own) != tuple(size):
        yield f"has the size {own}, the image {list(size)}"
    if isinstance(counts, list):
        covered = sum(counts) if all(isinstance(n, int) and n >= 0 for n in counts) else -1
        area = sum(counts[1::2]) if covered >= 0 else 0
    elif isinstance(counts, str):
        covered = run_pixels(counts.encode("latin-1", "replace"))
        whole = covered == own[0] * own[1]
        area = int(coco_mask.area({"size": own, "counts": counts.encode()})) if whole else 0
    else:
        yield f"has the counts {counts!r:.40}, expected text or a list"
        return
    if covered != own[0] * own[1]:
        yield f"its counts cover {covered} pixels of {own[0] * own[1]}; the code is damaged"
    elif not area:
        yield "is an empty mask"


def examine_captions(path: Path) -> Examined:
    """COCO captions: texts and the images they belong to."""
    table, faults = _read(path, ("images", "annotations"))
    if table is None:
        return faults, []
    rows = Rows(path, table, "annotations", faults)
    rows.unique("id")
    known = {row.get("id") for row in table["images"] if isinstance(row, dict)}
    for row in rows.rows:
        text = rows.get(row, "caption", str)
        if text is not None and not text.strip():
            rows.note(rows.label(row), "caption", "is empty", "Write or remove the caption.")
        if known and row.get("image_id") not in known:
            rows.note(rows.label(row), "image_id", f"{row.get('image_id')} is not among 'images'")
    return faults, []


def examine_refer(path: Path) -> Examined:
    """REFER: `refs(<owner>).p` against instances.json."""
    owner = path.name.removeprefix("refs(").removesuffix(").p")
    try:
        refs = read_refs(path.parent, owner)
    except ValueError as error:
        return [Fault(str(path), "", "", str(error), FETCH)], []
    objects = path.parent / "instances.json"
    if not objects.is_file():
        text = "the file does not exist; the objects of the refs are in it"
        return [Fault(str(objects), "", "", text, FETCH)], []
    table, faults = _read(objects, ("images", "annotations", "categories"))
    if table is None:
        return faults, []
    sizes: dict[int, tuple[int, int]] = {
        row["id"]: (row.get("height"), row.get("width"))
        for row in table["images"]
        if isinstance(row, dict) and "id" in row
    }
    owner_of = {
        row["id"]: row.get("image_id")
        for row in table["annotations"]
        if isinstance(row, dict) and "id" in row
    }

    def note(record: str, field: str, problem: str) -> None:
        faults.append(Fault(str(path), record, field, problem, CORRECT))

    for value in repeated(ref.ref_id for ref in refs):
        note(f"ref_id {value}", "ref_id", "occurs repeatedly")
    for ref in refs:
        label = f"ref_id {ref.ref_id}"
        if owner_of and ref.ann_id not in owner_of:
            note(label, "ann_id", f"{ref.ann_id} is not in instances.json")
        elif owner_of and owner_of[ref.ann_id] != ref.image_id:
            note(label, "image_id", f"{ref.image_id}, but its object is in {owner_of[ref.ann_id]}")
        if sizes and ref.image_id not in sizes:
            note(label, "image_id", f"{ref.image_id} is not in instances.json")
        if not ref.sentences:
            note(label, "sentences", "there is none")
        for number, text in enumerate(ref.sentences):
            if not text.strip():
                note(f"{label}, sentence {number}", "raw", "the text is empty")
    known = _categories(objects, table, faults, isthing=False)
    _instances(objects, table, known, sizes, faults)
    return faults, []


def examine_voc(source: Path) -> Examined:
    """PASCAL VOC: the lists, and each image with its two PNGs."""
    faults: list[Fault] = []
    jobs: list[Job] = []
    for path in sorted((source / "ImageSets" / "Segmentation").glob("*.txt")):
        faults += _repeated_lines(path)
        if not path.read_text().split():
            faults.append(Fault(str(path), "", "", "the list is empty", FETCH))
        if path.stem != "trainval":
            jobs += [
                functools.partial(_voc_image, source, name) for name in path.read_text().split()
            ]
    return faults, jobs


def _voc_image(source: Path, name: str) -> list[Fault]:
    image = source / "JPEGImages" / f"{name}.jpg"
    faults = file_faults(image, None, name)
    size = _size(image)
    if size is None:
        return faults
    maps = []
    for folder in ("SegmentationObject", "SegmentationClass"):
        path = source / folder / f"{name}.png"
        try:
            maps.append(voc.read_palette(path, *size))
        except (ValueError, OSError) as error:
            faults.append(Fault(str(path), name, "", str(error), FETCH))
    if len(maps) == 2:
        objects, classes = maps
        path = source / "SegmentationObject" / f"{name}.png"
        for number in sorted(set(np.unique(objects).tolist()) - {0, voc.BORDER}):
            inside = set(np.unique(classes[objects == number]).tolist()) - {voc.BORDER}
            if not inside or inside - set(range(1, len(voc.NAMES) + 1)):
                text = f"object {number} has the classes {sorted(inside)}, expected one of 1 to 20"
                faults.append(Fault(str(path), name, f"object {number}", text, CORRECT))
        if not ((objects > 0) & (objects < voc.BORDER)).any():
            faults.append(Fault(str(path), name, "", "the image has no object", CORRECT))
    return faults


def examine_sbd(source: Path) -> Examined:
    """SBD: the lists, and each image with its MATLAB file."""
    faults: list[Fault] = []
    names: dict[str, None] = {}
    for split in sbd.SPLITS:
        path = source / f"{split}.txt"
        if path.is_file():
            faults += _repeated_lines(path)
            names |= dict.fromkeys(path.read_text().split())
    return faults, [functools.partial(_sbd_image, source, name) for name in names]


def _sbd_image(source: Path, name: str) -> list[Fault]:
    image, path = source / "img" / f"{name}.jpg", source / "inst" / f"{name}.mat"
    faults = file_faults(image, None, name)
    try:
        labels, classes = sbd.read_mat(path)
    except ValueError as error:
        return [*faults, Fault(str(path), name, "GTinst", str(error), FETCH)]
    size = _size(image)
    if size and labels.shape != size:
        text = f"{labels.shape} pixels, the image {size}"
        faults.append(Fault(str(path), name, "Segmentation", text, CORRECT))
    for number in np.unique(labels[labels > 0]).tolist():
        if number > len(classes) or not 1 <= classes[number - 1] <= len(voc.NAMES):
            text = f"object {number} has no class from 1 to 20 in {classes}"
            faults.append(Fault(str(path), name, "Categories", text, CORRECT))
    if not labels.any():
        faults.append(Fault(str(path), name, "Segmentation", "the image has no object", CORRECT))
    return faults


def examine_davis(source: Path) -> Examined:
    """DAVIS: the lists, gaps in the frames, each frame with its annotation."""
    faults: list[Fault] = []
    names: dict[str, None] = {}
    for path in sorted((source / "ImageSets").glob("*/*.txt")):
        if path.parent.name in ("2016", "2017", "480p"):
            if path.parent.name != "480p":
                faults += _repeated_lines(path)
            for name in davis.read_sequences(path):
                names[name] = None
    jobs = [functools.partial(_davis_sequence, source, name) for name in names]
    return faults, jobs


def _davis_sequence(source: Path, name: str) -> list[Fault]:
    folder, truth = (source / part / "480p" / name for part in ("JPEGImages", "Annotations"))
    frames = sorted(folder.glob("*.jpg"))
    if not frames:
        return [Fault(str(folder), name, "", "the sequence has no frames", FETCH)]
    faults: list[Fault] = []
    numbers = [int(path.stem) for path in frames if path.stem.isdigit()]
    for path in frames:
        if not path.stem.isdigit():
            faults.append(Fault(str(path), name, "", "the name is no frame number", CORRECT))
    for number in sorted(set(range(max(numbers, default=-1) + 1)) - set(numbers)):
        faults.append(Fault(str(folder), name, f"frame {number}", "the frame is missing", FETCH))
    stems = {path.stem for path in frames}
    for path in sorted(truth.glob("*.png")):
        if path.stem not in stems:
            faults.append(Fault(str(path), name, "", "the annotation has no frame", PAIR))
    most = None
    for path in frames:
        png, size = truth / f"{path.stem}.png", _size(path)
        faults += file_faults(path, None, f"{name}, frame {path.stem}")
        if not png.is_file():
            # Test splits annotate the first frame only.
            if path is frames[0] or len(list(truth.glob("*.png"))) > 1:
                text = "the annotation of the frame is missing"
                faults.append(Fault(str(png), f"{name}, frame {path.stem}", "", text, FETCH))
            continue
        try:
            labels = davis.read_labels(png)
        except ValueError as error:
            faults.append(Fault(str(png), f"{name}, frame {path.stem}", "", str(error), FETCH))
            continue
        record = f"{name}, frame {path.stem}"
        if size and labels.shape != size:
            text = f"{labels.shape} pixels, the frame {size}"
            faults.append(Fault(str(png), record, "", text, CORRECT))
        most = int(labels.max(initial=0)) if most is None else most
        if labels.max(initial=0) > most:
            text = f"object {labels.max()}, but the first frame has {most} objects"
            faults.append(Fault(str(png), record, f"object {labels.max()}", text, CORRECT))
    return faults


def examine_yolo(source: Path) -> Examined:
    """YOLO segmentation text, line by line."""
    try:
        names = custom.yolo_names(source)
    except ValueError as error:
        return [Fault(str(source), "", "names", str(error), CORRECT)], []
    faults: list[Fault] = []
    for value in repeated(names):
        faults.append(Fault(str(source), "", "names", f"{value!r} occurs repeatedly", CORRECT))
    jobs: list[Job] = []
    for _, images, labels in custom.folder_pairs(source, "labels"):
        faults += _unpaired(images, labels, ".txt")
        for path in sorted(labels.glob("*.txt")):
            jobs.append(functools.partial(_yolo_file, path, len(names)))
        for path in _pictures(images):
            jobs.append(functools.partial(file_faults, path, None, path.stem))
    return faults, jobs


def _yolo_file(path: Path, num_classes: int) -> list[Fault]:
    faults = []
    try:
        lines = path.read_text().splitlines()
    except UnicodeDecodeError:
        return [Fault(str(path), "", "", "no text file", FETCH)]
    for number, line in enumerate(lines, start=1):
        for field, problem in custom.yolo_problems(line, num_classes):
            faults.append(Fault(str(path), f"line {number}", field, problem, CORRECT))
    return faults


def examine_masks(source: Path) -> Examined:
    """Images and index masks."""
    path = source / "classes.txt"
    faults: list[Fault] = []
    names: list[str] = []
    if path.is_file():
        names = custom.read_lines(path)
        faults += [
            Fault(str(path), "", "", f"{value!r} occurs repeatedly", CORRECT)
            for value in repeated(names)
        ]
    else:
        faults.append(Fault(str(path), "", "", "the file does not exist; it names classes", PAIR))
    jobs: list[Job] = []
    for _, images, masks in custom.folder_pairs(source, "masks"):
        faults += _unpaired(images, masks, ".png")
        for image in _pictures(images):
            mask = masks / f"{image.stem}.png"
            jobs.append(functools.partial(_mask_pair, image, mask, len(names)))
    return faults, jobs


def _mask_pair(image: Path, path: Path, num_values: int) -> list[Fault]:
    faults = file_faults(image, None, image.stem)
    if not path.is_file():  # reported with the pairs
        return faults
    try:
        labels = custom.read_mask(path)
    except ValueError as error:
        return [*faults, Fault(str(path), image.stem, "", str(error), CORRECT)]
    size = _size(image)
    if size and labels.shape != size:
        faults.append(Fault(str(path), image.stem, "", f"{labels.shape} pixels, {size}", CORRECT))
    unknown = sorted(set(np.unique(labels).tolist()) - set(range(num_values)) - {custom.VOID})
    if num_values and unknown:
        text = f"the pixel values {unknown[:5]} have no line in classes.txt ({num_values} lines)"
        faults.append(Fault(str(path), image.stem, "class", text, CORRECT))
    return faults


def examine_labelme(paths: Sequence[Path]) -> Examined:
    """LabelMe JSON, shape by shape."""
    return [], [functools.partial(_labelme_file, path) for path in paths]


def _labelme_file(path: Path) -> list[Fault]:
    table, faults = _read(path, ("shapes",))
    if table is None:
        return faults
    rows = Rows(path, table, "shapes", faults)
    size = rows.get(table, "imageHeight", int), rows.get(table, "imageWidth", int)
    for number, row in enumerate(rows.rows):
        label = f"shape {number}"
        if not isinstance(row.get("label"), str) or not row["label"].strip():
            rows.note(label, "label", f"is {row.get('label')!r}")
        try:
            polygon = custom.labelme_polygon(row, label)
        except ValueError as error:
            rows.note(label, "points", str(error))
            continue
        known = size if None not in size else None
        for problem in segmentation_problems([polygon], known):
            rows.note(label, "points", problem)
    name = rows.get(table, "imagePath", str)
    if name is not None:
        beside = path.parent / Path(name.replace("\\", "/")).name
        faults += file_faults(beside, size if None not in size else None, path.name)
    return faults


def _size(path: Path) -> tuple[int, int] | None:
    try:
        return image_header(path)
    except ValueError:
        return None


def _image_folders(source: Path) -> list[Path]:
    """Where the images of a COCO folder may lie."""
    inside = [*sorted(source.glob("*")), *sorted((source / "images").glob("*")), source]
    return [path for path in inside if path.is_dir() and not path.name.startswith("panoptic")]


def _unlisted_images(source: Path, tables: Sequence[Path]) -> Iterator[Fault]:
    """Image files that no annotation file names."""
    named = set()
    for path in tables:
        table, _ = _read(path, ())
        rows = (table or {}).get("images") or []
        named |= {Path(str(row.get("file_name"))).name for row in rows if isinstance(row, dict)}
    for folder in _image_folders(source):
        for file in _pictures(folder):
            if file.name not in named:
                yield Fault(str(file), "", "", "no annotation file names this image", PAIR)


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in custom.PICTURES)


def _unpaired(images: Path, truth: Path, suffix: str) -> list[Fault]:
    pictures = {path.stem: path for path in _pictures(images)}
    files = {path.stem: path for path in truth.glob(f"*{suffix}") if path.stem != "classes"}
    faults = [
        Fault(str(files[name]), name, "", f"there is no image of this name in {images}", PAIR)
        for name in sorted(set(files) - set(pictures))
    ]
    return faults + [
        Fault(str(pictures[name]), name, "", f"there is no {name}{suffix} in {truth}", PAIR)
        for name in sorted(set(pictures) - set(files))
    ]


def _repeated_lines(path: Path) -> list[Fault]:
    return [
        Fault(str(path), name, "", "the name stands in the list repeatedly", "Remove the others.")
        for name in repeated(path.read_text().split())
    ]


def examine(source: Path) -> tuple[list[str], list[Fault], list[Job]]:
    """The formats found in a folder, their faults, and the work of looking into the files."""
    found: dict[str, Examined] = {}
    categories = defaultdict(list)
    for path in sorted(source.glob("annotations/*.json")):
        kind, _, split = path.stem.partition("_")
        split = split.removesuffix(YEAR)
        if kind == "panoptic":
            found[path.name] = examine_panoptic(source, split)
        elif kind == "instances":
            found[path.name] = examine_instances(source, path, split)
        elif kind == "captions":
            found[path.name] = examine_captions(path)
        if kind in ("panoptic", "instances"):
            categories[kind].append(path)
    for path in sorted(source.glob("*/*.coco.json")):
        found[str(path.relative_to(source))] = examine_instances(source, path, path.parent.name)
    for pattern in ("refs(*).p", "*/refs(*).p", "refer/*/refs(*).p"):
        for path in sorted(source.glob(pattern)):
            found[str(path.relative_to(source))] = examine_refer(path)
    if (source / "SegmentationObject").is_dir():
        found["VOC"] = examine_voc(source)
    if (source / "inst").is_dir():
        found["SBD"] = examine_sbd(source)
    if (source / "ImageSets").is_dir() and (source / "JPEGImages" / "480p").is_dir():
        found["DAVIS"] = examine_davis(source)
    if custom.folder_pairs(source, "labels"):
        found["YOLO"] = examine_yolo(source)
    if custom.folder_pairs(source, "masks"):
        found["masks"] = examine_masks(source)
    if not found:
        folders = [source, *(source / split for split in custom.SPLITS)]
        paths = [path for folder in folders for path in sorted(folder.glob("*.json"))]
        labelme = [path for path in paths if b'"categories"' not in path.read_bytes()]
        if labelme:
            found["LabelMe"] = examine_labelme(labelme)
        for path in set(paths) - set(labelme):
            split = "" if path.parent == source else path.parent.name
            found[str(path.relative_to(source))] = examine_instances(source, path, split)
    faults = [fault for one, _ in found.values() for fault in one]
    if categories:
        faults += _unlisted_images(source, [path for some in categories.values() for path in some])
    faults += _category_differences(categories)
    return list(found), faults, [job for _, jobs in found.values() for job in jobs]


def _category_differences(files: dict[str, list[Path]]) -> list[Fault]:
    """Categories that one file lists and another of its kind does not, or those with instances that
    a panoptic file does not list."""
    listed = {
        kind: {path: _listed(path) for path in paths if _listed(path) is not None}
        for kind, paths in files.items()
    }
    faults = []
    for tables in listed.values():
        needed = set().union(*tables.values(), *listed.get("instances", {}).values())
        for path, own in tables.items():
            for identity, name in sorted(needed - own, key=str):
                text = f"lacks {name!r}, which another annotation file lists"
                faults.append(
                    Fault(str(path), f"category id {identity}", "categories", text, CORRECT)
                )
    return faults


def _listed(path: Path) -> set[tuple[object, object]] | None:
    table, _ = _read(path, ("categories",))
    if table is None:
        return None
    return {(row.get("id"), row.get("name")) for row in table["categories"] if row}
