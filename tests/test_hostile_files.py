"""Files made to do harm or made by accident: nothing in them runs, each is refused with its reason."""

from __future__ import annotations

import json
import os
import pickle
import resource
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest

from seem_jax.convert import plain_pickle
from seem_jax.convert.official_file import read_state
from tests import weight_files
from tests.weight_files import Entry, View, entries_of, raw_entries, zip_file

TOUCHED = "touched_by_a_weight_file"
COMMAND = f"touch {TOUCHED}".encode()
TEXT = b"X" + struct.pack("<I", len(COMMAND)) + COMMAND
ARGUMENTS = TEXT + b"\x85"
SYSTEM = b"cposix\nsystem\n"
GOOD = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.arange(3, dtype=np.float16)}


class Runs:
    """Pickled, this asks for os.system to be called."""

    def __reduce__(self):
        return os.system, (COMMAND.decode(),)


def torch_names(*names: str) -> bytes:
    return b"".join(b"c" + name.replace(" ", "\n").encode() + b"\n" for name in names)


REBUILD = torch_names("torch._utils _rebuild_tensor_v2")
DICT = torch_names("collections OrderedDict")
STORAGE = (
    b"(X\x07\0\0\0storage" + torch_names("torch FloatStorage") + b"X\x01\0\0\x000X\x03\0\0\0cpu"
)

LAUGHS = (
    b"\x80\x02]q\0"
    + b"".join(  # 9**30 lists, if anyone counted them
        b"](" + bytes([ord("h"), level]) * 9 + b"eq" + bytes([level + 1]) for level in range(30)
    )
    + b"."
)

PICKLES = {  # name -> pickle, a word of the refusal
    "global": (b"\x80\x02" + SYSTEM + ARGUMENTS + b"R.", "posix.system"),
    "python 3 pickle": (pickle.dumps({"a": Runs()}, 2), "posix.system"),
    "stack_global": (pickle.dumps(Runs(), 4), "posix.system"),
    "protocol 5": (pickle.dumps([Runs()], 5), "posix.system"),
    "protocol 0": (b"cos\nsystem\n(S'touch x'\ntR.", "os.system"),
    "builtins eval": (b"\x80\x02cbuiltins\neval\n" + ARGUMENTS + b"R.", "builtins.eval"),
    "builtins getattr": (b"\x80\x02cbuiltins\ngetattr\n.", "builtins.getattr"),
    "python 2 builtins": (b"\x80\x02c__builtin__\nexec\n.", "__builtin__.exec"),
    "a function of torch": (b"\x80\x02ctorch.serialization\nload\n.", "torch.serialization.load"),
    "a function of numpy": (b"\x80\x02cnumpy.testing\nrunstring\n.", "runstring"),
    "dotted name": (b"\x80\x04\x8c\x05torch\x8c\x0bos.system.x\x93.", "torch.os.system.x"),
    "name that is no text": (b"\x80\x04K\x01K\x02\x93.", "no text"),
    "inst": (b"\x80\x02(" + TEXT + b"iposix\nsystem\n.", "INST of posix.system"),
    "obj": (b"\x80\x02(" + DICT + TEXT + b"o.", "OBJ"),
    "newobj": (b"\x80\x02" + DICT + ARGUMENTS + b"\x81.", "NEWOBJ"),
    "newobj_ex": (b"\x80\x04" + DICT + ARGUMENTS + b"}\x92.", "NEWOBJ_EX"),
    "ext1": (b"\x80\x02\x82\x01.", "EXT1"),
    "ext2": (b"\x80\x02\x83\x01\x00.", "EXT2"),
    "ext4": (b"\x80\x02\x84\x01\0\0\0.", "EXT4"),
    "persid": (b"Pevil\n.", "PERSID"),
    "persistent id of another form": (b"\x80\x02" + TEXT + b"Q.", "no storage"),
    "persistent id of a module": (
        b"\x80\x02(X\x06\0\0\0module" + DICT + b"X\x01\0\0\x000X\x01\0\0\x00cK\x01tQ.",
        "no storage",
    ),
    "calling a text": (b"\x80\x02" + TEXT + b")R.", "calls a value of type str"),
    "calling a storage type": (b"\x80\x02" + torch_names("torch FloatStorage") + b")R.", "calls"),
    "calling with no tuple": (b"\x80\x02" + DICT + b"]R.", "with a value of type list"),
    "OrderedDict of something": (b"\x80\x02" + DICT + ARGUMENTS + b"R.", "OrderedDict"),
    "build with state of a class": (
        b"\x80\x02" + DICT + b"}b.",
        "state of collections.OrderedDict",
    ),
    "build with slots": (b"\x80\x02" + DICT + b")RN}\x86b.", "state"),
    "build of a list": (b"\x80\x02]}b.", "state"),
    "tensor of no storage": (b"\x80\x02" + REBUILD + b"]K\0))\x89" + DICT + b")RtR.", "group"),
    "tensor without arguments": (b"\x80\x02" + REBUILD + b")R.", "something else than a storage"),
    "parameter of a text": (
        b"\x80\x02" + torch_names("torch._utils _rebuild_parameter") + ARGUMENTS + b"R.",
        "no tensor",
    ),
    "a storage that is not there": (b"\x80\x02" + STORAGE + b"K\x01tQ.", "no entry 'data/0'"),
    "key that climbs": (
        b"\x80\x02(X\x07\0\0\0storage"
        + torch_names("torch FloatStorage")
        + b"X\x0b\0\0\0../data.pkl"
        + b"X\x03\0\0\0cpuK\x01tQ.",
        "no entry 'data/../data.pkl'",
    ),
    "bytes of 2**63": (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.", "BINBYTES8"),
    "text of 2**63": (b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.", "BINUNICODE8"),
    "text of 4 GB": (b"\x80\x02X\xff\xff\xff\xff.", "cut off"),
    "long of 2 GB": (b"\x80\x02\x8b\xff\xff\xff\x7f.", "LONG4"),
    "long of 255 bytes": (b"\x80\x02\x8a\xff" + b"\x01" * 255 + b".", "255 bytes"),
    "long in decimal": (b"L" + b"9" * 100_000 + b"L\n.", "LONG"),
    "huge frame": (b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xff.", "frame"),
    "huge memo number, read": (b"\x80\x02j\xff\xff\xff\xff.", "never written"),
    "memo of nothing": (b"\x80\x02q\0.", "empty stack"),
    "endless opcodes": (b"\x80\x02" + b"]" * (plain_pickle.MAX_OPCODES + 1), "opcodes"),
    "deep nesting": (b"\x80\x02" + b"]" * 150_000 + b"a" * 149_999 + b".", "a list; expected"),
    "deep tuples as a key": (b"\x80\x02})" + b"\x85" * 200_000 + b"Ns.", "tuple as the key"),
    "laughing lists": (LAUGHS, "left on its stack"),
    "itself inside itself": (b"\x80\x02}q\0X\x01\0\0\0ah\0s.", "a dict under 'a'"),
    "key twice": (b"\x80\x02}(X\x01\0\0\0aNX\x01\0\0\0aNu.", "twice"),
    "odd items": (b"\x80\x02}(K\x01u.", "items"),
    "append to a dict": (b"\x80\x02}Na.", "appends"),
    "mark never closed": (b"\x80\x02(.", "empty stack"),
    "mark never opened": (b"\x80\x02t.", "never opened"),
    "stack empty": (b"\x80\x02.", "empty stack"),
    "second pickle behind": (b"\x80\x02}.\x80\x02" + SYSTEM + ARGUMENTS + b"R.", "after its end"),
    "no end": (b"\x80\x02}", "cut off"),
    "not UTF-8": (b"\x80\x02X\x02\0\0\0\xff\xfe.", "UTF-8"),
    "unknown opcode": (b"\x80\x02\xff.", "no pickle opcode"),
    "buffer outside": (b"\x80\x05\x97.", "NEXT_BUFFER"),
    "protocol 9": (b"\x80\x09}.", "protocol 9"),
    "protocol late": (b"\x80\x02}\x80\x02.", "protocol 2"),
    "empty": (b"", "cut off"),
    "number": (b"\x80\x02K\x07.", "holds a int"),
    "no tensors": (b"\x80\x02}.", "no tensors"),
    "module that is a text": (pickle.dumps({"module": "x"}, 2), "a str under 'module'"),
}


def view(offset, shape, strides) -> list[Entry]:
    storage = np.arange(12, dtype=np.float32)
    return entries_of({"a": View(storage, offset, shape, strides)})


def edited(name: str, **fields) -> list[Entry]:
    """A good file whose entry says something else."""
    entries = entries_of(GOOD)
    for entry in entries:
        if entry.name == f"archive/{name}":
            for field, value in fields.items():
                setattr(entry, field, value)
    return entries


def more(name: str, data: bytes = b"x", **fields) -> list[Entry]:
    return [*entries_of(GOOD), Entry(name, data, **fields)]


def deflated(size: int) -> bytes:
    maker = zlib.compressobj(wbits=-15)
    return b"".join(maker.compress(bytes(2**20)) for _ in range(size // 2**20)) + maker.flush()


ZIPS = {  # name -> entries, a word of the refusal
    "bomb": (edited("data/0", data=deflated(2**26), method=8, claimed=2**26), "compressed"),
    "bomb of 2**60 bytes": (edited("data/0", method=8, claimed=2**60), "compressed"),
    "stored size 2**60": (edited("data/0", claimed=2**60), "disagree|reaches|hidden|compressed"),
    "pickle as a bomb": (
        edited("data.pkl", data=deflated(2**26), method=8, claimed=2**26),
        "compressed",
    ),
    "encrypted": (edited("data/0", flags=0x0809), "encrypted"),
    "climbing name": (more("archive/../../etc/cron.d/x"), "outside"),
    "absolute name": (more("/etc/passwd"), "outside"),
    "backslashes": (more("archive\\..\\x"), "name that weight files do not have"),
    "drive": (more("C:/x"), "name that weight files do not have"),
    "null in the name": (more("archive/a\0b"), "name that weight files do not have"),
    "folder entry": (more("archive/data/"), "folder"),
    "link": (more("archive/data/link", b"/etc/passwd", mode=0o120777 << 16), "link"),
    "two top folders": (more("other/data.pkl"), "top level"),
    "entry twice": (more("archive/data/0"), "twice"),
    "two pickles": (more("archive/data.pkl", PICKLES["global"][0]), "twice"),
    "one offset for two": (edited("data/1", header=0), "overlap"),
    "offset beyond the file": (edited("data/1", header=2**31), "hidden|cut off|no header"),
    "name differs in front": (edited("data/1", local_name="archive/data/9"), "disagree"),
    "wrong CRC": (edited("data/1", crc=1), "CRC-32"),
    "wrong CRC of the pickle": (edited("data.pkl", crc=1), "CRC-32"),
    "big endian": (edited("byteorder", data=b"big"), "byte order"),
    "storage too short": (edited("data/0", data=bytes(8)), "holds 8 bytes"),
    "storage too long": (edited("data/0", data=bytes(80)), "holds 80 bytes"),
    "tensor nobody names": (more("archive/data/7"), "no tensor uses"),
    "program": (more("archive/code/__torch__.py"), "TorchScript"),
    "stranger": (more("archive/readme.txt"), "readme.txt"),
    "no pickle": (entries_of(GOOD)[1:], "no entry archive/data.pkl"),
    "no entries": ([], "top level"),
    "negative stride": (view(11, (12,), (-1,)), "reasonable"),
    "negative offset": (view(-1, (2,), (1,)), "reasonable"),
    "beyond the storage": (view(8, (5,), (1,)), "beyond"),
    "stride beyond the storage": (view(0, (3,), (6,)), "beyond"),
    "overlapping elements": (view(0, (3, 3), (1, 1)), "twice"),
    "stride 0 makes 2**40 of one": (view(0, (2**40,), (0,)), "larger than its storage"),
    "shape of 2**62": (view(0, (2**62,), (1,)), "reasonable"),
    "many axes": (view(0, (1,) * 65, (1,) * 65), "reasonable"),
    "axes and strides differ": (view(0, (2, 3), (1,)), "axes"),
    "shape is a list": (view(0, [2], (1,)), "reasonable"),
    "shape of texts": (view(0, ("2",), (1,)), "reasonable"),
    "shape of booleans": (view(0, (True,), (1,)), "reasonable"),
}


def table(**tensors) -> bytes:
    header = json.dumps(tensors).encode()
    return len(header).to_bytes(8, "little") + header


def row(shape=(2,), offsets=(0, 8), dtype="F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def raw_table(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


GOOD_BYTES = zip_file(entries_of(GOOD))
FILES = {  # name -> bytes, a word of the refusal
    "empty file": (b"", "empty"),
    "web page": (b"<!DOCTYPE html>\n<html><title>Not found</title>", "web page"),
    "web page with a mark": (b"\xef\xbb\xbf\n <HTML>", "web page"),
    "web page with a comment": (b"<!-- saved --><html><body>Rate limit</body></html>", "web page"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS"),
    "bare pickle": (PICKLES["global"][0], "bare pickle"),
    "bare pickle, protocol 0": (PICKLES["protocol 0"][0], "neither"),
    "before version 1.6": (bytes.fromhex("80028a0a6cfc9c46f9206aa850192e80024de903"), "before"),
    "tar file": (bytes(257) + b"ustar" + bytes(300), "tar"),
    "gzip": (b"\x1f\x8b\x08" + bytes(20), "gzip"),
    "noise": (np.random.default_rng(0).bytes(1000), "neither|bare"),
    "cut in half": (GOOD_BYTES[: len(GOOD_BYTES) // 2], "cut off"),
    "cut by a byte": (GOOD_BYTES[:-1], "cut off"),
    "only its beginning": (GOOD_BYTES[:10], "cut off"),
    "something behind": (GOOD_BYTES + b"#!/bin/sh\n", "behind"),
    "something in front": (b"PK00" + GOOD_BYTES, "directory|damaged"),
    "numpy file in a zip": (
        zip_file([Entry("a.npy", b"x"), Entry("b.npy", b"y")]),
        "not of PyTorch",
    ),
    "safetensors: huge table": (b"\xff" * 7 + b"\x7f{" + bytes(20), "table claims"),
    "safetensors: no JSON": (raw_table(b"{nonsense"), "JSON"),
    "safetensors: not UTF-8": (raw_table(b'{"\xff":1}'), "JSON"),
    "safetensors: deep table": (raw_table(b'{"a":' * 100_000), "deeply"),
    "safetensors: deep lists": (raw_table(b'{"a":' + b"[" * 100_000), "deeply"),
    "safetensors: huge number": (raw_table(b'{"a":' + b"9" * 10_000 + b"}"), "JSON"),
    "safetensors: name twice": (raw_table(b'{"a":{},"a":{}}'), "twice"),
    "safetensors: no dtype": (table(a={"shape": [2]}) + bytes(8), "dtype"),
    "safetensors: odd dtype": (table(a=row(dtype="F33")) + bytes(8), "F33"),
    "safetensors: dtype a list": (table(a=row(dtype=["F32"])) + bytes(8), "F32"),
    "safetensors: beyond the end": (table(a=row(offsets=(0, 8))), "bytes"),
    "safetensors: another size": (table(a=row(shape=(3,))) + bytes(8), "bytes"),
    "safetensors: huge shape": (table(a=row(shape=(2**47,) * 8)) + bytes(8), "bytes"),
    "safetensors: negative": (table(a=row(shape=(-2,), offsets=(0, -8))), "reason"),
    "safetensors: fractions": (table(a=row(shape=(2.0,))) + bytes(8), "reason"),
    "safetensors: hole": (table(a=row(offsets=(4, 12))) + bytes(12), "starts at 4"),
    "safetensors: overlap": (table(a=row(), b=row()) + bytes(8), "starts at 0"),
    "safetensors: rest": (table(a=row()) + bytes(9), "belong to no tensor"),
    "safetensors: three offsets": (table(a=row(offsets=(0, 4, 8))) + bytes(8), "short list"),
    "safetensors: no tensors": (table(), "no tensors"),
}

CASES = (
    {
        f"pickle: {name}": (zip_file(raw_entries(data)), word)
        for name, (data, word) in PICKLES.items()
    }
    | {f"zip: {name}": (zip_file(entries), word) for name, (entries, word) in ZIPS.items()}
    | FILES
)


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_file_is_refused_with_its_reason_and_runs_nothing(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data, word = CASES[name]
    path = tmp_path / "weights.pt"
    path.write_bytes(data)
    begin = time.process_time()
    with pytest.raises(ValueError, match=rf"(?s)weights\.pt was not read: .*({word})"):
        read_state(path)
    assert time.process_time() - begin < 2
    assert os.listdir() == ["weights.pt"]


def test_the_pickles_would_have_done_harm(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("global", "python 3 pickle", "stack_global"):
        pickle.loads(PICKLES[name][0])
        os.remove(TOUCHED)


def test_every_bit_flip_is_refused_or_changes_nothing(tmp_path):
    path = tmp_path / "weights.pt"
    small = {"a": np.arange(2, dtype=np.float32)}
    data = zip_file(entries_of(small))
    refused = 0
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        try:
            found = read_state(path)
        except ValueError:
            refused += 1
        else:
            assert list(found) == ["a"]
            np.testing.assert_array_equal(found["a"], small["a"])
    assert refused > len(data) / 3  # the rest is padding, dates and the like


def test_every_truncation_is_refused(tmp_path):
    path = tmp_path / "weights.pt"
    for length in range(len(GOOD_BYTES)):
        path.write_bytes(GOOD_BYTES[:length])
        with pytest.raises(ValueError, match=r"weights\.pt was not read"):
            read_state(path)


def test_folders_pipes_devices_and_missing_files_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for path in (tmp_path, tmp_path / "pipe", "/dev/zero", tmp_path / "zero"):
        with pytest.raises(ValueError, match="no file but a folder, a pipe or a device"):
            read_state(path)
    for path in (tmp_path / "loop", tmp_path / "missing", "a\0b"):
        with pytest.raises(ValueError, match="cannot open"):
            read_state(path)


def test_a_link_to_a_sound_file_is_read(tmp_path):
    weight_files.save(tmp_path / "blob", GOOD)
    (tmp_path / "weights.pt").symlink_to(tmp_path / "blob")
    assert read_state(tmp_path / "weights.pt").keys() == GOOD.keys()


def test_a_file_is_refused_before_jax_is_imported():
    code = "import sys, seem_jax.convert.__main__; sys.exit('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], timeout=60)
    assert done.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["pickle: endless opcodes", "pickle: deep nesting", "pickle: stack_global", "zip: bomb"]
)
def test_the_command_refuses_within_two_seconds_and_little_memory(name, tmp_path):
    root = Path(__file__).parents[1]
    path, output = tmp_path / "weights.pt", tmp_path / "out"
    path.write_bytes(CASES[name][0])
    command = [sys.executable, "-m", "seem_jax.convert", str(path)]
    command += [f"--config={root / 'configs' / 'shapes.py'}", f"--output={output}"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {path} was not read")
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2
    assert after.ru_maxrss < 2**20  # KiB; of the largest child so far
    assert os.listdir(tmp_path) == ["weights.pt"]
