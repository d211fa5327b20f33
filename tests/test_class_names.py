"""The vocabulary: how class names become embeddings."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from seem_jax import name_templates
from seem_jax.config import ModelConfig, TextConfig
from seem_jax.models.language import class_names
from seem_jax.models.language.text_encoder import TextEncoder
from seem_jax.models.seem import build
from seem_jax.training.ledger import COMPILED, EventCounter
from tests.fakes import tiny_config


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
    assert len(name_templates.COCO_TEMPLATES) == len(set(name_templates.COCO_TEMPLATES)) == 81
    assert all(template.count("{}") == 1 for template in name_templates.COCO_TEMPLATES)
    assert name_templates.templates_of("shapes_panoptic:val") == name_templates.SHAPES_TEMPLATES
    assert name_templates.templates_of("coco_panoptic:val") == name_templates.COCO_TEMPLATES


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


class Letters:
    """A tokenizer whose ids are the letters of a text."""

    def encode(self, texts, length):
        ids = np.zeros((len(texts), length), np.int32)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = [ord(letter) % 32 + 1 for letter in text[:length]]
        return ids, ids > 0


LENGTH = 14
TEMPLATES = ("{}", "a {}")


@pytest.fixture(scope="module")
def text_model():
    """(model, parameters of its text encoder)."""
    model = build(tiny_config().model)
    ids, valid = Letters().encode(["a"], LENGTH)
    params = model.init(jax.random.key(0), ids, valid, method="encode_text")["params"]
    return model, nn.unbox(params)


def test_a_table_has_the_rows_of_its_names(text_model):
    model, params = text_model
    ids, valid = class_names.class_token_ids(Letters(), ["cat", "dog"], LENGTH, TEMPLATES)
    want = class_names.embed(model, params, ids, valid)
    got = class_names.ClassTables(model, Letters(), LENGTH).table(params, ["cat", "dog"], TEMPLATES)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_synonyms_share_a_class_whose_row_is_their_mean(text_model):
    model, params = text_model
    tables = class_names.ClassTables(model, Letters(), LENGTH)
    sofa, couch, cat, other = tables.table(params, ["sofa", "couch", "cat"], TEMPLATES)
    got = tables.table(params, [("sofa", "couch"), "cat"], TEMPLATES)
    both = (sofa + couch) / np.linalg.norm(sofa + couch)
    np.testing.assert_allclose(got, [both, cat, other], atol=1e-6)
    with pytest.raises(ValueError, match=r"\['sofa'\] occur more than once"):
        tables.table(params, [("sofa", "couch"), "sofa"], TEMPLATES)


@pytest.mark.parametrize("classes", [[], ["cat", ""], ["cat", ()], [("cat", " ")]], ids=repr)
def test_a_class_without_a_name_is_refused(text_model, classes):
    model, params = text_model
    with pytest.raises(ValueError, match="at least one a class"):
        class_names.ClassTables(model, Letters(), LENGTH).table(params, classes, TEMPLATES)


def test_vocabularies_of_other_sizes_compile_nothing(text_model):
    model, params = text_model
    tables = class_names.ClassTables(model, Letters(), LENGTH)
    tables.table(params, ["cat"], TEMPLATES)
    with EventCounter(COMPILED) as counter:
        for count in (2, 5, 9):
            names = ["x" * (n + 1) for n in range(count)]
            assert len(tables.table(params, names, TEMPLATES)) == count + 1
    assert counter.count == 0


def test_a_cached_table_is_computed_once_for_the_same_weights_and_sentences(text_model, tmp_path):
    model, params = text_model
    first = class_names.ClassTables(model, Letters(), LENGTH, tmp_path / "tables")
    want = first.table(params, ["cat", "dog"], TEMPLATES)
    (file,) = (tmp_path / "tables").iterdir()

    def never(*_):
        raise AssertionError("computed again")

    second = class_names.ClassTables(model, Letters(), LENGTH, tmp_path / "tables")
    second._embed = never
    np.testing.assert_array_equal(second.table(params, ["cat", "dog"], TEMPLATES), want)
    changed = jax.tree.map(jnp.copy, params)
    norm = changed["text"]["norm"]
    norm["scale"] = norm["scale"].at[3].add(1e-7)  # the last bit of one number
    for call in (
        (params, ["cat", "cow"], TEMPLATES),
        (params, ["cat", "dog"], TEMPLATES[:1]),
        (params, [("cat", "dog")], TEMPLATES),
        (changed, ["cat", "dog"], TEMPLATES),
    ):
        with pytest.raises(AssertionError, match="computed again"):
            second.table(*call)

    file.write_bytes(file.read_bytes()[:-40])  # cut: noticed, said, made again
    again = class_names.ClassTables(model, Letters(), LENGTH, tmp_path / "tables")
    np.testing.assert_array_equal(again.table(params, ["cat", "dog"], TEMPLATES), want)
    np.testing.assert_array_equal(second.table(params, ["cat", "dog"], TEMPLATES), want)
    assert [path.suffix for path in (tmp_path / "tables").iterdir()] == [".npz"]


def test_names_that_were_seen_are_not_encoded_again_until_the_weights_change(text_model):
    model, params = text_model
    tables = class_names.ClassTables(model, Letters(), LENGTH)
    encode, calls = tables._embed, []
    tables._embed = lambda *arguments: calls.append(1) or encode(*arguments)
    first = tables.table(params, ["cat", "dog"], TEMPLATES)
    assert len(calls) == 3  # and "no object"
    again = tables.table(params, ["cow", "cat"], TEMPLATES)
    assert len(calls) == 4
    np.testing.assert_array_equal(again[1], first[0])
    other = jax.tree.map(lambda leaf: leaf + 0.1, params)
    assert not np.allclose(tables.table(other, ["cat"], TEMPLATES)[0], first[0])
    assert len(calls) == 6


def test_a_folder_that_cannot_be_written_to_does_no_harm(text_model, tmp_path, caplog):
    model, params = text_model
    (tmp_path / "file").write_text("no folder")
    tables = class_names.ClassTables(model, Letters(), LENGTH, tmp_path / "file" / "tables")
    assert tables.table(params, ["cat"], TEMPLATES).shape[0] == 2
    assert "the class table is not kept" in caplog.text


def test_every_flipped_bit_of_a_cached_table_is_noticed(tmp_path):
    table = np.random.default_rng(0).normal(size=(5, 16)).astype(np.float32)
    path = tmp_path / "t.npz"
    class_names._write_table(path, table)
    sound = path.read_bytes()
    for number in range(0, 8 * len(sound), 97):
        damaged = bytearray(sound)
        damaged[number // 8] ^= 1 << number % 8
        path.write_bytes(damaged)
        found = class_names._read_table(path)
        assert found is None or np.array_equal(found, table)


@pytest.mark.parametrize(
    "text",
    [
        TextConfig(),  # UniCL
        TextConfig(width=768, num_layers=12, num_heads=12, projection=768),
        TextConfig(  # Florence's size: a wide encoder with a projection to the decoder's width
            width=1024, num_layers=24, num_heads=16, context_length=77, projection=512
        ),
        TextConfig(vocab_size=30522, context_length=256, pooling="mean", causal=False),
    ],
    ids=["unicl", "clip-l", "florence", "words"],
)
def test_text_encoders_of_any_size_are_configurations(text):
    """Full sizes, without computing: parameter counts by the formula of a transformer."""
    config = ModelConfig(text=dataclasses.replace(text))
    config.decoder.width = config.pixel_decoder.width = text.projection
    model = build(config)
    ids = jax.ShapeDtypeStruct((3, text.context_length), jnp.int32)
    valid = jax.ShapeDtypeStruct(ids.shape, bool)
    shapes = jax.eval_shape(
        lambda ids, valid: model.init(jax.random.key(0), ids, valid, method="encode_text"),
        ids,
        valid,
    )["params"]
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes["text"]))
    width = text.width
    layer = 12 * width**2 + 13 * width  # attention 4, feed-forward 8; biases and two norms
    embeddings = (text.vocab_size + text.context_length) * width
    assert count == embeddings + text.num_layers * layer + 2 * width
    tokens, sentence = jax.eval_shape(
        lambda params, ids, valid: model.apply(params, ids, valid, method="encode_text"),
        {"params": shapes},
        ids,
        valid,
    )
    assert tokens.shape == (*ids.shape, text.projection)
    assert sentence.shape == (3, text.projection)
    long = jnp.zeros((1, text.context_length + 1), jnp.int32)
    with pytest.raises(ValueError, match=f"context_length = {text.context_length}"):
        TextEncoder(text).init(jax.random.key(0), long, long > 0)
