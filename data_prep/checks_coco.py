"""The checks of sets whose annotations are COCO tables: panoptic, instances, captions."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from data_prep.annotations import leads_out
from data_prep.checks_files import CORRECT, PAIR, Examined, Job, Rows, image_folders, read_lists
from data_prep.coco_files import Files
from data_prep.faults import FETCH, Fault, file_faults, text_problem
from seem_jax.data.schema import run_pixels
from seem_jax.image import MAX_PIXELS

PNG_START = b"\x89PNG"
MAX_IDS = 3  # of one PNG that are listed one by one
SLACK = 1.0  # pixels that a polygon may lie outside its image, from rounding


def examine_panoptic(files: Files, path: Path) -> Examined:
    """COCO panoptic: the JSON file, and each PNG against it."""
    table, faults = read_lists(path, ("images", "annotations", "categories"))
    if table is None:
        return faults, []
    known = categories_of(path, table, faults, isthing=True)
    sizes, jobs = _images(path, table, [files.path(""), *image_folders(files.source)], faults)
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
        if leads_out(name):
            rows.note(label, "file_name", f"{name!r} leads out of the folder of the PNGs")
            continue
        jobs.append(
            functools.partial(
                _panoptic_png, path, folder / name, label, segments, known, sizes.get(image_id)
            )
        )
    for image_id in sorted(set(sizes) - seen):
        rows.note(f"image id {image_id}", "annotations", "the image has no annotation", PAIR)
    for file in [] if files.filtered else sorted(folder.glob("*.png")):
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
    with open(path, "rb") as file:
        start = file.read(len(PNG_START))
    if start != PNG_START and start:
        text = f"no PNG, but a file that begins {start!r}; other kinds do not keep the ids"
        return [*faults, Fault(str(path), label, "", text, FETCH)]
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
    unknown = sorted(set(found) - set(by_id) - {0})
    for identity in unknown[:MAX_IDS]:
        text = f"id {identity} of the PNG ({found[identity]} pixels) is not in segments_info"
        faults.append(Fault(str(path), label, "segments_info", text, CORRECT))
    if len(unknown) > MAX_IDS:
        text = f"{len(unknown) - MAX_IDS} more ids of the PNG are not in segments_info"
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
    table, faults = read_lists(path, ("images", "annotations", "categories"))
    if table is None:
        return faults, []
    known = categories_of(path, table, faults, isthing=False)
    folders = [path.parent, *image_folders(source)]
    folders.insert(0 if path.parent.name == "annotations" else 1, Files(source, split).path(""))
    sizes, jobs = _images(path, table, folders, faults)
    check_instances(path, table, known, sizes, faults)
    return faults, jobs


def examine_lvis(path: Path) -> Examined:
    """LVIS: the annotations; its images are files of COCO, which it does not always name."""
    table, faults = read_lists(path, ("images", "annotations", "categories"))
    if table is None:
        return faults, []
    known = categories_of(path, table, faults, isthing=False)
    check_instances(path, table, known, sizes_of(table), faults)
    return faults, []


def sizes_of(table: dict) -> dict[int, tuple[int, int] | None]:
    """Image id -> (height, width), None where the table does not say it."""
    out = {}
    for row in table["images"]:
        if isinstance(row, dict) and "id" in row:
            size = row.get("height"), row.get("width")
            out[row["id"]] = size if all(isinstance(value, int) for value in size) else None
    return out


def check_instances(
    path: Path, table: dict, known: set[int] | None, sizes: dict, faults: list[Fault]
) -> None:
    """Notes what is wrong with the instance annotations of a table; `known` None: any category."""
    rows = Rows(path, table, "annotations", faults)
    rows.unique("id")
    for row in rows.rows:
        label = rows.label(row)
        rows.get(row, "id", int)
        image_id, category = rows.get(row, "image_id", int), row.get("category_id")
        if image_id is not None and image_id not in sizes:
            rows.note(label, "image_id", f"{image_id} is not among 'images'")
        if known is not None and category not in known:
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
        if leads_out(name):
            rows.note(label, "file_name", f"{name!r} leads out of the folder of the images")
            continue
        file = there[0] if there else folders[0] / name
        jobs.append(functools.partial(file_faults, file, size if good else None, label))
    return sizes, jobs


def categories_of(path: Path, table: dict, faults: list[Fault], isthing: bool) -> set[int]:
    """The ids of the categories of a table; what is wrong with them is noted."""
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
            elif _crosses_itself(points):
                yield f"{name} crosses itself, so that parts of it cancel; its corners are out of order"
            if size and not (
                x.min() >= -SLACK
                and y.min() >= -SLACK
                and x.max() <= size[1] + SLACK
                and y.max() <= size[0] + SLACK
            ):
                yield f"{name} reaches outside the image of {size} (height, width)"


def _crosses_itself(points: np.ndarray) -> bool:
    """Whether loops of a polygon [n, 2] run against each other: their areas then cancel in the sum
    over the corners, but not in the pixels. Crossings of a pixel or two, as drawn by hand, do not count.
    """
    points = points - points.min(axis=0)
    x, y = points[:, 0], points[:, 1]
    area = abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
    border = np.linalg.norm(points - np.roll(points, -1, axis=0), axis=1).sum()
    height, width = (int(value) + 2 for value in points.max(axis=0)[::-1])
    if height * width > MAX_PIXELS:
        return False  # outside of any image, which is reported by itself
    code = coco_mask.frPyObjects([points.ravel().tolist()], height, width)
    return float(coco_mask.area(code)[0]) > 2 * area + border


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
    table, faults = read_lists(path, ("images", "annotations"))
    if table is None:
        return faults, []
    rows = Rows(path, table, "annotations", faults)
    rows.unique("id")
    known = {row.get("id") for row in table["images"] if isinstance(row, dict)}
    for row in rows.rows:
        text = rows.get(row, "caption", str)
        problem = text_problem(text) if text is not None else ""
        if problem:
            rows.note(rows.label(row), "caption", problem, "Correct or remove the caption.")
        if known and row.get("image_id") not in known:
            rows.note(rows.label(row), "image_id", f"{row.get('image_id')} is not among 'images'")
    return faults, []
