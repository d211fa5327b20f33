"""Phrases and class names in the text space, each computed once."""

from __future__ import annotations

import collections
from collections.abc import Sequence

import jax
import numpy as np

from seem_jax import name_templates
from seem_jax.config import Config
from seem_jax.models.language.class_names import ClassTables
from seem_jax.models.language.tokenizer import Tokenizer
from seem_jax.predictor.programs import Phrase, Programs

MAX_CACHED = 4096  # phrases


class Texts:
    """The text side of a predictor; remembers the texts used last."""

    def __init__(self, programs: Programs, params: dict, tokenizer: Tokenizer, config: Config):
        """`tables.cache` may be set to a folder that keeps class tables for the next process."""
        self.programs, self.params, self.tokenizer = programs, params, tokenizer
        self.length = config.data.max_phrase_tokens
        self.templates = name_templates.templates_of(config.data.train[0])
        self.tables = ClassTables(programs.model, tokenizer, self.length)
        self._phrases: collections.OrderedDict[str, Phrase] = collections.OrderedDict()

    def phrase(self, text: str) -> Phrase:
        """The phrase in the text space; ValueError where it is too long."""
        if text not in self._phrases:
            ids, valid = self.tokens([text], "text")
            tokens, sentence = jax.device_get(self.programs.sentence(self.params, ids, valid))
            self._phrases[text] = Phrase(tokens[0], valid[0], sentence[0])
            if len(self._phrases) > MAX_CACHED:
                self._phrases.popitem(last=False)
        self._phrases.move_to_end(text)
        return self._phrases[text]

    def tokens(self, texts: Sequence[str], argument: str) -> tuple[np.ndarray, np.ndarray]:
        """(ids, valid) [N, J] of texts that fit; ValueError for one that would be cut."""
        ids, valid = self.tokenizer.encode(texts, self.length + 1)
        for text, too_long in zip(texts, valid[:, -1], strict=True):
            if too_long:
                raise ValueError(
                    f"{argument}: {text[:60]!r} has more than the {self.length} tokens, begin and end "
                    "among them, that this model reads; shorten it."
                )
        return ids[:, : self.length], valid[:, : self.length]

    def table(self, names: tuple[str, ...]) -> np.ndarray:
        """float32 [C, V], one unit row per name and the last for "no object"."""
        said = [name_templates.spoken(name) for name in (*names, name_templates.NO_OBJECT)]
        double = sorted({name for name in said if said.count(name) > 1 or not name.strip()})
        if double:
            raise ValueError(
                f"classes {list(names)} read {double} more than once or as nothing; "
                f"{name_templates.NO_OBJECT!r} is taken by 'none of them'."
            )
        self.tokens([t.format(name) for name in said for t in self.templates], "classes")
        return self.tables.table(self.params, names, self.templates)
