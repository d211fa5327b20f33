"""Class names -> sentences -> one embedding per class: the vocabulary of the object queries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

NO_OBJECT = "background"  # the last row of every class table
CLUTTER = ("-other", "-merged", "-stuff")  # parts of COCO's names that nobody says

SHAPES_TEMPLATES = ("{}", "the {}", "a {}")

# The sentences of the official release (utils/prompt_engineering.py), which took them from CLIP.
COCO_TEMPLATES = (
    "{}.",
    "a photo of a {}.",
    "a bad photo of a {}.",
    "a photo of many {}.",
    "a sculpture of a {}.",
    "a photo of the hard to see {}.",
    "a low resolution photo of the {}.",
    "a rendering of a {}.",
    "graffiti of a {}.",
    "a bad photo of the {}.",
    "a cropped photo of the {}.",
    "a tattoo of a {}.",
    "the embroidered {}.",
    "a photo of a hard to see {}.",
    "a bright photo of a {}.",
    "a photo of a clean {}.",
    "a photo of a dirty {}.",
    "a dark photo of the {}.",
    "a drawing of a {}.",
    "a photo of my {}.",
    "the plastic {}.",
    "a photo of the cool {}.",
    "a close-up photo of a {}.",
    "a black and white photo of the {}.",
    "a painting of the {}.",
    "a painting of a {}.",
    "a pixelated photo of the {}.",
    "a sculpture of the {}.",
    "a bright photo of the {}.",
    "a cropped photo of a {}.",
    "a plastic {}.",
    "a photo of the dirty {}.",
    "a jpeg corrupted photo of a {}.",
    "a blurry photo of the {}.",
    "a photo of the {}.",
    "a good photo of the {}.",
    "a rendering of the {}.",
    "a {} in a video game.",
    "a photo of one {}.",
    "a doodle of a {}.",
    "a close-up photo of the {}.",
    "the origami {}.",
    "the {} in a video game.",
    "a sketch of a {}.",
    "a doodle of the {}.",
    "a origami {}.",
    "a low resolution photo of a {}.",
    "the toy {}.",
    "a rendition of the {}.",
    "a photo of the clean {}.",
    "a photo of a large {}.",
    "a rendition of a {}.",
    "a photo of a nice {}.",
    "a photo of a weird {}.",
    "a blurry photo of a {}.",
    "a cartoon {}.",
    "art of a {}.",
    "a sketch of the {}.",
    "a embroidered {}.",
    "a pixelated photo of a {}.",
    "itap of the {}.",
    "a jpeg corrupted photo of the {}.",
    "a good photo of a {}.",
    "a plushie {}.",
    "a photo of the nice {}.",
    "a photo of the small {}.",
    "a photo of the weird {}.",
    "the cartoon {}.",
    "art of the {}.",
    "a drawing of the {}.",
    "a photo of the large {}.",
    "a black and white photo of a {}.",
    "the plushie {}.",
    "a dark photo of a {}.",
    "itap of a {}.",
    "graffiti of the {}.",
    "a toy {}.",
    "itap of my {}.",
    "a photo of a cool {}.",
    "a photo of a small {}.",
    "a tattoo of the {}.",
)


class Encoder(Protocol):
    """What this module needs of a tokenizer."""

    def encode(self, texts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]: ...


def templates_of(data_set: str) -> tuple[str, ...]:
    """The sentence templates for a data set, given as "name" or "name:split"."""
    return SHAPES_TEMPLATES if data_set.startswith("shapes") else COCO_TEMPLATES


def spoken(name: str) -> str:
    """A class name as one says it: "wall-other-merged" is "wall"."""
    for part in CLUTTER:
        name = name.replace(part, "")
    return name


def class_token_ids(
    tokenizer: Encoder, names: Sequence[str], length: int, templates: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Ids int32 [C, templates, length] and their valid bool; C = len(names) + 1, "no object" last.

    Raises ValueError where two names read alike, since no model could tell them apart.
    """
    said = [spoken(name) for name in (*names, NO_OBJECT)]
    if len(set(said)) < len(said):
        double = sorted({name for name in said if said.count(name) > 1})
        raise ValueError(f"class names {double} occur more than once among {list(names)}.")
    texts = [template.format(name) for name in said for template in templates]
    ids, valid = tokenizer.encode(texts, length)
    shape = (len(said), len(templates), length)
    return ids.reshape(shape), valid.reshape(shape)


def embed(model, params: dict, token_ids, token_valid):
    """The class table, float32 [C, V] of unit rows: the mean over the templates of each class.

    Sentences are normalised before and the mean after, as in the evaluation branch of the official
    get_text_embeddings (vlpencoder.py). Classes are encoded one after the other, which bounds memory.
    """

    def one_class(sentences):
        embedding = model.apply({"params": params}, *sentences, method="encode_text")[1]
        embedding = embedding.astype(jnp.float32)  # [templates, V]
        length = jnp.sqrt(jnp.square(embedding).sum(-1, keepdims=True))
        mean = (embedding / (length + 1e-7)).mean(0)
        return mean / jnp.sqrt(jnp.square(mean).sum())

    return jax.lax.map(one_class, (jnp.asarray(token_ids), jnp.asarray(token_valid)))
