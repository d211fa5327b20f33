"""Class names -> sentences -> one embedding per class: the vocabulary of the object queries."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
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


class ClassTables:
    """Makes class tables of any vocabulary; each is computed once where there is a cache folder.

    Names are encoded one by one, so that a vocabulary of another size compiles nothing anew.
    """

    def __init__(self, model, tokenizer: Encoder, length: int, cache: str | Path | None = None):
        """`length` is the number of tokens a sentence is cut to."""
        self.model, self.tokenizer, self.length = model, tokenizer, length
        self.cache = None if cache is None else Path(cache)
        self._embed = jax.jit(functools.partial(embed, model))

    def table(
        self, params: dict, classes: Sequence[str | Sequence[str]], templates: Sequence[str]
    ) -> np.ndarray:
        """float32 [C + 1, V] of unit rows, "no object" last.

        A class is a name or several synonyms, whose embeddings are averaged. Raises ValueError for
        a class or vocabulary without names, and where two names read alike.
        """
        groups = [[names] if isinstance(names, str) else list(names) for names in classes]
        if not groups or not all(name.strip() for group in groups for name in group or [""]):
            raise ValueError(f"classes = {list(classes)!r}: expected names, at least one a class.")
        names = [name for group in groups for name in group]
        ids, valid = class_token_ids(self.tokenizer, names, self.length, templates)
        owner = [c for c, group in enumerate([*groups, [NO_OBJECT]]) for _ in group]
        if self.cache is None:
            return self._compute(params, ids, valid, owner)
        path = self.cache / f"{self._key(params, ids, valid, owner)}.npz"
        found = _read_table(path)
        if found is None:
            found = self._compute(params, ids, valid, owner)
            _write_table(path, found)
        return found

    def _compute(self, params, ids, valid, owner: list[int]) -> np.ndarray:
        rows = [self._embed(params, ids[n, None], valid[n, None]) for n in range(len(ids))]
        rows = np.concatenate(jax.device_get(rows))  # [names, V]
        table = np.zeros((owner[-1] + 1, rows.shape[1]), np.float32)
        np.add.at(table, owner, rows)
        return table / np.linalg.norm(table, axis=1, keepdims=True)

    def _key(self, params, ids, valid, owner: list[int]) -> str:
        """SHA-256 of all that the table depends on: the text encoder, its weights, the sentences."""
        config = self.model.config
        total = hashlib.sha256(repr((config.text, config.dtype, ids.shape, owner)).encode())
        weights = {name: params[name] for name in ("text", "text_projection")}
        for path, leaf in jax.tree_util.tree_leaves_with_path(weights):
            total.update(f"{jax.tree_util.keystr(path)}{leaf.shape}{leaf.dtype}".encode())
            total.update(np.ascontiguousarray(jax.device_get(leaf)).data)
        total.update(np.ascontiguousarray(ids).data)
        total.update(np.ascontiguousarray(valid).data)
        return total.hexdigest()


def _read_table(path: Path) -> np.ndarray | None:
    """The table in a file, or None where there is none or a damaged one (zip has a checksum)."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            return file["table"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logging.getLogger(__name__).warning("%s is damaged (%s); made again.", path, error)
        return None


def _write_table(path: Path, table: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.stem}.{os.getpid()}.tmp")
    with aside.open("wb") as file:
        np.savez(file, table=table)
    os.replace(aside, path)
