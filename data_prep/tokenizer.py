"""Makes tokenizers: trains one on sentences, or brings CLIP's vocabulary into the same format.

    python -m data_prep.tokenizer --clip=FILE --output=data/clip.model

FILE is bpe_simple_vocab_16e6.txt.gz of OpenAI's CLIP, or merges.txt or tokenizer.json of a CLIP model
on Hugging Face; `--clip=open_clip` takes the file of the installed package open_clip (pip install
--no-deps open_clip_torch suffices). The result gives the ids of the official SEEM release; name it in
config.data.tokenizer.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import io
import json
import zlib
from collections.abc import Iterable
from pathlib import Path

import sentencepiece

from data_prep.writer import message_only
from seem_jax.data.tfrecord import replacing
from seem_jax.models.language import clip_bpe
from seem_jax.models.language.clip_bpe import END_OF_WORD, Merge

ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789-',."  # so that any English text has pieces

OPEN_CLIP = "open_clip"
OPEN_CLIP_FILE = "bpe_simple_vocab_16e6.txt.gz"
# CLIP uses this many merges of the 262,144 in its file: 49,152 less the bytes and two more.
CLIP_MERGES = 49152 - 256 - 2
MAX_BYTES = 64 * 2**20  # of an unpacked vocabulary; CLIP's have 1.5 to 4 million


def train_tokenizer(texts: Iterable[str], path: Path, vocab_size: int) -> None:
    """Writes a model (byte pair encoding, Sennrich et al. 2016) of at most `vocab_size` pieces:
    padding 0, unknown 1, begin 2, end 3.

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


def import_clip(source: str | Path, output: Path, num_merges: int = CLIP_MERGES) -> int:
    """Writes the sentencepiece model of a CLIP vocabulary; the number of its ids.

    Raises ValueError where the file is missing, holds no such vocabulary, or is a list of fewer
    than `num_merges` merges; of a longer list the first ones are taken.
    """
    path = _open_clip_file() if str(source) == OPEN_CLIP else Path(source)
    text = _read(path)
    try:
        is_json = text.lstrip()[:1] == "{"
        ids, merges = _from_json(text) if is_json else _from_merges(text, num_merges)
        model = clip_bpe.sentencepiece_model(ids, merges)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(output) as aside:
        aside.write_bytes(model)
    return len(ids)


def _open_clip_file() -> Path:
    """The vocabulary in the installed open_clip, which is found without importing it."""
    spec = importlib.util.find_spec(OPEN_CLIP)
    for folder in (spec and spec.submodule_search_locations) or ():
        if (Path(folder) / OPEN_CLIP_FILE).is_file():
            return Path(folder) / OPEN_CLIP_FILE
    raise ValueError(
        f"--clip={OPEN_CLIP}: no installed package {OPEN_CLIP} with {OPEN_CLIP_FILE}. Install it "
        "(pip install --no-deps open_clip_torch) or give the file."
    )


def _read(path: Path) -> str:
    """The text of a file, unpacked if it is a gzip file."""
    if not path.is_file():
        raise ValueError(f"no vocabulary file {str(path)!r}; see --help for the files that serve.")
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ValueError(f"{path} has more than {MAX_BYTES} bytes; that is no CLIP vocabulary.")
        return content.decode()
    except (gzip.BadGzipFile, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged or no text ({error}); fetch it again.") from error


def _from_merges(text: str, num_merges: int) -> tuple[dict[str, int], list[Merge]]:
    """Of a list of merges, one a line after a line with the version."""
    version, *lines = [line.rstrip("\r") for line in text.rstrip().split("\n")]
    if "#version" not in version:
        raise ValueError(
            f"the first line is {version[:40]!r}, but a list of merges starts with '#version'."
        )
    if len(lines) < num_merges:
        raise ValueError(
            f"it has {len(lines)} merges, expected at least {num_merges}: it was cut. If it is "
            f"another vocabulary than CLIP's, say so with --merges={len(lines)}."
        )
    merges = [_pair(line, f"line {n}") for n, line in enumerate(lines[:num_merges], 2)]
    return clip_bpe.default_ids(merges), merges


def _from_json(text: str) -> tuple[dict[str, int], list[Merge]]:
    """Of a tokenizer.json, with the ids that it gives and all of its merges."""
    whole = json.loads(text)
    try:
        model, added = whole["model"], whole.get("added_tokens", ())
        kind = (model.get("type"), model.get("end_of_word_suffix"))
        if kind != ("BPE", END_OF_WORD):
            raise ValueError(
                f"its model is of type {kind[0]!r} with the end of word {kind[1]!r}; CLIP's is "
                f"'BPE' with {END_OF_WORD!r}. Give the tokenizer.json of a CLIP model."
            )
        merges = [_pair(merge, f"merge {n}") for n, merge in enumerate(model["merges"], 1)]
        ids = {str(piece): int(number) for piece, number in model["vocab"].items()}
        ids |= {token["content"]: int(token["id"]) for token in added}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it is not laid out as a tokenizer.json is ({error!r}).") from error
    return ids, merges


def _pair(merge: str | list[str], where: str) -> Merge:
    parts = tuple(merge.split(" ") if isinstance(merge, str) else merge)
    if len(parts) != 2 or not all(isinstance(part, str) and part for part in parts):
        raise ValueError(f"{where} is {merge!r}; expected two pieces.")
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--clip", required=True, help=f"file with CLIP's vocabulary, or {OPEN_CLIP}"
    )
    parser.add_argument("--output", type=Path, required=True, help="the tokenizer to write")
    parser.add_argument(
        "--merges", type=int, default=CLIP_MERGES, help="merges of a vocabulary that is not CLIP's"
    )
    args = parser.parse_args()
    with message_only():
        number = import_clip(args.clip, args.output, args.merges)
        print(f"wrote {args.output}: {number} ids")


if __name__ == "__main__":
    main()
