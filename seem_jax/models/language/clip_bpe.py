"""CLIP's byte pair encoding (Radford et al. 2021) as a sentencepiece model with CLIP's own ids.

Sentencepiece joins symbols; what comes before has no equivalent in it and happens in `words`: cleaning,
splitting with CLIP's pattern, and writing every byte of a word as one visible character. The end of a
word, CLIP's "</w>", is sentencepiece's mark for a space.

No vocabulary is part of this package: data_prep/tokenizer.py makes the model from a file of the user.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import ftfy
import regex
from sentencepiece import sentencepiece_model_pb2

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"
SPACE = "\u2581"  # sentencepiece's mark, here behind the last character of a word

Merge = tuple[str, str]

# Both are the release's (CLIPTokenizer of transformers 4.34); `regex` knows \p{L}, which `re` does not.
SPECIAL = regex.compile(r"(<\|startoftext\|>|<\|endoftext\|>)")
WORD = regex.compile(
    SPECIAL.pattern + r"|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+", regex.IGNORECASE
)

# Scores of sentencepiece pieces; the best one is joined first, merge i has the score -1 - i.
LAST_CHARACTER, CHARACTER = 1.0, -1e6
NORMAL, UNKNOWN, CONTROL = 1, 2, 3  # types of sentencepiece pieces


def byte_characters() -> list[str]:
    """256 visible characters in CLIP's order of ids, and so the first 256 pieces.

    Bytes that are visible in Latin-1 stand for themselves and come first; the others become the
    characters from 256 on (Radford et al. 2019, GPT-2).
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(byte) for byte in visible] + [chr(256 + n) for n in range(256 - len(visible))]


def _byte_table() -> list[str]:
    """The character of each byte, 0 to 255."""
    characters = byte_characters()
    visible = [ord(character) for character in characters if ord(character) < 256]
    hidden = [byte for byte in range(256) if byte not in set(visible)]
    table = dict(zip(visible + hidden, characters, strict=True))
    return [table[byte] for byte in range(256)]


BYTES = _byte_table()


def words(text: str) -> list[str]:
    """The words of a text as the release sees them, a character per byte; BEGIN and END stay whole.

    As there, ftfy repairs the text first (HTML entities, curly quotes, control characters, broken
    Unicode), then letters are lowered. The names of the begin and end tokens are split off before,
    so they are tokens wherever they are written.
    """
    found: list[str] = []
    for part in SPECIAL.split(text):
        for match in WORD.finditer(ftfy.fix_text(part).lower()):
            word = match[0]
            special = word in (BEGIN, END)
            found.append(word if special else "".join(BYTES[b] for b in word.encode()))
    return found


def default_ids(merges: Sequence[Merge]) -> dict[str, int]:
    """CLIP's numbering: bytes, bytes that end a word, merges in their order, begin, end."""
    characters = byte_characters()
    pieces = [*characters, *(c + END_OF_WORD for c in characters), *map("".join, merges)]
    return {piece: number for number, piece in enumerate([*pieces, BEGIN, END])}


def sentencepiece_model(ids: Mapping[str, int], merges: Sequence[Merge]) -> bytes:
    """A sentencepiece model file that gives `words` the ids of this vocabulary.

    Sentencepiece joins neighbours whose *spelling* is the best piece, CLIP those that are the best
    *pair*. The two agree where every merge is what its own spelling alone is joined to; then no
    other pair of the same spelling can ever become neighbours. All vocabularies that come from
    training are such; one that is not is refused with ValueError, like one with gaps or without
    the pieces that CLIP has.
    """
    _check_merges(merges)
    _check_ids(ids, merges)
    scores = {a + b: -1.0 - rank for rank, (a, b) in enumerate(merges)}
    for character in BYTES:
        scores |= {character: CHARACTER, character + END_OF_WORD: LAST_CHARACTER}
    model = sentencepiece_model_pb2.ModelProto()
    for piece in sorted(ids, key=ids.__getitem__):
        if piece in (BEGIN, END):
            model.pieces.add(piece=piece, score=0, type=CONTROL)
        else:
            piece, score = piece.replace(END_OF_WORD, SPACE), scores[piece]
            model.pieces.add(piece=piece, score=score, type=NORMAL)
    # Sentencepiece wants these two; no text gives them, since every byte has a piece of its own.
    model.pieces.add(piece="<unk>", score=0, type=UNKNOWN)
    model.pieces.add(piece=SPACE, score=2 * CHARACTER, type=NORMAL)
    trainer = model.trainer_spec
    trainer.model_type = trainer.BPE
    trainer.treat_whitespace_as_suffix = True
    trainer.vocab_size = len(model.pieces)
    trainer.bos_piece, trainer.bos_id = BEGIN, ids[BEGIN]
    trainer.eos_piece, trainer.eos_id = END, ids[END]
    trainer.pad_piece, trainer.pad_id = END, ids[END]  # as the release pads
    trainer.unk_id = len(ids)
    normalizer = model.normalizer_spec
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = True
    normalizer.remove_extra_whitespaces = True
    normalizer.escape_whitespaces = True
    return model.SerializeToString()


def _check_ids(ids: Mapping[str, int], merges: Sequence[Merge]) -> None:
    wanted = set(default_ids(merges))
    if missing := sorted(wanted - set(ids)):
        raise ValueError(
            f"the vocabulary lacks {len(missing)} pieces of CLIP's layout, as {missing[:3]}."
        )
    if foreign := sorted(set(ids) - wanted):
        raise ValueError(
            f"the vocabulary has {len(foreign)} pieces that no merge makes, as {foreign[:3]}."
        )
    if sorted(ids.values()) != list(range(len(ids))):
        raise ValueError(f"the ids of the vocabulary are not 0 to {len(ids) - 1}, each once.")


def _check_merges(merges: Sequence[Merge]) -> None:
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    for rank, (a, b) in enumerate(merges):
        symbols = list((a + b).removesuffix(END_OF_WORD))
        if (a + b).endswith(END_OF_WORD):
            symbols[-1] += END_OF_WORD
        while len(symbols) > 2:
            pairs = itertools.pairwise(symbols)
            best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
            if best not in ranks:
                break
            symbols = _join(symbols, best)
        if tuple(symbols) != (a, b) or ranks[a, b] != rank:
            raise ValueError(
                f"merge {rank + 1} of the vocabulary, {a!r} {b!r}, can never happen: the text "
                f"{a + b!r} splits into {symbols}. The file is damaged or in another order."
            )


def _join(symbols: list[str], pair: Merge) -> list[str]:
    """The symbols with every such pair joined, from left to right."""
    joined: list[str] = []
    for symbol in symbols:
        if joined and (joined[-1], symbol) == pair:
            joined[-1] += symbol
        else:
            joined.append(symbol)
    return joined
