"""Suite `data`: how fast one core turns records into training examples.

Records are drawn at the usual size of COCO's photographs (640 x 480 pixels, about 130 kB as JPEG, 16
segments, half of them with sentences), written as shards and read back through everything that
training does to an image. Time is processor time of one thread, so other programs disturb it little.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import cv2
import jax
import numpy as np
import sentencepiece
import simplejpeg
from pycocotools import mask as coco_mask

from seem_jax import image as images
from seem_jax.config import Config, DataConfig
from seem_jax.data import collate, draft, questions, schema, transforms
from seem_jax.data.tfrecord import TFRecordSource, write_shard
from seem_jax.models.language.tokenizer import Tokenizer

HEIGHT, WIDTH = 480, 640  # of a drawn photograph
NUM_RECORDS = 32
NUM_SEGMENTS = 16
NUM_READ, READ_BYTES = 1000, 100_000  # records that are only read
NUM_CLASSES = 133
SECONDS = 4.0  # of processor time for each figure, at least
WORDS = ("the", "left", "right", "large", "small", "red", "grey", "cat", "dog", "bus", "near", "on")

STAGES = (  # stage -> where it is called: the module or class, and the name
    ("read", TFRecordSource, "__getitem__"),
    ("parse", schema, "decode"),
    ("decode", images, "decode_image"),
    ("resize", transforms, "place_image"),
    ("masks", draft, "place_segments"),
    ("masks", draft.Draft, "object_mask"),
    ("strokes", questions, "draw_prompts"),
    ("text", Tokenizer, "encode"),
    ("collate", collate, "stack"),
)


def run(config: Config) -> dict[str, float]:
    """Images a second and core of the whole mapper, its split, and what it is compared with.

    `data/milliseconds/<stage>` are of one image; `rest` is what no stage counts. Plain is decode,
    resize and pad of the same images, by the same functions. Bytes are those of a Batch.
    """
    data = dataclasses.replace(config.data, min_scale=0.1, max_scale=2.0)
    threads = cv2.getNumThreads()
    cv2.setNumThreads(0)  # as the pipeline does
    try:
        with tempfile.TemporaryDirectory() as folder:
            return _measure(data, Path(folder))
    finally:
        cv2.setNumThreads(threads)


def _measure(data: DataConfig, folder: Path) -> dict[str, float]:
    shard = folder / "benchmark-train.tfrecord-00000-of-00001"
    rng = np.random.default_rng(0)
    records = [draw_record(number, rng) for number in range(NUM_RECORDS)]
    write_shard(shard, map(schema.encode, records))
    source, tokenizer = TFRecordSource([shard]), _tokenizer(folder)
    names = [f"class {number}" for number in range(NUM_CLASSES)]

    def example(number: int):
        rng = np.random.default_rng(number)
        record = schema.decode(source[number % NUM_RECORDS])
        made, _ = collate.training_example(
            record, number, names, ("a photo of a {}.",), data, tokenizer, rng
        )
        return collate.stack([made])

    def plain(number: int):
        rng = np.random.default_rng(number)
        picture = images.decode_image(records[number % NUM_RECORDS].image)
        scales = data.min_scale, data.max_scale
        where = transforms.jitter(picture.shape[:2], data.image_size, *scales, data.flip, rng)
        return transforms.place_image(picture, where)

    simple = seconds_each(plain)
    spent: dict[str, float] = dict.fromkeys([stage for stage, _, _ in STAGES], 0.0)
    with _timed(spent):
        count, total = _repeat(example)
    full = total / count
    read = seconds_each(_random_reads(folder))
    figures = {
        "data/images_per_second_per_core": 1 / full,
        "data/plain_images_per_second_per_core": 1 / simple,
        "data/share_of_plain": simple / full,
        "data/records_read_per_second": 1 / read,
        "data/bytes_per_image": float(
            sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(example(0)))
        ),
        "data/stored_bytes_per_record": shard.stat().st_size / NUM_RECORDS,
    }
    for stage, seconds in spent.items():
        figures[f"data/milliseconds/{stage}"] = 1e3 * seconds / count
    figures["data/milliseconds/rest"] = 1e3 * (full - sum(spent.values()) / count)
    return figures


def _random_reads(folder: Path) -> Callable[[int], bytes]:
    """Reads of records of 100 kB at random places, more of them than a processor's cache holds."""
    shard = folder / "reads-train.tfrecord-00000-of-00001"
    rng = np.random.default_rng(0)
    write_shard(shard, (rng.bytes(READ_BYTES) for _ in range(NUM_READ)))
    source, order = TFRecordSource([shard]), rng.integers(NUM_READ, size=1 << 16)
    return lambda number: source[order[number % len(order)]]


def seconds_each(work: Callable[[int], object]) -> float:
    """Processor time of `work(number)`, the mean over several numbers."""
    count, spent = _repeat(work)
    return spent / count


def _repeat(work: Callable[[int], object]) -> tuple[int, float]:
    work(0)
    count, begin = 0, time.thread_time()
    while time.thread_time() - begin < SECONDS or count < NUM_RECORDS:
        work(count)
        count += 1
    return count, time.thread_time() - begin


@contextlib.contextmanager
def _timed(spent: dict[str, float]) -> Iterator[None]:
    """Adds up the time inside the functions of STAGES; what one calls of another counts once."""
    running: list[str] = []

    def wrap(stage: str, function: Callable) -> Callable:
        def inner(*args, **kwargs):
            begin = time.thread_time()
            running.append(stage)
            try:
                return function(*args, **kwargs)
            finally:
                running.pop()
                passed = time.thread_time() - begin
                spent[stage] += passed
                if running:
                    spent[running[-1]] -= passed

        return inner

    with contextlib.ExitStack() as stack:
        for stage, place, name in STAGES:
            wrapped = wrap(stage, getattr(place, name))
            stack.enter_context(mock.patch.object(place, name, wrapped))
        yield


def draw_record(number: int, rng: np.random.Generator) -> schema.Record:
    """A picture of soft noise with the segments of a Voronoi diagram; every second has sentences."""
    scales = [cv2.resize(rng.normal(128, 60, (n, n, 3)), (WIDTH, HEIGHT)) for n in (8, 60, 400)]
    picture = np.clip(np.mean(scales, axis=0) * 1.5 - 64, 0, 255).astype(np.uint8)
    centres = rng.uniform((0, 0), (WIDTH, HEIGHT), (NUM_SEGMENTS, 2))
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    wave = 12 * np.sin(x / 9) + 12 * np.cos(y / 7)  # borders as uneven as those of objects
    distance = [(x - cx) ** 2 + (y - cy + wave) ** 2 for cx, cy in centres]
    index = (np.argmin(distance, axis=0) + 1).astype(np.uint8)
    chosen = rng.permutation(NUM_SEGMENTS)[:3] if number % 2 else []
    masks = [np.asfortranarray((index == place + 1).astype(np.uint8)) for place in chosen]
    return schema.Record(
        image_id=number,
        file_name=f"{number}.jpg",
        image=simplejpeg.encode_jpeg(picture, quality=91, colorsubsampling="420"),
        height=HEIGHT,
        width=WIDTH,
        segment_map=cv2.imencode(".png", index)[1].tobytes(),
        segment_id=list(range(1, NUM_SEGMENTS + 1)),
        segment_category=rng.integers(0, NUM_CLASSES, NUM_SEGMENTS).tolist(),
        segment_crowd=[False] * NUM_SEGMENTS,
        object_rle=[coco_mask.encode(mask)["counts"] for mask in masks],
        object_category=[0] * len(masks),
        phrase_text=[" ".join(rng.choice(WORDS, 6)) for _ in range(2 * len(masks))],
        phrase_object=[place // 2 for place in range(2 * len(masks))],
    )


def _tokenizer(folder: Path) -> Tokenizer:
    """A small vocabulary, as that of the user may not be there."""
    path = folder / "tokenizer"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(WORDS), "a photo of a class 0123456789."]),
        model_prefix=str(path),
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        minloglevel=2,
    )
    return Tokenizer(path.with_suffix(".model"))
