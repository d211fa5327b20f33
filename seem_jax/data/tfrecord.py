"""TFRecord shards with an index beside them: write, verify, read at random. No TensorFlow.

A record on disk is: length (8 bytes), masked CRC32C of the length (4), payload, masked CRC32C of
the payload (4). The index `<shard>.idx.npy` is int64 [n, 2]: offset and length of each payload. It
can always be rebuilt from the shard.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import google_crc32c
import numpy as np

HEAD = 12  # bytes before a payload
TAIL = 4  # bytes after it
REPAIR = "Remove the file and run the converter again."


def masked_crc(data: bytes) -> int:
    """CRC32C of the bytes, masked as the TFRecord format asks."""
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def index_path(shard: Path) -> Path:
    """Where the index of a shard lies."""
    return shard.with_name(shard.name + ".idx.npy")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name to write to; it takes the place of `path` only when the block ends without error."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield aside
        os.replace(aside, path)
    except OSError as error:
        if error.filename is not None:  # it names its file already
            raise
        raise OSError(error.errno, f"{error.strerror}, while writing", str(path)) from error
    finally:
        aside.unlink(missing_ok=True)


def write_shard(path: Path, payloads: Iterable[bytes]) -> int:
    """Writes a shard and its index, and returns the number of records.

    The shard appears under its name only when it is whole, its index after it, so a killed writer
    leaves nothing that could be taken for a shard. Raises OSError naming the file (a full disk).
    """
    index, offset = [], 0
    with replacing(path) as aside, open(aside, "wb") as file:
        for payload in payloads:
            head = struct.pack("<Q", len(payload))
            file.write(head + struct.pack("<I", masked_crc(head)))
            file.write(payload + struct.pack("<I", masked_crc(payload)))
            index.append((offset + HEAD, len(payload)))
            offset += HEAD + len(payload) + TAIL
        file.flush()
        os.fsync(file.fileno())
    _write_index(path, np.array(index, np.int64).reshape(-1, 2))
    return len(index)


def read_index(path: Path) -> np.ndarray:
    """Payload offsets and lengths of a shard, int64 [n, 2]; rebuilt when missing or not fitting.

    Raises ValueError naming the shard and the record when the shard itself is truncated or damaged,
    even where it was cut between two records, if its index is still there.
    """
    if not path.is_file():
        raise ValueError(f"shard {path} is missing. Run its converter again.")
    size, stored = path.stat().st_size, None
    try:
        stored = np.load(index_path(path), allow_pickle=False)
        if fits(stored, size):
            return stored
    except Exception:  # NumPy's header parser raises of every kind
        pass  # an index is only a copy: whatever is wrong with it, the shard decides
    index = _scan(path, size)
    if (
        stored is not None
        and len(stored) > len(index)
        and np.array_equal(stored[: len(index)], index)
    ):
        raise ValueError(
            f"record {len(index)} of {path} is cut off: the file ends before, its index lists "
            f"{len(stored)} records. {REPAIR}"
        )
    with contextlib.suppress(OSError):  # a read-only disk: keep the index in memory
        _write_index(path, index)
    return index


class TFRecordSource:
    """The records of some shards as bytes, in order, read at random (a grain random access source).

    Every read checks both checksums and raises ValueError naming shard and record when the bytes
    are damaged. Opening raises ValueError for a missing, truncated or twice given shard. Safe in
    threads; picklable, so that worker processes open the files themselves.
    """

    def __init__(self, paths: Sequence[str | Path]):
        self.paths = [Path(path) for path in paths]
        if not self.paths:
            raise ValueError("a record source needs at least one shard; none was given.")
        self.index = [read_index(path) for path in self.paths]
        self.ends = np.cumsum([len(index) for index in self.index])
        self._files: dict[int, int] = {}
        self._lock = threading.Lock()
        self._refuse_duplicates()

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __repr__(self) -> str:
        return f"TFRecordSource(first={self.paths[0].name}, n={len(self)}, s={len(self.paths)})"

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_files": {}, "_lock": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def __del__(self) -> None:
        for file in self.__dict__.get("_files", {}).values():
            os.close(file)

    def __getitem__(self, item: int) -> bytes:
        shard, record = self.locate(item)
        offset, length = (int(value) for value in self.index[shard][record])
        whole = os.pread(self._file(shard), HEAD + length + TAIL, offset - HEAD)
        head, payload, tail = whole[:HEAD], whole[HEAD : HEAD + length], whole[HEAD + length :]
        problem = ""
        if len(whole) != HEAD + length + TAIL:
            problem = f"ends after {len(whole)} of {HEAD + length + TAIL} bytes"
        elif head != _head(length):
            problem = f"says another length than the {length} bytes of the index"
        elif tail != struct.pack("<I", masked_crc(payload)):
            problem = "does not fit its checksum"
        if problem:
            raise ValueError(f"record {record} of {self.paths[shard]} {problem}. {REPAIR}")
        return payload

    def locate(self, item: int) -> tuple[int, int]:
        """Shard number, and number within the shard, of a record. Raises IndexError outside."""
        if not 0 <= item < len(self):
            raise IndexError(f"record {item} of {len(self)} in {self!r}.")
        shard = int(np.searchsorted(self.ends, item, "right"))
        return shard, int(item) - (int(self.ends[shard - 1]) if shard else 0)

    def _file(self, shard: int) -> int:
        with self._lock:
            if shard not in self._files:
                self._files[shard] = os.open(self.paths[shard], os.O_RDONLY)
            return self._files[shard]

    def _refuse_duplicates(self) -> None:
        """A shard copied over another one: equal index and equal checksums at both ends."""
        seen: dict[object, Path] = {}
        for path, index in zip(self.paths, self.index, strict=True):
            if not len(index):
                continue
            with open(path, "rb") as file:
                sums = []
                for offset, length in (index[0], index[-1]):
                    file.seek(int(offset + length))
                    sums.append(file.read(TAIL))
            key = (index.tobytes(), *sums)
            if key in seen:
                raise ValueError(f"shard {path} is a copy of {seen[key]}. {REPAIR}")
            seen[key] = path


def shard_paths(directory: Path, name: str, split: str) -> list[Path]:
    """The shards of a split, complete and in order.

    Raises ValueError naming what is missing, or what belongs to a second numbering.
    """
    pattern = re.compile(rf"{re.escape(f'{name}-{split}.tfrecord')}-(\d{{5}})-of-(\d{{5}})")
    found = {}
    for path in sorted(directory.iterdir()):
        match = pattern.fullmatch(path.name)
        if match:
            found[path] = int(match[1]), int(match[2])
    totals = sorted({total for _, total in found.values()})
    if len(totals) > 1:
        raise ValueError(
            f"{directory} holds shards of {name}-{split} in several numberings, of {totals}: "
            "remove those of the older conversion."
        )
    total = totals[0] if totals else 0
    missing = sorted(set(range(total)) - {number for number, _ in found.values()})
    if missing or not total or len(found) != total:
        raise ValueError(
            f"{directory} has {len(found)} of {total} shards of {name}-{split}; missing: {missing}. "
            "Run its converter again; it writes only what is missing."
        )
    return list(found)


def _head(length: int) -> bytes:
    packed = struct.pack("<Q", length)
    return packed + struct.pack("<I", masked_crc(packed))


def _write_index(shard: Path, index: np.ndarray) -> None:
    with replacing(index_path(shard)) as aside, open(aside, "wb") as file:
        np.save(file, index)


def fits(index: np.ndarray, size: int) -> bool:
    """Whether an index describes a gapless shard of `size` bytes."""
    if index.dtype != np.int64 or index.ndim != 2 or index.shape[1] != 2:
        return False
    if (index < 0).any():
        return False
    ends = index.sum(axis=1) + TAIL  # where the next record starts
    starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])[: len(index)] + HEAD
    return bool((index[:, 0] == starts).all()) and (int(ends[-1]) if len(index) else 0) == size


def _scan(path: Path, size: int) -> np.ndarray:
    """The index of a shard from its record heads."""
    index, position = [], 0
    with open(path, "rb") as file:
        while position < size:
            file.seek(position)
            head = file.read(HEAD)
            where = f"record {len(index)} of {path}"
            if len(head) < HEAD:
                raise ValueError(f"{where} is cut off inside its head. {REPAIR}")
            length = struct.unpack("<Q", head[:8])[0]
            if head != _head(length):
                raise ValueError(f"{where} has a damaged head. {REPAIR}")
            if position + HEAD + length + TAIL > size:
                raise ValueError(
                    f"{where} is cut off: it needs {length} bytes, the file ends before. {REPAIR}"
                )
            index.append((position + HEAD, length))
            position += HEAD + length + TAIL
    return np.array(index, np.int64).reshape(-1, 2)
