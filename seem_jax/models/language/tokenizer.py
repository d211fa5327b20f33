"""Text to token ids, with a sentencepiece model (Kudo and Richardson 2018)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import sentencepiece

from seem_jax.models.language import clip_bpe


class Tokenizer:
    """Lower-cases and splits sentences into the pieces of the model file at `path`. Picklable.

    A model with CLIP's begin token is a CLIP vocabulary: text goes through `clip_bpe.words` and the
    ids are those of the official release. Raises ValueError when the file is missing or is no
    tokenizer with padding, begin and end tokens.
    """

    def __init__(self, path: str | Path):
        self.path = str(path)
        if not Path(path).is_file():
            raise ValueError(
                f"no tokenizer at {path}. The data set shapes brings one: python -m data_prep.shapes "
                "--output data/shapes; CLIP's is made from its vocabulary: python -m "
                f"data_prep.tokenizer --clip=bpe_simple_vocab_16e6.txt.gz --output={path}"
            )
        self.pieces = sentencepiece.SentencePieceProcessor()
        try:
            self.pieces.LoadFromSerializedProto(Path(path).read_bytes())
        except RuntimeError as error:
            raise ValueError(f"{path} is no sentencepiece model; make it again.") from error
        self.begin, self.end = self.pieces.bos_id(), self.pieces.eos_id()
        self.padding = self.pieces.pad_id()
        if min(self.padding, self.begin, self.end) < 0:
            raise ValueError(
                f"{path}: padding id {self.padding}, begin id {self.begin}, end id {self.end}; "
                "expected all three present."
            )
        self.is_clip = self.pieces.id_to_piece(self.begin) == clip_bpe.BEGIN

    @property
    def vocab_size(self) -> int:
        """Number of ids; every id is below it."""
        return self.pieces.unk_id() if self.is_clip else self.pieces.vocab_size()

    def encode(self, texts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids int32 [N, length] with begin and end tokens, and which are no padding, bool [N, length].

        A text that does not fit loses its last pieces but keeps the end token. Padding has the id
        `padding`: 0, or with a CLIP vocabulary that of the end token.
        """
        if length < 2:
            raise ValueError(f"length = {length}: expected at least 2, for begin and end tokens.")
        ids = np.full((len(texts), length), self.padding, np.int32)
        valid = np.zeros((len(texts), length), bool)
        for row, text in enumerate(texts):
            tokens = [self.begin, *self._inner(text)[: length - 2], self.end]
            ids[row, : len(tokens)] = tokens
            valid[row, : len(tokens)] = True
        return ids, valid

    def _inner(self, text: str) -> list[int]:
        """All ids of a text but begin and end."""
        if not self.is_clip:
            return self.pieces.encode(text.lower())
        ids: list[int] = []
        special = {clip_bpe.BEGIN: self.begin, clip_bpe.END: self.end}
        for own, group in itertools.groupby(clip_bpe.words(text), key=special.get):
            group = list(group)
            ids += self.pieces.encode(" ".join(group)) if own is None else [own] * len(group)
        return ids
