"""Writes files as `torch.save` writes them, without torch, and the same with every kind of fault."""

from __future__ import annotations

import dataclasses
import struct
import zlib
from pathlib import Path

import numpy as np

ALIGNMENT = 64  # of the data inside the file
STORAGE_NAMES = {
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "float64": "DoubleStorage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}


@dataclasses.dataclass
class View:
    """A tensor by what the file says of it: its storage, offset, shape and strides in elements."""

    storage: np.ndarray  # one axis
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    parameter: bool = False


@dataclasses.dataclass
class StateDict:
    """What Module.state_dict() gives: an OrderedDict with an attribute."""

    items: dict


class Pickler:
    """Protocol 2, names memoized, tensors rebuilt from storages as torch does."""

    def __init__(self):
        self.out = bytearray(b"\x80\x02")
        self.names: dict[str, int] = {}
        self.storages: list[np.ndarray] = []

    def dump(self, value: object) -> bytes:
        self.write(value)
        return bytes(self.out) + b"."

    def name(self, module: str, name: str) -> None:
        path = f"{module}\n{name}\n"
        if path in self.names:
            self.out += b"j" + struct.pack("<I", self.names[path])
        else:
            self.names[path] = len(self.names)
            self.out += b"c" + path.encode() + b"r" + struct.pack("<I", self.names[path])

    def write(self, value: object) -> None:
        if value is None or value is True or value is False:
            self.out += {None: b"N", True: b"\x88", False: b"\x89"}[value]
        elif isinstance(value, int):
            self.integer(value)
        elif isinstance(value, float):
            self.out += b"G" + struct.pack(">d", value)
        elif isinstance(value, str):
            raw = value.encode()
            self.out += b"X" + struct.pack("<I", len(raw)) + raw
        elif isinstance(value, tuple):
            self.out += b"("
            for part in value:
                self.write(part)
            self.out += b"t"
        elif isinstance(value, list):
            self.out += b"]("
            for part in value:
                self.write(part)
            self.out += b"e"
        elif isinstance(value, dict):
            self.out += b"}"
            self.items(value)
        elif isinstance(value, StateDict):
            self.ordered_dict()
            self.items(value.items)
            self.write({"_metadata": {"": {"version": 1}}})
            self.out += b"b"
        elif isinstance(value, np.ndarray):
            strides = tuple(stride // value.itemsize for stride in value.strides)
            whole = value.transpose(np.argsort(strides, kind="stable")[::-1]).reshape(-1)
            self.tensor(View(whole, 0, value.shape, strides))
        else:
            self.tensor(value)

    def integer(self, value: int) -> None:
        if 0 <= value < 256:
            self.out += b"K" + bytes([value])
        elif -(2**31) <= value < 2**31:
            self.out += b"J" + struct.pack("<i", value)
        else:
            raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            self.out += b"\x8a" + bytes([len(raw)]) + raw

    def items(self, items: dict) -> None:
        self.out += b"("
        for key, value in items.items():
            self.write(key)
            self.write(value)
        self.out += b"u"

    def ordered_dict(self) -> None:
        self.name("collections", "OrderedDict")
        self.out += b")R"

    def tensor(self, view: View) -> None:
        if view.parameter:
            self.name("torch._utils", "_rebuild_parameter")
            self.out += b"("
        self.name("torch._utils", "_rebuild_tensor_v2")
        self.out += b"("
        self.persistent(view.storage)
        self.integer(view.offset)
        self.write(view.shape)
        self.write(view.strides)
        self.write(False)
        self.ordered_dict()
        self.out += b"tR"
        if view.parameter:
            self.write(True)
            self.ordered_dict()
            self.out += b"tR"

    def persistent(self, storage: np.ndarray) -> None:
        known = [index for index, other in enumerate(self.storages) if other is storage]
        if not known:
            known = [len(self.storages)]
            self.storages.append(storage)
        self.out += b"("
        self.write("storage")
        self.name("torch", STORAGE_NAMES[storage.dtype.name])
        self.write(str(known[0]))
        self.write("cuda:0")
        self.integer(storage.size)
        self.out += b"tQ"


@dataclasses.dataclass
class Entry:
    """One entry of a zip file, and what is to be said falsely of it."""

    name: str
    data: bytes
    method: int = 0
    flags: int = 0x0808
    claimed: int | None = None  # size
    crc: int | None = None
    mode: int = 0
    header: int | None = None  # offset that the directory gives
    local_name: str | None = None


def zip_file(entries: list[Entry], before: bytes = b"", behind: bytes = b"") -> bytes:
    """A zip file as PyTorch writes it: aligned data, sizes behind it, a 64-bit directory at the end."""
    out, directory = bytearray(before), bytearray()
    for entry in entries:
        start = len(out)
        name = (entry.local_name or entry.name).encode()
        padding = -(start + 30 + len(name) + 4) % ALIGNMENT
        extra = struct.pack("<2s1H", b"FB", padding) + b"Z" * padding
        size = len(entry.data) if entry.claimed is None else entry.claimed
        crc = zlib.crc32(entry.data) if entry.crc is None else entry.crc
        head = (0, entry.flags, entry.method, 0, 0, 0, 0, 0, len(name), len(extra))
        out += struct.pack("<4s5H3I2H", b"PK\x03\x04", *head) + name + extra + entry.data
        if entry.flags & 8:
            out += struct.pack("<4s3I", b"PK\x07\x08", crc, len(entry.data), size & 0xFFFFFFFF)
        name = entry.name.encode()
        offset = start if entry.header is None else entry.header
        long = struct.pack("<2HQ", 1, 8, size) if size >= 2**32 else b""
        small = 0xFFFFFFFF if long else size
        packed = len(entry.data) if entry.method else small
        if long and not entry.method:
            long = struct.pack("<2H2Q", 1, 16, size, size)
        line = (0, 0, entry.flags, entry.method, 0, 0, crc, packed, small, len(name), len(long))
        directory += struct.pack("<4s6H3I5H2I", b"PK\x01\x02", *line, 0, 0, 0, entry.mode, offset)
        directory += name + long
    count, start, end = len(entries), len(out), len(out) + len(directory)
    out += directory
    out += struct.pack(
        "<4sQ2H2I4Q", b"PK\x06\x06", 44, 798, 45, 0, 0, count, count, len(directory), start
    )
    out += struct.pack("<4sIQI", b"PK\x06\x07", 0, end, 1)
    return bytes(
        out
        + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, count, count, len(directory), start, 0)
        + behind
    )


def entries_of(value: object, folder: str = "archive") -> list[Entry]:
    """The entries that torch.save(value) writes."""
    pickler = Pickler()
    description = pickler.dump(value)
    return raw_entries(description, [storage.tobytes() for storage in pickler.storages], folder)


def raw_entries(
    description: bytes, storages: list[bytes] = (), folder: str = "archive"
) -> list[Entry]:
    """The entries around a pickle made by hand."""
    return [
        Entry(f"{folder}/data.pkl", description),
        Entry(f"{folder}/byteorder", b"little"),
        *(Entry(f"{folder}/data/{i}", data) for i, data in enumerate(storages) if data),
        *(
            Entry(f"{folder}/data/{i}", b"", flags=0x800)
            for i, data in enumerate(storages)
            if not data
        ),
        Entry(f"{folder}/version", b"3\n"),
    ]


def save(path: Path, value: object) -> Path:
    """Writes what torch.save(value, path) would."""
    path.write_bytes(zip_file(entries_of(value, path.stem)))
    return path
