"""Draws the data set `shapes` and converts it; everything follows from the seed.

    python -m data_prep.shapes --output data/shapes

Writes below --output: `raw/`, the drawn files in the layouts of COCO panoptic, REFER and DAVIS;
`records/`, what the converters for those make of them, and `records/tokenizer.model`; `done.json`,
with which a second run does nothing. An interrupted run continues.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tqdm
from PIL import Image
from pycocotools import mask as coco_mask

from data_prep import coco, davis, refcoco, scenes
from data_prep.expressions import Item, describe, describe_composition
from data_prep.tokenizer import train_tokenizer
from data_prep.writer import message_only, run, write_json
from seem_jax.data.catalog import open_split
from seem_jax.data.tfrecord import replacing
from seem_jax.models.language.tokenizer import Tokenizer

FORMAT = 2  # raise it when the same parameters give other files
SPLITS = ("train", "val", "unseen")
CONVERTED = {
    "shapes_panoptic": SPLITS,
    "shapes_referring": ("val", "unseen"),
    "shapes_video": ("train", "val"),
}
CHUNK = 100  # images drawn in one go by a process
NUM_FRAMES = 12
VOCAB_SIZE = 300
FIRST_STUFF_ID = 101
PALETTE = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0, 0, 0, 128, 128, 0, 128, 0, 128, 128]


@dataclasses.dataclass(frozen=True)
class Parameters:
    """What determines every file, but for the versions of the libraries."""

    num_train: int = 12_000
    num_val: int = 400
    num_unseen: int = 200
    size: int = 96  # pixels
    seed: int = 0
    num_videos: int = 20  # a quarter of them in val

    def count(self, split: str) -> int:
        return {"train": self.num_train, "val": self.num_val, "unseen": self.num_unseen}[split]


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Some images of a split to draw, or some videos (split "video")."""

    raw: Path
    parameters: Parameters
    split: str
    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class Picture:
    """A drawn image with its truth and its sentences."""

    scene: scenes.Scene
    image: np.ndarray  # uint8 [H, W, 3]
    index: np.ndarray  # uint8 [H, W]; see scenes.index_map
    sentences: tuple[tuple[str, ...], ...]  # of each thing; () for those without


def draw(parameters: Parameters, split: str, number: int) -> Picture:
    """Image `number` of a split; depends on nothing else.

    In train and val every thing has two sentences or more; in unseen only the things with held-out
    pairs have sentences, which name colour and shape.
    """
    rng = np.random.default_rng([parameters.seed, SPLITS.index(split), number])
    unseen = split == "unseen"
    while True:
        scene = scenes.sample_scene(rng, parameters.size, unseen)
        image, index = scenes.render(scene, rng)
        items = visible_items(scene, index)
        sentences = []
        for target, thing in enumerate(scene.things):
            if not unseen:
                sentences.append(tuple(describe(items, target, parameters.size, rng)))
            elif scenes.held_out(thing):
                sentences.append(tuple(describe_composition(items, target, rng)))
            else:
                sentences.append(())
        spoken = [entry for entry in sentences if entry]
        needed = 1 if unseen else len(scene.things)
        if len(spoken) >= needed and all(len(entry) >= 2 for entry in spoken):
            return Picture(scene, image, index, tuple(sentences))


def visible_items(scene: scenes.Scene, index: np.ndarray) -> list[Item]:
    """What sentences can say of the things of a scene, placed where they are visible."""
    first = len(scene.ground.classes) + 1
    items = []
    for number, thing in enumerate(scene.things, start=first):
        rows, columns = np.nonzero(index == number)
        items.append(
            Item(
                thing.shape,
                thing.color,
                thing.texture,
                thing.size,
                float(columns.mean()),
                float(rows.mean()),
                thing.radius,
            )
        )
    return items


def image_id(split: str, number: int) -> int:
    """Ids are unique over the splits, as in COCO."""
    return SPLITS.index(split) * 1_000_000 + number + 1


def draw_chunk(chunk: Chunk) -> list[dict[str, Any]]:
    """Draws the files of a chunk and returns the annotations of each image."""
    cv2.setNumThreads(1)  # the processes share the cores already
    folder = chunk.raw / "coco"
    out = []
    for number in range(chunk.start, chunk.stop):
        picture = draw(chunk.parameters, chunk.split, number)
        identity = image_id(chunk.split, number)
        name = f"{identity:012d}"
        _write_image(folder / f"{chunk.split}2017" / f"{name}.jpg", picture.image)
        annotation = _annotate(picture, identity)
        ids = np.array([0, *(segment["id"] for segment in annotation["segments"])])
        pixels = ids[picture.index]  # [H, W]
        bgr = np.stack([pixels >> 16, pixels >> 8 & 255, pixels & 255], axis=-1).astype(np.uint8)
        _write_image(folder / f"panoptic_{chunk.split}2017" / f"{name}.png", bgr[..., ::-1])
        out.append(annotation)
    return out


def _annotate(picture: Picture, identity: int) -> dict[str, Any]:
    """The rows of one image for the annotation files."""
    scene, index = picture.scene, picture.index
    categories = [FIRST_STUFF_ID + scenes.STUFF.index(name) for name in scene.ground.classes]
    categories += [1 + list(scenes.SHAPES).index(thing.shape) for thing in scene.things]
    segments, instances, refs = [], [], []
    num_stuff = len(scene.ground.classes)
    for place, category in enumerate(categories):
        mask = index == place + 1
        rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        shared = {
            "category_id": category,
            "iscrowd": 0,
            "bbox": [int(value) for value in coco_mask.toBbox(rle)],
            "area": int(mask.sum()),
        }
        # Spread over all three bytes of the PNG, and unique within the image.
        color = 1 + (identity * 7919 + place * 1_299_709) % 0xFFFFFE
        segments.append({"id": color, **shared})
        if place < num_stuff:
            continue
        annotation_id = identity * 10 + place - num_stuff
        counts = {"size": list(mask.shape), "counts": rle["counts"].decode()}
        instances.append(
            {"id": annotation_id, "image_id": identity, "segmentation": counts, **shared}
        )
        sentences = picture.sentences[place - num_stuff]
        if sentences:
            refs.append({"ann_id": annotation_id, "category_id": category, "sentences": sentences})
    return {"id": identity, "segments": segments, "instances": instances, "refs": refs}


def draw_videos(chunk: Chunk) -> list[str]:
    """Draws some videos in DAVIS layout and returns their names."""
    names = []
    for number in range(chunk.start, chunk.stop):
        rng = np.random.default_rng([chunk.parameters.seed, len(SPLITS), number])
        clip = scenes.sample_clip(rng, chunk.parameters.size)
        names.append(f"shapes-{number:03d}")
        for time in range(NUM_FRAMES):
            scene = scenes.frame(clip, time)
            image, index = scenes.render(scene, rng)
            num_stuff = len(scene.ground.classes)
            labels = np.where(index > num_stuff, index - num_stuff, 0).astype(np.uint8)
            folder = chunk.raw / "DAVIS"
            jpeg = folder / "JPEGImages" / "480p" / names[-1] / f"{time:05d}.jpg"
            png = folder / "Annotations" / "480p" / names[-1] / f"{time:05d}.png"
            for path in (jpeg, png):
                path.parent.mkdir(parents=True, exist_ok=True)
            _write_image(jpeg, image)
            palette = Image.fromarray(labels)
            palette.putpalette(PALETTE)
            palette.save(png)
    return names


def _write_image(path: Path, rgb: np.ndarray) -> None:
    options = [cv2.IMWRITE_JPEG_QUALITY, 95] if path.suffix == ".jpg" else []
    path.write_bytes(cv2.imencode(path.suffix, rgb[..., ::-1], options)[1].tobytes())


def draw_all(raw: Path, parameters: Parameters, processes: int) -> None:
    """Draws every image and video, then writes the annotation files."""
    for split in SPLITS:
        for folder in (f"{split}2017", f"panoptic_{split}2017"):
            (raw / "coco" / folder).mkdir(parents=True, exist_ok=True)
    for folder in ("coco/annotations", "refer/refcocog", "DAVIS/ImageSets/2017"):
        (raw / folder).mkdir(parents=True, exist_ok=True)
    chunks = [
        Chunk(raw, parameters, split, start, min(start + CHUNK, parameters.count(split)))
        for split in SPLITS
        for start in range(0, parameters.count(split), CHUNK)
    ]
    rows: dict[str, list[dict]] = {split: [] for split in SPLITS}
    total = sum(parameters.count(split) for split in SPLITS)
    with tqdm.tqdm(total=total, desc="drawing", unit="image") as bar:
        for annotations in run(draw_chunk, chunks, processes):
            for row in annotations:
                rows[SPLITS[row["id"] // 1_000_000]].append(row)
            bar.update(len(annotations))
    for split in SPLITS:
        rows[split].sort(key=lambda row: row["id"])
        _write_panoptic(raw / "coco", split, rows[split], parameters.size)
    _write_refer(raw / "refer" / "refcocog", rows, parameters.size)
    names = draw_videos(Chunk(raw, parameters, "video", 0, parameters.num_videos))
    num_val = max(1, len(names) // 4)
    for split, part in (("train", names[:-num_val]), ("val", names[-num_val:])):
        (raw / "DAVIS" / "ImageSets" / "2017" / f"{split}.txt").write_text("\n".join(part) + "\n")


def _categories(things_only: bool) -> list[dict[str, Any]]:
    things = [
        {"id": 1 + place, "name": name, "isthing": 1, "supercategory": "shape"}
        for place, name in enumerate(scenes.SHAPES)
    ]
    stuff = [
        {"id": FIRST_STUFF_ID + place, "name": name, "isthing": 0, "supercategory": "ground"}
        for place, name in enumerate(scenes.STUFF)
    ]
    return things if things_only else things + stuff


def _images(rows: list[dict], size: int) -> list[dict[str, Any]]:
    return [
        {"id": row["id"], "file_name": f"{row['id']:012d}.jpg", "height": size, "width": size}
        for row in rows
    ]


def _write_panoptic(folder: Path, split: str, rows: list[dict], size: int) -> None:
    annotations = [
        {
            "image_id": row["id"],
            "file_name": f"{row['id']:012d}.png",
            "segments_info": row["segments"],
        }
        for row in rows
    ]
    path = folder / "annotations"
    panoptic = {
        "images": _images(rows, size),
        "annotations": annotations,
        "categories": _categories(things_only=False),
    }
    instances = {
        "images": _images(rows, size),
        "annotations": [instance for row in rows for instance in row["instances"]],
        "categories": _categories(things_only=True),
    }
    write_json(path / f"panoptic_{split}2017.json", panoptic)
    write_json(path / f"instances_{split}2017.json", instances)


def _write_refer(folder: Path, rows: dict[str, list[dict]], size: int) -> None:
    everything = [row for split in SPLITS for row in rows[split]]
    instances = {
        "images": _images(everything, size),
        "annotations": [instance for row in everything for instance in row["instances"]],
        "categories": _categories(things_only=True),
    }
    write_json(folder / "instances.json", instances)
    with replacing(folder / "refs(umd).p") as aside:
        aside.write_bytes(pickle.dumps(list(_refs(rows)), protocol=2))


def _refs(rows: dict[str, list[dict]]) -> Iterator[dict[str, Any]]:
    """REFER's records, with its numbering of refs and sentences."""
    ref_id = sent_id = 0
    for split in SPLITS:
        for row in rows[split]:
            for ref in row["refs"]:
                ids = list(range(sent_id, sent_id + len(ref["sentences"])))
                sentences = [
                    {"tokens": text.split(), "raw": text, "sent": text, "sent_id": identity}
                    for text, identity in zip(ref["sentences"], ids, strict=True)
                ]
                yield {
                    "ref_id": ref_id,
                    "ann_id": ref["ann_id"],
                    "category_id": ref["category_id"],
                    "image_id": row["id"],
                    "split": split,
                    "file_name": f"COCO_train2014_{row['id']:012d}_{ref_id}.jpg",
                    "sent_ids": ids,
                    "sentences": sentences,
                }
                ref_id, sent_id = ref_id + 1, sent_id + len(ids)


def convert_all(raw: Path, records: Path, processes: int) -> None:
    """Runs the converters of COCO, REFER and DAVIS, and trains the tokenizer."""
    referring = coco.Referring(raw / "refer" / "refcocog")
    name = "shapes_panoptic"
    coco.convert(raw / "coco", records, name, CONVERTED[name], processes, [referring])
    name = "shapes_referring"
    refcoco.convert(
        raw / "coco",
        referring.directory,
        referring.owner,
        records,
        name,
        CONVERTED[name],
        processes,
    )
    name = "shapes_video"
    davis.convert(raw / "DAVIS", records, name, CONVERTED[name], processes)
    refs = refcoco.read_refs(referring.directory, referring.owner)
    texts = [text for ref in refs if ref.split == "train" for text in ref.sentences]
    names = [*scenes.SHAPES, *scenes.STUFF, "background", "a"]
    train_tokenizer([*texts, *names], records / "tokenizer.model", VOCAB_SIZE)


def make(output: Path, parameters: Parameters, processes: int, force: bool = False) -> None:
    """Draws and converts the data set, unless it is there. See the module for what it writes.

    Raises ValueError when `output` holds a data set of other parameters, unless `force` is given,
    which removes it.
    """
    stamp = output / "done.json"
    want = {"format": FORMAT, **dataclasses.asdict(parameters)}
    if force:
        stamp.unlink(
            missing_ok=True
        )  # first, so that what is half removed is never taken for whole
        for name in ("raw", "records"):
            shutil.rmtree(output / name, ignore_errors=True)
    state = json.loads(stamp.read_text()) if stamp.is_file() else {"parameters": want, "done": []}
    if state["parameters"] != want:
        changed = {name for name, value in want.items() if state["parameters"].get(name) != value}
        raise ValueError(
            f"{output} holds a data set of other parameters {sorted(changed)}: "
            f"there {state['parameters']}, asked {want}. Use another --output, or --force to replace it."
        )
    if "records" in state["done"] and _complete(output / "records"):
        print(f"{output} is complete; nothing to do.")
        return
    output.mkdir(parents=True, exist_ok=True)
    write_json(stamp, state)
    if "raw" not in state["done"]:
        draw_all(output / "raw", parameters, processes)
        state["done"].append("raw")
        write_json(stamp, state)
    convert_all(output / "raw", output / "records", processes)
    state["done"] = ["raw", "records"]
    write_json(stamp, state)
    print(f"{output / 'records'} is ready.")


def _complete(records: Path) -> bool:
    """Whether every converted file is there; says what is wrong before it is made again."""
    try:
        for name, splits in CONVERTED.items():
            for split in splits:
                open_split(records, f"{name}:{split}")
        Tokenizer(records / "tokenizer.model")
    except ValueError as error:
        print(f"{error}\nConverting again what is missing.")
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("data/shapes"))
    for field in dataclasses.fields(Parameters):
        parser.add_argument(f"--{field.name}", type=int, default=field.default)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument(
        "--force", action="store_true", help="replace a data set of other parameters"
    )
    args = parser.parse_args()
    names = [field.name for field in dataclasses.fields(Parameters)]
    parameters = Parameters(**{name: getattr(args, name) for name in names})
    with message_only():
        make(args.output, parameters, args.processes, args.force)


if __name__ == "__main__":
    main()
