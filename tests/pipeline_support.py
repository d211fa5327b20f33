"""Drawn records and a tokenizer that need no files, and the batches that the pipeline makes of them."""

import cv2
import jax
import numpy as np
from pycocotools import mask as coco_mask

from seem_jax.config import DataConfig
from seem_jax.data import pipeline
from seem_jax.data.schema import Record
from seem_jax.types import MaskRefs

SIZE = 48
COLOURS = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0), (0, 250, 250), (250, 0, 250)]
CLASSES = ["ball", "box", "tree-merged", "sky-other-merged"]
BALLS = 3
CONFIG = DataConfig(
    train=("fake:train",),
    image_size=SIZE,
    min_scale=0.7,
    max_scale=1.5,
    max_objects=8,
    max_phrases=3,
    max_phrase_tokens=12,
    max_prompts=4,
    max_points=32,
    phrase_prompt_probability=0.5,
    batch_size=4,
    num_threads=2,
    prefetch=2,
)


class FakeRecords(list):
    """Records that need no files."""

    name, split, class_names = "fake", "train", CLASSES


class FakeTokenizer:
    """Letters of the words as ids, so that a test can read the text back."""

    def encode(self, texts, length):
        ids = np.zeros((len(texts), length), np.int32)
        for row, text in enumerate(texts):
            tokens = [ord(letter) for letter in text][:length]
            ids[row, : len(tokens)] = tokens
        return ids, ids > 0


def text_of(ids: np.ndarray) -> str:
    return "".join(chr(letter) for letter in ids if letter)


def record(number: int, *, phrases: bool = True, height: int = SIZE, width: int = SIZE) -> Record:
    """Sky above trees, three balls and a box, each segment in a colour of its own.

    Sentences name the balls by number; the last ball also stands as an object that is no segment:
    its upper half.
    """
    rng = np.random.default_rng([number, 5])
    index = np.full((height, width), 2, np.uint8)
    index[: height // 2] = 1
    for ball in range(BALLS):
        centre = (int(width * (ball + 0.5) / BALLS), int(rng.integers(10, height - 10)))
        cv2.circle(index, centre, int(rng.integers(5, 8)), 3 + ball, -1)
    index[-6:, -6:] = 6
    image = np.zeros((height, width, 3), np.uint8)
    for segment, colour in enumerate(COLOURS):
        image[index == segment + 1] = colour
    masks = [index == 3 + ball for ball in range(BALLS)]
    masks[-1] = masks[-1] & (np.arange(height) < np.nonzero(masks[-1])[0].mean())[:, None]
    rles = [coco_mask.encode(np.asfortranarray(m.astype(np.uint8)))["counts"] for m in masks]
    words = [(f"{kind} {ball}", ball) for ball in range(BALLS) for kind in ("Ball", "Left")]
    return Record(
        image_id=number,
        file_name=f"{number}.png",
        image=cv2.imencode(".png", image[:, :, ::-1])[1].tobytes(),
        height=height,
        width=width,
        segment_map=cv2.imencode(".png", index)[1].tobytes(),
        segment_id=[10, 11, 12, 13, 14, 15],
        segment_category=[3, 2, 0, 0, 0, 1],
        segment_crowd=[False] * 6,
        object_rle=rles,
        object_category=[0] * BALLS,
        phrase_text=[text for text, _ in words] if phrases else [],
        phrase_object=[ball for _, ball in words] if phrases else [],
    )


TEMPLATES = ("{}", "the {}", "a {}")
RECORDS = FakeRecords(record(number) for number in range(10))
CLASS_RECORDS = FakeRecords(record(number, phrases=False) for number in range(10))


def batches_of(config: DataConfig = CONFIG, count: int = 4, splits=(RECORDS,), **options):
    batches = pipeline.train_batches(
        config, FakeTokenizer(), templates=TEMPLATES, splits=list(splits), **options
    )
    out = [next(batches) for _ in range(count)]
    batches.close()
    return out


def assert_equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def masks_of(planes: np.ndarray, refs: MaskRefs) -> np.ndarray:
    """bool [B, M, H, W] by the definition in types.MaskRefs."""
    out = np.zeros((*refs.valid.shape, *planes.shape[2:]), bool)
    for row, m in np.argwhere(refs.valid):
        plane = planes[row, refs.plane[row, m]]
        out[row, m] = (plane & refs.select[row, m]) == refs.value[row, m]
    return out
