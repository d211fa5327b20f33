"""A model that knows the answer, and the records that it is asked about.

The oracle reads the truth from the colours of the images (red: segment, green: class), so what is
tested is everything around a model: vocabulary, sizes, padding, clicks, counting and pictures.
"""

from __future__ import annotations

import dataclasses

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from pycocotools import mask as coco_mask

from seem_jax.data.schema import Record
from seem_jax.evaluation.tasks import base
from seem_jax.models.seem import build, initialise
from seem_jax.types import Features, KeptTokens, Outputs, SlotOutputs, VisualTokens
from tests.fakes import tiny_config

NUM_IDS, NUM_WORDS = 16, 48
FIRST_CLASS, BACKGROUND, FIRST_PHRASE = 3, 20, 24  # words of the oracle's language
STEP = 10  # grey levels between two segments
SURE = 20.0  # logit


@dataclasses.dataclass
class FakeSplit:
    records: list[Record]
    name: str = "shapes_fake"
    split: str = "val"
    class_names: tuple[str, ...] = ("c0", "c1", "c2", "c3-stuff")
    num_things: int = 3

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, item: int) -> Record:
        return self.records[item]


class FakeTokenizer:
    def __init__(self, path: str = ""):
        del path

    def encode(self, texts, length: int):
        ids, valid = np.zeros((len(texts), length), np.int32), np.zeros((len(texts), length), bool)
        for row, text in enumerate(texts):
            word = text.split()[-1]
            start = {"c": FIRST_CLASS, "p": FIRST_PHRASE}.get(word[0])
            ids[row, :3] = 1, BACKGROUND if word == "background" else start + int(word[1:]), 2
            valid[row, :3] = True
        return ids, valid


class Oracle:
    """Keeps the calls of SEEM and answers from the colours; `late`: only from the second round on."""

    config = tiny_config().model  # named in the keys of class tables

    def __init__(self, late: bool = False):
        self.late = late

    def apply(self, variables, *args, method: str, **kwargs):
        del variables
        return getattr(self, method)(*args, **kwargs)

    def encode_image(self, images):
        small = jnp.asarray(images)[:, 2::4, 2::4].astype(jnp.float32) / STEP
        segment = jax.nn.one_hot(jnp.round(small[..., 0]).astype(jnp.int32), NUM_IDS)
        label = jnp.round(small[..., 1, None]) * segment  # [B, h, w, ids]
        label = jnp.where(segment.any((1, 2)), label.max((1, 2)) + FIRST_CLASS, BACKGROUND)
        mask = SURE * (2 * segment - 1)
        return Features(mask=mask, levels=(), mask_levels=(), keys=(label,), values=())

    def encode_text(self, ids, valid):
        del valid
        tokens = jax.nn.one_hot(ids, NUM_WORDS)
        return tokens, tokens[:, 1]

    def encode_prompts(self, features, prompts, num_prompts, located=None):
        del located
        h, w = features.mask.shape[1:3]
        at = jnp.floor(prompts.points * jnp.array([[[w, h]]], jnp.float32)).astype(jnp.int32)
        rows = jnp.arange(len(at))[:, None]
        read = features.mask[rows, at[..., 1], at[..., 0]]  # [B, K, ids]
        owner = prompts.prompt[:, None] == jnp.arange(num_prompts)[None, :, None]
        owner = owner & (prompts.valid & prompts.positive)[:, None]
        pooled = jnp.einsum("bpk,bkd->bpd", owner.astype(jnp.float32), read)
        pooled = pooled / jnp.maximum(owner.sum(-1, keepdims=True), 1).astype(jnp.float32)
        return VisualTokens(
            levels=(),
            prompt=prompts.prompt,
            valid=prompts.valid,
            pooled=pooled,
            prompt_valid=owner.any(-1),
        )

    def keep_prompts(self, features, prompts, num_prompts):
        visual = self.encode_prompts(features, prompts, num_prompts)
        shape = (len(prompts.valid), num_prompts, -1)
        valid = prompts.valid.reshape(shape)
        positive = (valid & prompts.positive.reshape(shape)).sum(-1, keepdims=True)
        return KeptTokens(
            keys=(),
            values=(),
            valid=valid,
            pooled=visual.pooled,
            count=positive.astype(jnp.float32),
            prompt_valid=visual.prompt_valid,
        )

    def decode(self, features, text=None, visual=None, memory=None, *, objects=True):
        batch = len(features.mask)
        every = jnp.broadcast_to(jnp.eye(NUM_IDS)[None, None], (1, batch, NUM_IDS, NUM_IDS))
        named = jax.nn.one_hot(features.keys[0].astype(jnp.int32), NUM_WORDS)[None]
        said = jax.nn.one_hot(FIRST_PHRASE + jnp.arange(NUM_IDS), NUM_WORDS)
        said = jnp.broadcast_to(said[None, None], (1, batch, NUM_IDS, NUM_WORDS))
        drawn = choice = None
        if visual is not None:
            own = jax.nn.one_hot(visual.pooled.argmax(-1), NUM_IDS)
            known = memory.valid if self.late and memory is not None else visual.prompt_valid
            drawn = SlotOutputs(jnp.where(known[..., None], own, -own)[None], said[:, :, :1])
            choice = jnp.broadcast_to(jnp.arange(own.shape[1])[None], own.shape[:2])
        return Outputs(
            object=SlotOutputs(every, named) if objects else None,
            text=SlotOutputs(every, said) if text is not None else None,
            visual=drawn,
            visual_choice=choice,
        )


def record(number: int, height: int, width: int, block: int) -> Record:
    """A scene of blocks: stuff (class 3) below, things of classes 0 to 2 on top."""
    ids = np.ones((height, width), np.uint8)
    categories, top = [3], block
    for segment in range(2, 2 + 6 + (number == 0)):
        left = (segment - 2) * block
        if left >= width or top >= height:
            break
        ids[top : top + 2 * block, left : left + block] = segment
        categories.append(segment % 3)
    labels = np.append([0], categories)[ids]
    image = np.stack([ids * STEP, labels * STEP, ids * 0], -1).astype(np.uint8)
    things = range(2, len(categories) + 1)
    rle = [coco_mask.encode(np.asfortranarray((ids == i).astype(np.uint8))) for i in things]
    return Record(
        image_id=number,
        file_name=f"{number}.png",
        image=cv2.imencode(".png", image[..., ::-1])[1].tobytes(),
        height=height,
        width=width,
        segment_map=cv2.imencode(".png", ids)[1].tobytes(),
        segment_id=list(range(1, len(categories) + 1)),
        segment_category=categories,
        segment_crowd=[False] * len(categories),
        object_rle=[r["counts"] for r in rle],
        object_category=categories[1:],
        phrase_text=[f"the p{i}" for i in things],
        phrase_object=list(range(len(rle))),
    )


@pytest.fixture
def setting(monkeypatch):
    """(config, params, split) of three images of different sizes, one batch half empty."""
    split = FakeSplit([record(0, 64, 64, 8), record(1, 32, 64, 8), record(2, 32, 32, 4)])
    monkeypatch.setattr(base.catalog, "open_split", lambda root, name: split)
    monkeypatch.setattr(base, "Tokenizer", FakeTokenizer)
    config = tiny_config()
    config.evaluation.max_images = 0
    config.evaluation.max_clicks = 3
    config.evaluation.num_pictures = 3
    return config, {"logit_scale": jnp.float32(4.0), "text": {}, "text_projection": {}}, split


def only(config, *tasks: str, **options):
    """The configuration with these tasks and evaluation options."""
    values = {"tasks": tasks} | options
    return dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, **values))


def untrained(config):
    """A real model with random parameters, of such sizes that signals neither fade nor grow."""
    model = build(config.model)
    rng = np.random.default_rng(0)
    shapes = nn.unbox(jax.eval_shape(lambda key: initialise(model, key), jax.random.key(0)))

    def draw(path, leaf):
        if leaf.ndim > 1:
            values = rng.normal(0, leaf.shape[-1] ** -0.5, leaf.shape)
        else:
            values = 0.1 * rng.normal(size=leaf.shape) + ("scale" in jax.tree_util.keystr(path))
        return np.asarray(values, leaf.dtype)

    return model, jax.tree_util.tree_map_with_path(draw, shapes)
