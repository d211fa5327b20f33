"""The tensors of a file that `torch.save` wrote, read without torch and without running code from it.

Such a file is a zip file: `<name>/data.pkl` describes the objects, `<name>/data/<key>` holds the raw
numbers of one storage. The arrays are views of the memory-mapped file, so nothing is loaded until it is
used, and a size that the file only claims is never allocated.
"""

from __future__ import annotations

import dataclasses
import math
import mmap
from typing import BinaryIO

import ml_dtypes
import numpy as np

from seem_jax.convert import plain_pickle, zip_directory
from seem_jax.convert.plain_pickle import Name

DTYPES = {
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.HalfStorage": np.dtype("<f2"),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.DoubleStorage": np.dtype("<f8"),
    "torch.LongStorage": np.dtype("<i8"),
    "torch.IntStorage": np.dtype("<i4"),
    "torch.ShortStorage": np.dtype("<i2"),
    "torch.CharStorage": np.dtype("i1"),
    "torch.ByteStorage": np.dtype("u1"),
    "torch.BoolStorage": np.dtype("?"),
}
MAX_AXES = 8
MAX_ELEMENTS = 2**40  # keeps products of sizes and strides far from overflow
DESCRIPTION = "data.pkl"
STORAGES = "data/"
ABOUT = {  # small entries that say how the file was written
    "version",
    "byteorder",
    ".format_version",
    ".storage_alignment",
    ".data/serialization_id",
}
AGAIN = "With PyTorch at hand: torch.save(torch.load(FILE, weights_only=True), NEW_FILE)."


@dataclasses.dataclass(frozen=True)
class _Storage:
    entry: zip_directory.Entry
    dtype: np.dtype
    count: int


def read(file: BinaryIO, size: int) -> object:
    """What `torch.save` was given: dicts, lists, tuples, numbers, texts and read-only NumPy arrays.

    `file` is open and has `size` bytes. Every entry is compared with its CRC-32. ValueError when
    the file is damaged or holds anything but that, naming it.
    """
    entries, prefix = _weights_only(zip_directory.read(file, size))
    description = entries[DESCRIPTION]
    if description.size > plain_pickle.MAX_BYTES:
        raise ValueError(f"its {DESCRIPTION} claims {description.size} bytes")
    zip_directory.check(file, description)
    file.seek(description.offset)
    reader = _Reader(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ), entries)
    value = plain_pickle.load(
        file.read(description.size),
        frozenset(reader.calls) | DTYPES.keys(),
        reader.calls,
        reader.storage,
    )
    unused = {name for name in entries if name.startswith(STORAGES)} - reader.used
    if unused:
        raise ValueError(f"no tensor uses the entries {sorted(unused)[:5]} of {prefix!r}")
    for entry in entries.values():
        zip_directory.check(file, entry)
    if "byteorder" in entries and entries["byteorder"].size < 100:
        file.seek(entries["byteorder"].offset)
        order = file.read(entries["byteorder"].size)
        if order != b"little":
            raise ValueError(f"its numbers have the byte order {order!r}; expected little. {AGAIN}")
    return value


def _weights_only(
    entries: dict[str, zip_directory.Entry],
) -> tuple[dict[str, zip_directory.Entry], str]:
    """The entries by their names inside the one folder of the file, and that folder's name."""
    folders = {name.partition("/")[0] for name in entries}
    if len(folders) != 1:
        raise ValueError(f"a zip file, but not of PyTorch: its top level has {sorted(folders)[:5]}")
    folder = folders.pop()
    inside = {name.partition("/")[2]: entry for name, entry in entries.items()}
    if DESCRIPTION not in inside:
        raise ValueError(f"a zip file, but not of PyTorch: it has no entry {folder}/{DESCRIPTION}")
    strange = [
        name
        for name in inside
        if name not in ABOUT | {DESCRIPTION} and not name.startswith(STORAGES)
    ]
    if any(name.startswith("code/") or name == "constants.pkl" for name in strange):
        raise ValueError("a TorchScript program, not a file of weights; give the original weights")
    if strange:
        raise ValueError(f"it holds {sorted(strange)[:5]}, which a file of weights does not have")
    return inside, folder


class _Reader:
    """Makes arrays for the names that a description may call."""

    def __init__(self, data: mmap.mmap, entries: dict[str, zip_directory.Entry]):
        self.data = data
        self.entries = entries
        self.used: set[str] = set()
        self.calls = {
            "collections.OrderedDict": self.ordered_dict,
            "collections.Counter": self.counter,
            "torch._utils._rebuild_tensor_v2": self.tensor,
            "torch._utils._rebuild_parameter": self.parameter,
        }

    def storage(self, key: object) -> _Storage:
        """The storage behind a persistent id ("storage", type, key, device, number of elements)."""
        kinds = (str, Name, str, str, int)
        if type(key) is not tuple or tuple(map(type, key)) != kinds or key[0] != "storage":
            raise ValueError("the pickle refers to an outside object that is no storage of tensors")
        _, kind, number, _, count = key
        if kind.path not in DTYPES:
            raise ValueError(f"the pickle uses {kind.path} as the type of a storage")
        name, dtype = STORAGES + number, DTYPES[kind.path]
        if name not in self.entries:
            raise ValueError(f"the file has no entry {name[:200]!r}, which its description names")
        entry = self.entries[name]
        if entry.size != count * dtype.itemsize:
            raise ValueError(
                f"entry {name} holds {entry.size} bytes; {count} elements of {dtype} were declared"
            )
        self.used.add(name)
        return _Storage(entry, dtype, count)

    def tensor(
        self,
        storage: object = None,
        offset: object = None,
        shape: object = None,
        strides: object = None,
        requires_grad: object = None,
        hooks: object = None,
        *more: object,
    ) -> np.ndarray:
        """The view of a storage that a tensor is; offset and strides count elements."""
        if type(storage) is not _Storage or type(requires_grad) is not bool or hooks or more:
            raise ValueError("the pickle rebuilds a tensor from something else than a storage")
        if not (_sizes(shape) and _sizes(strides) and _sizes((offset,))):
            raise ValueError("a tensor's offset, shape or strides are no reasonable numbers")
        if len(shape) != len(strides):
            raise ValueError(f"a tensor has {len(shape)} axes and {len(strides)} strides")
        where = f"a tensor with offset {offset}, shape {shape} and strides {strides}"
        if math.prod(shape) > storage.count:
            raise ValueError(f"{where} is larger than its storage of {storage.count} elements")
        if 0 in shape:
            return np.empty([min(size, 1) for size in shape], storage.dtype).reshape(shape)
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides))
        if last >= storage.count:
            raise ValueError(f"{where} reaches beyond its storage of {storage.count} elements")
        if _overlaps(shape, strides):
            raise ValueError(f"{where} uses an element twice")
        width = storage.dtype.itemsize
        return np.ndarray(
            shape,
            storage.dtype,
            self.data,
            storage.entry.offset + offset * width,
            [stride * width for stride in strides],
        )

    def parameter(self, array: object = None, *flags: object) -> np.ndarray:
        if type(array) is not np.ndarray or len(flags) != 2 or flags[1]:
            raise ValueError("the pickle makes a parameter of something that is no tensor")
        return array

    def ordered_dict(self, *arguments: object) -> dict:
        if arguments:  # items follow by themselves, and tensors' hooks are empty
            raise ValueError("the pickle makes an OrderedDict from something")
        return {}

    def counter(self, counts: object = None, *more: object) -> dict:
        """Of a learning-rate schedule in a training state."""
        if type(counts) is not dict or more:
            raise ValueError("the pickle makes a Counter of something that is no dict")
        return counts


def _sizes(values: object) -> bool:
    """True for a short tuple of integers from 0 to MAX_ELEMENTS."""
    return (
        type(values) is tuple
        and len(values) <= MAX_AXES
        and all(type(value) is int and 0 <= value <= MAX_ELEMENTS for value in values)
    )


def _overlaps(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """True unless each stride steps over all that the smaller ones reach."""
    reach = 0
    for stride, size in sorted((stride, size) for stride, size in zip(strides, shape) if size > 1):
        if stride <= reach:
            return True
        reach += stride * (size - 1)
    return False
