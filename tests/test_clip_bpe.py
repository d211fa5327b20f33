"""CLIP's byte pair encoding: the ids of the `tokenizers` library on small vocabularies trained here."""

import functools
import gzip
import json
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path

import ftfy
import numpy as np
import pytest
import sentencepiece

from data_prep.tokenizer import CLIP_MERGES, import_clip
from seem_jax.models.language import clip_bpe
from seem_jax.models.language.clip_bpe import BEGIN, END
from seem_jax.models.language.tokenizer import Tokenizer

tokenizers = pytest.importorskip("tokenizers")

ROOT = Path(__file__).resolve().parents[1]
# The same as CLIP's but for the tokens' own names; the library calls them special tokens.
PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"

CORPUS = [
    "a photo of the red star left of the moon, and they're 12 cm (1/2 foot) apart...",
    "the man's hats weren't there; he'll say he'd've photographed 2023 of them!",
    "Überraschung: naïve cafés, señor, œuvre, Straße, jalapeño",
    "日本語の写真 猫と犬 한국어 사진 фотография кошки Ελληνικά ΣΑΣ עברית العربية हिन्दी",
    "🙂 👩‍👩‍👧 🇩🇪 ☃ ½ ² Ⅷ ٣ ∑ → — …",
] * 3

ODD = [
    "",
    " ",
    "\t\n\r\x0b\x0c\x85\u00a0\u1680\u2003\u2028\u202f\u3000",
    "a\u00a0b\u2003c\u3000d\u200be\ufefff",
    "I'm he'LL they'Re don''t 's ' '' 'x rock'n'roll",
    "0123456789 1,234.56 ½²Ⅷ٣ 3x3 x3 3x",
    "...!!!???--__##  a_b a__b a.b",
    "é e\u0301 ñ n\u0303 ﬁ Å ΑΣ ς İstanbul ß ẞ ſt Ǆ ǅ",
    "日本語 の 写真。猫と犬、한국어 ภาษาไทย हिन्दी",
    "🙂🙃 👩‍👩‍👧 🇩🇪🏳️‍🌈 ☃️ a🙂b",
    "x" * 5000,
    "ab" * 3000 + " " + "photo" * 1000,
    "\U0010ffff\uffff\ue000\U000e0041",
    "THE Red STAR Left OF the MOON",
]


def train(texts, num_merges):
    """Merges of a byte pair encoding, by the library's own trainer."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE(end_of_word_suffix="</w>"))
    model.pre_tokenizer = splitter()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=num_merges + 512,
        min_frequency=1,
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
    )
    model.train_from_iterator([text.lower() for text in texts], trainer)
    merges = json.loads(model.to_str())["model"]["merges"]
    return [tuple(m.split(" ") if isinstance(m, str) else m) for m in merges][:num_merges]


def splitter():
    parts = tokenizers.pre_tokenizers
    split = parts.Split(tokenizers.Regex(PATTERN), "removed", invert=True)
    return parts.Sequence([split, parts.ByteLevel(add_prefix_space=False, use_regex=False)])


def library(merges, ids=None):
    """A function text -> ids of the library, of repaired and lowered text."""
    ids = ids or clip_bpe.default_ids(merges)
    bpe = tokenizers.models.BPE(
        vocab=ids, merges=merges, unk_token=END, end_of_word_suffix="</w>", fuse_unk=False
    )
    model = tokenizers.Tokenizer(bpe)
    model.pre_tokenizer = splitter()
    return lambda text: model.encode(ftfy.fix_text(text).lower()).ids


def merges_file(path, merges):
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@functools.cache
def small_merges():
    return train(CORPUS, 400)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("clip")
    merges = small_merges()
    import_clip(merges_file(folder / "merges.txt", merges), folder / "clip.model", len(merges))
    return Tokenizer(folder / "clip.model")


def inner(tokenizer, text):
    """The ids between begin and end, none cut off."""
    ids, valid = tokenizer.encode([text], 4 * len(text.encode("utf-8", "replace")) + 16)
    assert (ids[0, 0], ids[0, valid.sum() - 1]) == (tokenizer.begin, tokenizer.end)
    return ids[0, 1 : valid.sum() - 1].tolist()


def test_ids_have_clips_layout(clip):
    """Bytes, bytes that end a word, merges, begin, end; with CLIP's merges these are 49406, 49407."""
    number = 512 + len(small_merges())
    assert (clip.begin, clip.end, clip.padding) == (number, number + 1, number + 1)
    assert clip.vocab_size == number + 2
    assert inner(clip, "!") == [256]
    assert clip_bpe.byte_characters()[:3] == ["!", '"', "#"]
    assert clip_bpe.BYTES[ord(" ")] == "Ġ"
    assert clip_bpe.BYTES[ord("\n")] == "Ċ"
    full = clip_bpe.default_ids([(f"{n}", "x") for n in range(CLIP_MERGES)])
    assert (full[BEGIN], full[END], len(full)) == (49406, 49407, 49408)


@pytest.mark.parametrize("text", ODD + CORPUS[:5], ids=lambda text: ascii(text[:24]))
def test_odd_text_has_the_ids_of_the_library(clip, text):
    assert inner(clip, text) == library(small_merges())(text)


def test_random_text_has_the_ids_of_the_library(clip):
    """Pieces of the vocabulary, odd characters and bits of odd texts, joined at random."""
    rng = random.Random(7)
    reference = library(small_merges())
    byte = {character: n for n, character in enumerate(clip_bpe.BYTES)}
    parts = [char for text in ODD + CORPUS for char in text[:200]] + [" ", "'", "’", "&amp;"]
    for piece in clip_bpe.default_ids(small_merges()):
        if piece not in (BEGIN, END):
            raw = bytes(byte[char] for char in piece.removesuffix("</w>"))
            parts.append(raw.decode("utf-8", "ignore") + " " * piece.endswith("</w>"))
    for _ in range(4000):
        text = "".join(rng.choices(parts, k=rng.randint(1, 14)))
        assert inner(clip, text) == reference(text), repr(text)


@pytest.mark.parametrize("seed", range(6))
def test_overlapping_merges_agree_too(seed):
    """Two letters and many merges: nearly every pair of neighbours could be joined in several ways."""
    rng = random.Random(seed)

    def word():
        return "".join(rng.choices("aab", k=rng.randint(1, 12)))

    merges = train([" ".join(word() for _ in range(60)) for _ in range(20)], 120)
    reference = library(merges)
    pieces = processor(merges)
    for _ in range(500):
        text = " ".join(word() for _ in range(3))
        assert pieces.encode(" ".join(clip_bpe.words(text))) == reference(text), text


def processor(merges):
    made = sentencepiece.SentencePieceProcessor()
    made.LoadFromSerializedProto(clip_bpe.sentencepiece_model(clip_bpe.default_ids(merges), merges))
    return made


def test_text_is_cleaned_as_the_release_does():
    """ftfy repairs first: entities, curly quotes, control characters, broken Unicode."""
    same = [
        ("the man’s hat", "the man's hat"),
        ("salt &amp; pepper", "salt & pepper"),
        ("naïve cafÃ©", "naïve café"),
        ("ﬁre ＡＢＣ", "fire abc"),
        ("a\x00b\x07\x1b[31mc", "abc"),
        ("cafe\u0301", "café"),
        ("\ud800 x", "\ufffd x"),
        ("  a \t\n b  ", "a b"),
    ]
    for raw, clean in same:
        assert clip_bpe.words(raw) == clip_bpe.words(clean), raw
    assert clip_bpe.words("it's 10 o'clock") == ["it", "'s", "1", "0", "o", "'", "clock"]
    assert clip_bpe.words("a<b &amp; c")[3:6] == ["&", "amp", ";"]  # "<": perhaps it is HTML
    assert clip_bpe.words("'ſ") == ["'Å¿"]  # a long s is an s where case does not matter


def test_names_of_the_special_tokens_in_a_text_are_those_tokens(clip):
    """As in the release, in any case of letters, and text around them is cleaned by itself."""
    a, b = inner(clip, "a"), inner(clip, "b")
    assert inner(clip, f"a{END}b {BEGIN}") == [*a, clip.end, *b, clip.begin]
    assert inner(clip, "a <|EndOfText|><|endoftext|>") == [*a, clip.end, clip.end]
    assert clip_bpe.words(f"x &amp; y{END}") == ["x", "&", "y", END]


def test_77_tokens_begin_and_end_and_are_padded_with_the_end(clip):
    ids, valid = clip.encode(["a star", "", "star " * 200], 77)
    assert ids.dtype == np.int32
    assert ids.shape == valid.shape == (3, 77)
    assert valid.sum(1).tolist()[1:] == [2, 77]
    assert (ids[~valid] == clip.end).all()
    assert (ids[:, 0] == clip.begin).all()
    assert ids[2, -1] == clip.end
    assert (ids[2, 1:-1] == inner(clip, "star " * 75)[:75]).all()
    assert ids.max() < clip.vocab_size


def test_every_byte_has_its_piece(clip):
    text = "".join(map(chr, [*range(32, 127), 0x7FF, 0xFFFD, 0x10FFFF]))
    assert clip.pieces.unk_id() not in inner(clip, text)


def test_a_pickled_tokenizer_gives_the_same_ids(clip):
    copy = pickle.loads(pickle.dumps(clip))
    np.testing.assert_array_equal(copy.encode(CORPUS, 40)[0], clip.encode(CORPUS, 40)[0])


def json_file(path, ids, merges, **changes):
    model = {"type": "BPE", "end_of_word_suffix": "</w>", "vocab": ids, "merges": merges} | changes
    path.write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
    return path


def test_all_kinds_of_files_give_the_same_model(clip, tmp_path):
    merges = small_merges()
    ids = clip_bpe.default_ids(merges)
    plain = merges_file(tmp_path / "merges.txt", merges)
    longer = [*merges, *[("x", "y")] * 9]  # OpenAI's file goes on with merges that CLIP leaves out
    files = {
        "packed": tmp_path / "bpe.txt.gz",
        "windows": tmp_path / "windows.txt",
        "longer": merges_file(tmp_path / "longer.txt", longer),
        "lists": json_file(tmp_path / "lists.json", ids, merges),
        "strings": json_file(tmp_path / "strings.json", ids, [" ".join(m) for m in merges]),
    }
    files["packed"].write_bytes(gzip.compress(b'"bpe.txt' + plain.read_bytes()))
    files["windows"].write_bytes(plain.read_bytes().replace(b"\n", b"\r\n"))
    for name, path in files.items():
        out = tmp_path / f"{name}.model"
        assert import_clip(path, out, len(merges)) == len(ids)
        assert out.read_bytes() == Path(clip.path).read_bytes(), name


def test_a_tokenizer_json_keeps_its_own_numbering(tmp_path):
    merges = small_merges()
    pieces = list(clip_bpe.default_ids(merges))
    random.Random(0).shuffle(pieces)
    ids = {piece: n for n, piece in enumerate(pieces)}
    import_clip(json_file(tmp_path / "t.json", ids, merges), tmp_path / "t.model")
    tokenizer = Tokenizer(tmp_path / "t.model")
    assert (tokenizer.begin, tokenizer.end) == (ids[BEGIN], ids[END])
    for text in CORPUS[:5]:
        assert inner(tokenizer, text) == library(merges, ids)(text)


def without(ids, piece):
    return {name: n for n, name in enumerate(name for name in ids if name != piece)}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p, ids, m: p / "none.txt", "no vocabulary file"),
        (lambda p, ids, m: p, "no vocabulary file"),
        (lambda p, ids, m: merges_file(p / "x", m[:-1]), r"has \d+ merges.*cut.*--merges=\d+"),
        (lambda p, ids, m: merges_file(p / "x", [*m[:-1], ("a",)]), r"line \d+ is 'a'"),
        (lambda p, ids, m: merges_file(p / "x", [*m[:-1], m[0]]), r"merge 1 .*can never happen"),
        (lambda p, ids, m: merges_file(p / "x", [*reversed(m)]), r"can never happen"),
        (lambda p, ids, m: json_file(p / "x", ids, m, type="WordPiece"), "WordPiece"),
        (lambda p, ids, m: json_file(p / "x", ids, m, end_of_word_suffix=None), "None"),
        (lambda p, ids, m: json_file(p / "x", without(ids, "!"), m), r"lacks 1 pieces.*'!'"),
        (lambda p, ids, m: json_file(p / "x", ids | {"zz": 999}, m), r"'zz'"),
        (lambda p, ids, m: json_file(p / "x", ids | {"!": 1}, m), "each once"),
        (lambda p, ids, m: json_file(p / "x", [1], m), "not laid out"),
        (lambda p, ids, m: write(p / "x", b"<!doctype html><html>"), "first line is '<!doctype"),
        (lambda p, ids, m: write(p / "x", b'{"model": 3'), "x: Expecting"),
        (lambda p, ids, m: write(p / "x", b'{"model": 3}'), "not laid out"),
        (lambda p, ids, m: write(p / "x", b""), "first line is ''"),
        (lambda p, ids, m: write(p / "x", b"\xff\xfe\x00"), "damaged or no text"),
        (lambda p, ids, m: write(p / "x", gzip.compress(b"#version" * 99)[:-12]), "damaged"),
        (lambda p, ids, m: write(p / "x", gzip.compress(b"a" * (65 * 2**20), 1)), "more than"),
    ],
)
def test_a_file_that_is_no_such_vocabulary_is_refused(tmp_path, make, message):
    merges = small_merges()
    ids = clip_bpe.default_ids(merges)
    with pytest.raises(ValueError, match=message):
        import_clip(make(tmp_path, ids, merges), tmp_path / "out.model", len(merges))
    assert not list(tmp_path.glob("out.model*"))


def write(path, content):
    path.write_bytes(content)
    return path


def test_a_vocabulary_whose_spelling_is_ambiguous_is_refused():
    """Sentencepiece would join "ab" and "c" to "abc", which CLIP never does with these merges."""
    merges = [("a", "b"), ("b", "c"), ("a", "bc")]
    with pytest.raises(ValueError, match=r"merge 3 .*'a' 'bc', can never happen.*\['ab', 'c'\]"):
        clip_bpe.sentencepiece_model(clip_bpe.default_ids(merges), merges)


def command(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "data_prep.tokenizer", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_the_command_finds_the_file_of_an_installed_open_clip_without_importing_it(clip, tmp_path):
    package = tmp_path / "site" / "open_clip"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('was imported')")
    plain = merges_file(tmp_path / "m.txt", small_merges())
    (package / "bpe_simple_vocab_16e6.txt.gz").write_bytes(gzip.compress(plain.read_bytes()))
    out = tmp_path / "new" / "clip.model"
    arguments = ("--clip=open_clip", f"--output={out}", f"--merges={len(small_merges())}")
    done = command(*arguments, PYTHONPATH=str(package.parent))
    assert done.returncode == 0, done.stderr
    assert f"wrote {out}: {clip.vocab_size} ids" in done.stdout
    assert out.read_bytes() == Path(clip.path).read_bytes()


def test_the_command_says_what_is_missing_without_a_traceback(tmp_path):
    done = command("--clip=none.txt", f"--output={tmp_path}/x.model")
    assert done.returncode != 0
    assert done.stderr.startswith("error: no vocabulary file 'none.txt'")
