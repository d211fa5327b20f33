"""Arguments of the programs that are measured: their shapes, and arrays of these shapes."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from seem_jax.config import Config, DataConfig
from seem_jax.training.step import Vocabulary
from seem_jax.types import Batch, MaskRefs, Memory, Objects, Phrases, VisualPrompts

NUM_CLASSES = 134  # COCO panoptic and "no object"


def images(data: DataConfig, batch: int = 1):
    return jax.ShapeDtypeStruct((batch, data.image_size, data.image_size, 3), np.uint8)


def prompts(points: int, batch: int = 1) -> VisualPrompts:
    return VisualPrompts(
        points=jax.ShapeDtypeStruct((batch, points, 2), np.float32),
        prompt=jax.ShapeDtypeStruct((batch, points), np.int32),
        positive=jax.ShapeDtypeStruct((batch, points), bool),
        valid=jax.ShapeDtypeStruct((batch, points), bool),
    )


def memory(features, number: int, width: int) -> Memory:
    return Memory(
        mask_embedding=jax.ShapeDtypeStruct((1, number, width), features.mask.dtype),
        valid=jax.ShapeDtypeStruct((1, number), bool),
    )


def vocabulary(config: Config) -> Vocabulary:
    """The class names in one template; encoded beforehand where text is frozen."""
    shape = (NUM_CLASSES, 1, config.data.max_phrase_tokens)
    sentences = None
    if "text" in config.optimizer.frozen:
        sentences = jax.ShapeDtypeStruct((*shape[:2], config.model.text.projection), jnp.float32)
    return Vocabulary(
        token_ids=jax.ShapeDtypeStruct(shape, np.int32),
        token_valid=jax.ShapeDtypeStruct(shape, bool),
        sentences=sentences,
    )


def batch(data: DataConfig, number: int = 1) -> Batch:
    """A training batch of `number` images, every place for an object, phrase and prompt taken.

    The segments are the cells of a grid. Arrays are NumPy; `shapes_of` gives their shapes.
    """
    rng, size = np.random.default_rng(0), data.image_size
    side = int(np.ceil(np.sqrt(data.max_objects)))
    cell = np.arange(size) * side // size
    index = np.minimum(cell[:, None] * side + cell[None] + 1, data.max_objects).astype(np.uint8)
    planes = np.zeros((data.num_planes, size, size), np.uint8)
    planes[0] = index
    phrases, tokens = data.max_phrases, data.max_phrase_tokens

    def refs(count):
        return MaskRefs(
            plane=np.zeros(count, np.int32),
            select=np.full(count, 255, np.uint8),
            value=(np.arange(count) % data.max_objects + 1).astype(np.uint8),
            valid=np.ones(count, bool),
        )

    owner = np.arange(data.max_points) % min(data.max_prompts, data.max_objects)
    spread = rng.uniform(0.1, 0.9, (data.max_points, 2))
    points = (np.stack([owner % side, owner // side], -1) + spread) / side
    example = Batch(
        sample_id=np.int32(0),
        image=rng.integers(0, 256, (size, size, 3), np.uint8),
        image_size=np.array([size, size], np.int32),
        planes=planes,
        objects=Objects(
            masks=refs(data.max_objects),
            label=(np.arange(data.max_objects) % (NUM_CLASSES - 1)).astype(np.int32),
        ),
        phrases=Phrases(
            token_ids=np.ones((phrases, tokens), np.int32),
            token_valid=np.ones((phrases, tokens), bool),
            masks=refs(phrases),
            group=np.arange(phrases, dtype=np.int32),
            is_class=np.bool_(False),
            prompt=np.full(phrases, -1, np.int32),
        ),
        strokes=VisualPrompts(
            points=points.astype(np.float32),
            prompt=owner.astype(np.int32),
            positive=np.ones(data.max_points, bool),
            valid=np.ones(data.max_points, bool),
        ),
        prompt_masks=refs(data.max_prompts),
    )
    return jax.tree.map(lambda leaf: np.stack([leaf] * number), example)


def shapes_of(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def fill(tree, seed: int = 0):
    """Arrays for a tree of shapes: small normal values, True, 0; points of the image; scales of norms are 1.

    Times do not depend on the values, but those of denormal or infinite numbers would.
    """
    rng = np.random.default_rng(seed)

    def one(path, leaf):
        dtype, name = np.dtype(leaf.dtype), jax.tree_util.keystr(path)
        if dtype.kind == "b" or name.endswith("['scale']"):
            return jnp.ones(leaf.shape, leaf.dtype)
        if dtype.kind in "iu":
            return jnp.zeros(leaf.shape, leaf.dtype)
        if name.endswith(".points"):
            return jnp.asarray(rng.random(leaf.shape, np.float32), leaf.dtype)
        fan_in = max(math.prod(leaf.shape[:-1]), 1)
        values = rng.standard_normal(leaf.shape, np.float32) * fan_in**-0.5
        return jnp.asarray(values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(one, tree)
