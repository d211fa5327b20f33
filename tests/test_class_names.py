"""The vocabulary: how class names become embeddings."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from seem_jax.models.language import class_names


class Words:
    """A tokenizer that gives every text a number, so that texts can be read back."""

    def __init__(self):
        self.texts = []

    def encode(self, texts, length):
        self.texts = list(texts)
        ids = np.broadcast_to(np.arange(len(texts), dtype=np.int32)[:, None], (len(texts), length))
        return ids, np.ones(ids.shape, bool)


class Model:
    """Encodes text number n as row n of a table."""

    def __init__(self, table):
        self.table = table

    def apply(self, variables, ids, valid, method):
        assert method == "encode_text"
        return None, self.table[ids[:, 0]]


def test_the_official_sentences_are_there():
    assert len(class_names.COCO_TEMPLATES) == len(set(class_names.COCO_TEMPLATES)) == 81
    assert all(template.count("{}") == 1 for template in class_names.COCO_TEMPLATES)
    assert class_names.templates_of("shapes_panoptic:val") == class_names.SHAPES_TEMPLATES
    assert class_names.templates_of("coco_panoptic:val") == class_names.COCO_TEMPLATES


def test_names_are_said_as_people_do_and_background_is_last():
    words = Words()
    ids, valid = class_names.class_token_ids(
        words, ["cat", "wall-other-merged", "door-stuff"], 5, ("{}", "a {}")
    )
    assert ids.shape == valid.shape == (4, 2, 5)
    said = ["cat", "a cat", "wall", "a wall", "door", "a door", "background", "a background"]
    assert [words.texts[n] for n in ids[..., 0].reshape(-1)] == said


def test_names_that_read_alike_are_refused():
    with pytest.raises(ValueError, match=r"\['wall'\]"):
        class_names.class_token_ids(Words(), ["wall", "wall-stuff"], 5, ("{}",))


def test_a_class_is_the_normalised_mean_of_its_normalised_sentences():
    table = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    ids, valid = class_names.class_token_ids(Words(), ["cat", "dog"], 5, ("{}", "a {}"))
    got = jax.jit(
        lambda ids, valid: class_names.embed(Model(jax.numpy.asarray(table)), {}, ids, valid)
    )(ids, valid)
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    mean = unit.reshape(3, 2, 4).mean(1)
    np.testing.assert_allclose(got, mean / np.linalg.norm(mean, axis=1, keepdims=True), atol=1e-6)
