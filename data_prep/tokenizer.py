"""Trains a sentencepiece tokenizer (byte pair encoding, Sennrich et al. 2016) on sentences."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import sentencepiece

from seem_jax.data.tfrecord import replacing

ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789-',."  # so that any English text has pieces


def train_tokenizer(texts: Iterable[str], path: Path, vocab_size: int) -> None:
    """Writes a model of at most `vocab_size` pieces: padding 0, unknown 1, begin 2, end 3.

    It lower-cases, and depends on nothing but the set of texts.
    """
    unique = sorted(set(texts))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(unique),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        required_chars=ALPHABET,
        character_coverage=1.0,
        normalization_rule_name="nmt_nfkc_cf",
        pad_id=0,
        unk_id=1,
        bos_id=2,
        eos_id=3,
        num_threads=1,
        minloglevel=2,
    )
    with replacing(path) as aside:
        aside.write_bytes(model.getvalue())
