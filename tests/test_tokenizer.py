"""The tokenizer: fixed shapes, its own ids, and text that it never saw."""

import pickle

import numpy as np
import pytest

from data_prep.tokenizer import train_tokenizer
from seem_jax.models.language.tokenizer import Tokenizer

TEXTS = [
    f"the {color} {shape} left of the {other}"
    for color in ("red", "green", "blue")
    for shape in ("star", "heart")
    for other in ("ring", "moon")
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tokenizer(TEXTS, path, 200)
    return Tokenizer(path)


def test_a_sentence_has_a_begin_and_an_end_and_padding_of_zero(tokenizer):
    ids, valid = tokenizer.encode(["the red star", ""], 8)
    assert ids.dtype == np.int32
    assert valid.dtype == bool
    assert ids.shape == valid.shape == (2, 8)
    assert ids[0, 0] == tokenizer.begin
    assert ids[0, valid[0].sum() - 1] == tokenizer.end
    assert (ids[~valid] == 0).all()
    assert (ids[valid] > 0).all()
    np.testing.assert_array_equal(ids[1, :3], [tokenizer.begin, tokenizer.end, 0])
    assert tokenizer.encode([], 8)[0].shape == (0, 8)


def test_truncation_keeps_the_end_token(tokenizer):
    whole, _ = tokenizer.encode(["the red star left of the moon"], 20)
    ids, valid = tokenizer.encode(["the red star left of the moon"], 4)
    assert valid.all()
    assert ids[0, -1] == tokenizer.end
    np.testing.assert_array_equal(ids[0, :3], whole[0, :3])
    with pytest.raises(ValueError, match="length = 1"):
        tokenizer.encode(["a"], 1)


def test_capitals_do_not_matter(tokenizer):
    np.testing.assert_array_equal(
        tokenizer.encode(["The RED Star"], 8)[0], tokenizer.encode(["the red star"], 8)[0]
    )


def test_words_of_the_training_text_are_one_piece(tokenizer):
    _, valid = tokenizer.encode(["the", "red", "star", "left of", "heart"], 8)
    assert valid.sum(axis=1).tolist() == [3, 3, 3, 4, 3]


def test_any_english_word_has_pieces(tokenizer):
    ids, valid = tokenizer.encode(["zebra crossing 42, quickly."], 40)
    unknown = tokenizer.pieces.unk_id()
    assert not (ids[valid] == unknown).any()
    assert ids.max() < tokenizer.vocab_size


def test_training_depends_on_the_set_of_texts_only(tokenizer, tmp_path):
    train_tokenizer([*reversed(TEXTS), *TEXTS], tmp_path / "again", 200)
    with open(tokenizer.path, "rb") as file:
        assert (tmp_path / "again").read_bytes() == file.read()


def test_a_pickled_tokenizer_gives_the_same_ids(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    np.testing.assert_array_equal(copy.encode(TEXTS, 12)[0], tokenizer.encode(TEXTS, 12)[0])


def test_a_missing_or_wrong_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no tokenizer at .*none\.model"):
        Tokenizer(tmp_path / "none.model")
    (tmp_path / "bad.model").write_bytes(b"no model")
    with pytest.raises(ValueError, match=r"bad\.model is no sentencepiece model"):
        Tokenizer(tmp_path / "bad.model")
