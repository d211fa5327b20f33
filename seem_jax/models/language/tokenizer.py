"""Text to token ids, with a sentencepiece model (Kudo and Richardson 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import sentencepiece


class Tokenizer:
    """Lower-cases and splits sentences into the pieces of the model file at `path`. Picklable.

    Raises ValueError when the file is missing or is no tokenizer with padding id 0 and begin and
    end tokens.
    """

    def __init__(self, path: str | Path):
        self.path = str(path)
        if not Path(path).is_file():
            raise ValueError(
                f"no tokenizer at {path}. Make the data set with: "
                "python -m data_prep.shapes --output data/shapes"
            )
        self.pieces = sentencepiece.SentencePieceProcessor()
        try:
            self.pieces.LoadFromSerializedProto(Path(path).read_bytes())
        except RuntimeError as error:
            raise ValueError(f"{path} is no sentencepiece model; make it again.") from error
        self.begin, self.end = self.pieces.bos_id(), self.pieces.eos_id()
        if self.pieces.pad_id() != 0 or self.begin < 0 or self.end < 0:
            raise ValueError(
                f"{path}: pad id {self.pieces.pad_id()}, begin id {self.begin}, end id {self.end}; "
                "expected pad id 0 and both others present."
            )

    @property
    def vocab_size(self) -> int:
        """Number of ids; every id is below it."""
        return self.pieces.vocab_size()

    def encode(self, texts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids int32 [N, length] with begin and end tokens, padded with 0, and bool [N, length].

        A text that does not fit loses its last pieces but keeps the end token.
        """
        if length < 2:
            raise ValueError(f"length = {length}: expected at least 2, for begin and end tokens.")
        ids = np.zeros((len(texts), length), np.int32)
        valid = np.zeros((len(texts), length), bool)
        for row, text in enumerate(texts):
            pieces = self.pieces.encode(text.lower())[: length - 2]
            tokens = [self.begin, *pieces, self.end]
            ids[row, : len(tokens)] = tokens
            valid[row, : len(tokens)] = True
        return ids, valid
