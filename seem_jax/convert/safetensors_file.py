"""Reads and writes safetensors files: a length, a JSON table, then the numbers one after another.

Format: https://github.com/huggingface/safetensors. The file has no checksum, so damage inside the
numbers is noticed only where a number becomes infinite or NaN.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import ml_dtypes
import numpy as np

DTYPES = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F64": np.dtype("<f8"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAX_HEADER_BYTES = 8 * 2**20  # of 933 tensors: 0.1 MB
MAX_AXES = 8
ALIGNMENT = 8


def read(file: BinaryIO, size: int) -> dict[str, np.ndarray]:
    """Read-only arrays, memory-mapped, by name, of an open file of `size` bytes.

    ValueError unless the table is well formed and its tensors fill the file exactly, without holes and
    without overlaps.
    """
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
        raise ValueError(f"its table claims {length} bytes; the file has {size}")
    table = _table(file.read(length))
    arrays = {}
    data = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    start = 8 + length
    rows = {name: _row(name, row) for name, row in table.items()}
    expected = 0
    for name, (dtype, shape, begin, end) in sorted(rows.items(), key=lambda item: item[1][2:]):
        if begin != expected:
            raise ValueError(
                f"tensor {name!r} starts at {begin}, the one before ends at {expected}"
            )
        if end - begin != math.prod(shape) * dtype.itemsize or start + end > size:
            raise ValueError(
                f"tensor {name!r} of shape {shape} and {dtype} has the bytes {begin} to {end} of "
                f"{size - start}"
            )
        count = math.prod(shape)
        arrays[name] = np.frombuffer(data, dtype, count, start + begin).reshape(shape)
        expected = end
    if start + expected != size:
        raise ValueError(f"{size - start - expected} bytes of the file belong to no tensor")
    return arrays


def write(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays of any dtype above, in the order given, under a temporary name; then renames.

    ValueError when the file exists already.
    """
    path = Path(path)
    table, end = {}, 0
    for name, array in arrays.items():
        begin, end = end, end + array.nbytes
        table[name] = {
            "dtype": NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [begin, end],
        }
    header = json.dumps(table, separators=(",", ":")).encode()
    header += b" " * (-len(header) % ALIGNMENT)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for array in arrays.values():
                file.write(np.ascontiguousarray(array).tobytes())
            file.flush()
            os.fsync(file.fileno())
        if path.exists() or path.is_symlink():
            raise ValueError(f"{path} exists; it is not overwritten. Give another name.")
        os.rename(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _table(header: bytes) -> dict:
    def once(pairs: list[tuple[str, object]]) -> dict:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a name stands twice in its table")
        return dict(pairs)

    try:
        table = json.loads(header.decode(), object_pairs_hook=once)
    except RecursionError:
        raise ValueError("its table is nested too deeply") from None
    except ValueError as error:  # also what json and UTF-8 complain about
        raise ValueError(f"its table is no JSON: {error}") from error
    if type(table) is not dict:
        raise ValueError("its table is no JSON object")
    table.pop("__metadata__", None)
    return table


def _row(name: str, row: object) -> tuple[np.dtype, tuple[int, ...], int, int]:
    if type(row) is not dict or set(row) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name!r} has no dtype, shape and data_offsets")
    kind, shape, offsets = row["dtype"], row["shape"], row["data_offsets"]
    if type(kind) is not str or kind not in DTYPES:
        raise ValueError(f"tensor {name!r} has the dtype {kind!r:.50}; expected {sorted(DTYPES)}")
    for values, limit in ((shape, MAX_AXES), (offsets, 2)):
        if type(values) is not list or len(values) > limit:
            raise ValueError(f"tensor {name!r} has a shape or offsets that are no short list")
        if not all(type(value) is int and 0 <= value < 2**48 for value in values):
            raise ValueError(f"tensor {name!r} has a shape or offsets beyond reason")
    if len(offsets) != 2:
        raise ValueError(f"tensor {name!r} has {len(offsets)} offsets; expected 2")
    return DTYPES[kind], tuple(shape), *offsets
