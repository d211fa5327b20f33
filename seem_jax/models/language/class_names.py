"""Class names -> sentences -> one embedding per class: the vocabulary of the object queries."""

from __future__ import annotations

import collections
import functools
import hashlib
import logging
import os
import weakref
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from seem_jax.name_templates import NO_OBJECT, spoken

MAX_ROWS = 4096  # names that a ClassTables remembers


class Encoder(Protocol):
    """What this module needs of a tokenizer."""

    def encode(self, texts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]: ...


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
    """Makes class tables of any vocabulary and remembers what it made.

    Names are encoded one by one, so that a vocabulary of another size compiles nothing anew, and one
    that shares names with those before it encodes only the new ones. With a cache folder a table
    is computed once for the same weights and sentences, whatever process asks.
    """

    def __init__(self, model, tokenizer: Encoder, length: int, cache: str | Path | None = None):
        """`length` is the number of tokens a sentence is cut to."""
        self.model, self.tokenizer, self.length = model, tokenizer, length
        self.cache = None if cache is None else Path(cache)
        self._embed = jax.jit(functools.partial(embed, model))
        self._rows: collections.OrderedDict[bytes, np.ndarray] = collections.OrderedDict()
        self._weights: list[weakref.ref] = []  # those that the rows were made with
        self._digest = ""

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
        self._forget_other_weights(params)
        if self.cache is None:
            return self._compute(params, ids, valid, owner)
        path = self.cache / f"{self._key(params, ids, valid, owner)}.npz"
        found = _read_table(path)
        if found is None:
            found = self._compute(params, ids, valid, owner)
            _write_table(path, found)
        return found

    def _forget_other_weights(self, params: dict) -> None:
        leaves = jax.tree.leaves(_text_weights(params))
        known = [weight() for weight in self._weights]
        if len(known) != len(leaves) or any(a is not b for a, b in zip(known, leaves)):
            self._weights = [weakref.ref(leaf) for leaf in leaves]
            self._rows.clear()
            self._digest = ""

    def _compute(self, params, ids, valid, owner: list[int]) -> np.ndarray:
        rows = np.stack([self._row(params, ids[n], valid[n]) for n in range(len(ids))])
        table = np.zeros((owner[-1] + 1, rows.shape[1]), np.float32)
        np.add.at(table, owner, rows)
        return table / np.linalg.norm(table, axis=1, keepdims=True)

    def _row(self, params, ids: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """float32 [V] of one name, from its sentences [templates, length]."""
        key = repr(ids.shape).encode() + ids.tobytes() + valid.tobytes()
        if key not in self._rows:
            self._rows[key] = jax.device_get(self._embed(params, ids[None], valid[None]))[0]
            if len(self._rows) > MAX_ROWS:
                self._rows.popitem(last=False)
        self._rows.move_to_end(key)
        return self._rows[key]

    def _key(self, params, ids, valid, owner: list[int]) -> str:
        """SHA-256 of all that the table depends on: the text encoder, its weights, the sentences."""
        config = self.model.config
        if not self._digest:
            weights = hashlib.sha256(repr((config.text, config.dtype)).encode())
            for path, leaf in jax.tree_util.tree_leaves_with_path(_text_weights(params)):
                weights.update(f"{jax.tree_util.keystr(path)}{leaf.shape}{leaf.dtype}".encode())
                weights.update(np.ascontiguousarray(jax.device_get(leaf)).data)
            self._digest = weights.hexdigest()
        total = hashlib.sha256(repr((self._digest, ids.shape, owner)).encode())
        total.update(np.ascontiguousarray(ids).data)
        total.update(np.ascontiguousarray(valid).data)
        return total.hexdigest()


def _text_weights(params: dict) -> dict:
    return {name: params[name] for name in ("text", "text_projection")}


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
    """Writes aside, then renames. A folder that cannot be written to is said once and does no harm."""
    aside = path.with_name(f"{path.stem}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            np.savez(file, table=table)
        os.replace(aside, path)
    except OSError as error:
        logging.getLogger(__name__).warning("the class table is not kept: %s", error)
