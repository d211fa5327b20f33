"""A tiny predictor with random parameters, and pictures to ask it about."""

from __future__ import annotations

import zlib

import jax
import numpy as np
from flax import linen as nn

from seem_jax.models.seem import build, initialise
from seem_jax.predictor import Predictor
from tests.fakes import tiny_config

BEGIN, END = 62, 63
CLASSES = ("disc", "bar", "sky")


class WordTokenizer:
    """One id per word, by its checksum."""

    def encode(self, texts, length):
        ids = np.zeros((len(texts), length), np.int32)
        valid = np.zeros((len(texts), length), bool)
        for row, text in enumerate(texts):
            words = [3 + zlib.crc32(word.encode()) % 59 for word in text.lower().split()]
            tokens = [BEGIN, *words[: length - 2], END]
            ids[row, : len(tokens)] = tokens
            valid[row, : len(tokens)] = True
        return ids, valid


def tiny_predictor(seed: int = 0, rules: str = "composed", **options) -> Predictor:
    """Random weights, drawn with NumPy so that initialising compiles nothing."""
    config = tiny_config()
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if path[-1].key == "scale":  # of a norm
            return (1 + 0.1 * rng.normal(size=leaf.shape)).astype(np.float32)
        fan_in = max(np.prod(leaf.shape[:-1], dtype=int), 9)
        return (rng.normal(size=leaf.shape) / np.sqrt(fan_in)).astype(np.float32)

    shapes = jax.eval_shape(lambda key: initialise(build(config.model), key), jax.random.key(0))
    params = jax.tree_util.tree_map_with_path(draw, nn.unbox(shapes))
    config.model.decoder.rules = rules
    params["logit_scale"] = np.float32(2.0)
    params = jax.device_put(params)
    return Predictor(params, config, WordTokenizer(), classes=CLASSES, num_things=2, **options)


def picture(height: int = 80, width: int = 120, seed: int = 0) -> np.ndarray:
    """uint8 [H, W, 3], flat rectangles in random colours."""
    rng = np.random.default_rng([seed, height, width])
    image = np.full((height, width, 3), rng.integers(0, 256, 3), np.uint8)
    for _ in range(6):
        (y0, y1), (x0, x1) = (np.sort(rng.integers(0, n + 1, 2)) for n in (height, width))
        image[y0:y1, x0:x1] = rng.integers(0, 256, 3)
    return image


def same(one, other) -> None:
    """Asserts that two predictions are equal to the last bit."""
    for field in ("masks", "scores", "quality", "logits", "probabilities", "labels"):
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field), field)
    assert one.texts == other.texts
    for a, b in zip(one.memories, other.memories, strict=True):
        np.testing.assert_array_equal(a.embedding, b.embedding)
