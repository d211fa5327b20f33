"""The entries of a zip file whose entries are stored without compression, as PyTorch writes them.

Nothing is decompressed and nothing is extracted. Every byte of the file must belong to one entry or to
the directory, once: so there is no room for bombs, for overlapping entries or for a second file.
"""

from __future__ import annotations

import dataclasses
import stat
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

MAX_DIRECTORY_BYTES = 16 * 2**20
LOCAL = struct.Struct("<4s5H3I2H")
CENTRAL = struct.Struct("<4s6H3I5H2I")
END = struct.Struct("<4s4H2IH")
END64_LOCATOR = struct.Struct("<4sIQI")
END64 = struct.Struct("<4sQ2H2I4Q")
DESCRIPTOR_BYTES = {0: (0,), 8: (12, 16, 20, 24)}  # behind an entry, by bit 3 of its flags
FULL = 0xFFFFFFFF  # stands for "see the 64-bit field"
CHUNK = 2**20


@dataclasses.dataclass(frozen=True)
class Entry:
    """Where the bytes of one entry are."""

    name: str
    offset: int  # of the data, bytes from the start of the file
    size: int
    crc: int


@dataclasses.dataclass(frozen=True)
class _Record:
    """One line of the central directory."""

    name: str
    flags: int
    crc: int
    size: int
    header: int  # offset of the local header


def read(file: BinaryIO, size: int) -> dict[str, Entry]:
    """The entries of an open file of `size` bytes, by name.

    Raises ValueError when the file is cut off, has anything before, between or after its entries, or
    has an entry that is compressed, encrypted, a link, named twice or named like a path outside.
    """
    count, start, length = _end(file, size)
    records = sorted(_records(_at(file, start, length), count), key=lambda record: record.header)
    entries: dict[str, Entry] = {}
    expected, gaps = 0, (0,)
    for record in records:
        if record.header - expected not in gaps:
            raise ValueError(
                f"entry {record.name!r} starts at byte {record.header}, the one before ends at "
                f"{expected}: entries overlap or something is hidden between them"
            )
        offset = _data_offset(file, record)
        if offset + record.size > start:
            raise ValueError(f"entry {record.name!r} reaches into the directory of the zip file")
        if record.name in entries:
            raise ValueError(f"entry {record.name!r} is there twice")
        entries[record.name] = Entry(record.name, offset, record.size, record.crc)
        expected, gaps = offset + record.size, DESCRIPTOR_BYTES[record.flags & 8]
    if start - expected not in gaps:
        raise ValueError(f"{start - expected} bytes between the entries and their directory")
    return entries


def check(file: BinaryIO, entry: Entry) -> None:
    """Raises ValueError when the bytes of an entry are not those that were written (CRC-32)."""
    crc, left = 0, entry.size
    file.seek(entry.offset)
    while left:
        chunk = file.read(min(CHUNK, left))
        if not chunk:
            raise ValueError(f"the file ends inside entry {entry.name!r}")
        crc = zlib.crc32(chunk, crc)
        left -= len(chunk)
    if crc != entry.crc:
        raise ValueError(f"entry {entry.name!r} was damaged: its CRC-32 is not the stored one")


def _at(file: BinaryIO, offset: int, count: int) -> bytes:
    file.seek(offset)
    data = file.read(count)
    if len(data) != count:
        raise ValueError(f"the file is cut off: {count} bytes expected at {offset}")
    return data


def _end(file: BinaryIO, size: int) -> tuple[int, int, int]:
    """(number of entries, offset and length of the central directory)."""
    position = size - END.size
    if position < 0:
        raise ValueError(f"the file is cut off: {size} bytes")
    magic, disk, first_disk, here, count, length, start, comment = END.unpack(
        _at(file, position, END.size)
    )
    if magic != b"PK\x05\x06" or comment:
        raise ValueError(
            "the file does not end with the directory of a zip file: it is cut off, or something was "
            "added behind it"
        )
    locator = position - END64_LOCATOR.size
    if locator >= 0:
        mark, _, at, disks = END64_LOCATOR.unpack(_at(file, locator, END64_LOCATOR.size))
        if mark == b"PK\x06\x07":
            if at != locator - END64.size or disks > 1:
                raise ValueError("the 64-bit directory of the zip file is not where it should be")
            short = (disk, first_disk, here, count, length, start)
            mark, rest, _, _, *long = END64.unpack(_at(file, at, END64.size))
            if mark != b"PK\x06\x06" or rest != END64.size - 12:
                raise ValueError("the 64-bit directory of the zip file is damaged")
            for small, large in zip(short, long, strict=True):
                if small not in (large, 0xFFFF, FULL):
                    raise ValueError("the two directories of the zip file disagree")
            disk, first_disk, here, count, length, start = long
            position = at
    if disk or first_disk or here != count:
        raise ValueError("the zip file is one part of several")
    if length > MAX_DIRECTORY_BYTES or start + length != position:
        raise ValueError(f"the directory of the zip file is damaged: {length} bytes at {start}")
    return count, start, length


def _records(directory: bytes, count: int) -> Iterator[_Record]:
    position = 0
    for _ in range(count):
        if position + CENTRAL.size > len(directory):
            raise ValueError(f"the directory of the zip file has fewer than {count} entries")
        fields = CENTRAL.unpack_from(directory, position)
        magic, _, _, flags, method, _, _, crc, packed, size = fields[:10]
        name_length, extra_length, comment_length, disk, _, mode, header = fields[10:]
        position += CENTRAL.size
        raw = directory[position : position + name_length]
        extra = directory[position + name_length : position + name_length + extra_length]
        position += name_length + extra_length + comment_length
        if magic != b"PK\x01\x02" or position > len(directory):
            raise ValueError("the directory of the zip file is damaged")
        name = _checked_name(raw)
        size, packed, header = _long_fields(extra, (size, packed, header))
        if method or size != packed:
            raise ValueError(
                f"entry {name!r} is compressed ({packed} bytes for {size}); weight files are stored "
                "as they are: unpack it and save the weights again"
            )
        if flags & ~0x0808 or disk:
            raise ValueError(f"entry {name!r} is encrypted or incomplete (flags {flags:#06x})")
        if stat.S_IFMT(mode >> 16) not in (0, stat.S_IFREG):
            raise ValueError(f"entry {name!r} is no file but a link or something else")
        yield _Record(name, flags, crc, size, header)
    if position != len(directory):
        raise ValueError(f"the directory of the zip file has more than {count} entries")


def _long_fields(extra: bytes, fields: tuple[int, int, int]) -> list[int]:
    """Fields that do not fit 32 bits stand, in order, in the extra record 1."""
    values = list(fields)
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        body, extra = extra[4 : 4 + length], extra[4 + length :]
        if kind == 1:
            wanted = [index for index, value in enumerate(fields) if value == FULL]
            if len(body) < 8 * len(wanted):
                raise ValueError("a 64-bit field of the zip directory is cut off")
            for place, index in enumerate(wanted):
                values[index] = struct.unpack_from("<Q", body, 8 * place)[0]
    return values


def _checked_name(raw: bytes) -> str:
    try:
        name = raw.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"an entry's name is not UTF-8: {raw[:200]!r}") from error
    if not name.isprintable() or "\\" in name or ":" in name:
        raise ValueError(f"entry {name[:200]!r} has a name that weight files do not have")
    if any(part in ("", ".", "..") for part in name.split("/")):
        raise ValueError(f"entry {name[:200]!r} is a path outside the file, or a folder")
    return name


def _data_offset(file: BinaryIO, record: _Record) -> int:
    """Where the data begins; the header in front of it must say what the directory says."""
    head = LOCAL.unpack(_at(file, record.header, LOCAL.size))
    magic, _, flags, method, _, _, crc, packed, size, name_length, extra_length = head
    if magic != b"PK\x03\x04":
        raise ValueError(f"entry {record.name!r} has no header at byte {record.header}")
    name = _at(file, record.header + LOCAL.size, name_length)
    later = record.flags & 8  # sizes and CRC stand behind the data, and in the directory
    same_size = all(value in (0, record.size, FULL) for value in (packed, size))
    same_crc = later or crc == record.crc
    same_name = name == record.name.encode() and flags == record.flags
    if method or not (same_name and same_size and same_crc):
        raise ValueError(f"entry {record.name!r}: its header and the directory disagree")
    return record.header + LOCAL.size + name_length + extra_length
