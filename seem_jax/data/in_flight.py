"""Which records are being read, by which process and since when.

Each thread that reads keeps one line in a small file of its own, so that the training process can name
a record that takes too long, and the one that a worker was reading when it was killed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import psutil
from absl import logging

LINE = 1024  # bytes of a file; longer names are cut
LOOKS_PER_STALL = 4  # how often the time of a record is looked at before it is too long


@dataclasses.dataclass(frozen=True)
class Reading:
    """A record that is being read. `since` is time.time()."""

    process: int
    reader: str  # as "worker 1 of 2 (process 123)"
    record: str
    since: float


class InFlight:
    """The records being read now. Picklable: a copy in a worker process reports to this one.

    The files are removed with the object that made them.
    """

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="seem_jax_reading_"))
        self._local = threading.local()
        weakref.finalize(self, shutil.rmtree, self.directory, ignore_errors=True)

    def __getstate__(self) -> dict:
        return {"directory": self.directory}

    def __setstate__(self, state: dict) -> None:
        self.directory = state["directory"]
        self._local = threading.local()

    def enlist(self, worker: int, count: int) -> None:
        """Says that this process is a worker, one of `count`, counted from 0."""
        self._file("name").write_text(f"worker {worker} of {count}")

    @contextlib.contextmanager
    def reading(self, record: str) -> Iterator[None]:
        """Reports a record as long as the block runs, also where it ends by the death of the process."""
        line = f"{time.time()} {record}".encode()[:LINE]
        if not hasattr(self._local, "file"):
            # Unbuffered; closed when its thread ends.
            self._local.file = open(self._file(str(threading.get_ident())), "wb", buffering=0)  # noqa: SIM115
        file = self._local.file.fileno()
        os.pwrite(file, line.ljust(LINE, b"\0"), 0)
        try:
            yield
        finally:
            os.pwrite(file, b"\0", 0)

    def now(self) -> list[Reading]:
        """What is being read, or was when its process ended."""
        found = []
        for path in sorted(self.directory.glob("*.reading")):
            pid, _, thread = path.name.removesuffix(".reading").partition("-")
            try:
                line = path.read_bytes().rstrip(b"\0").decode(errors="replace")
                name = self._name(int(pid))
            except FileNotFoundError:  # forgotten in this moment
                continue
            since, _, record = line.partition(" ")
            if thread == "name" or not record or since.startswith("\0"):
                continue
            found.append(Reading(int(pid), name, record, float(since)))
        return found

    def of_dead(self) -> dict[str, list[str]]:
        """The workers that have ended, each with the records that it was reading."""
        dead: dict[str, list[str]] = {}
        for path in self.directory.glob("*-name.reading"):
            pid = int(path.name.partition("-")[0])
            if not _runs(pid):
                dead[self._name(pid)] = [r.record for r in self.now() if r.process == pid]
        return dead

    def forget(self) -> None:
        """Forgets all readers, after they were told to end."""
        for path in self.directory.glob("*.reading"):
            path.unlink(missing_ok=True)

    def _file(self, end: str) -> Path:
        return self.directory / f"{os.getpid()}-{end}.reading"

    def _name(self, pid: int) -> str:
        path = self.directory / f"{pid}-name.reading"
        return f"{path.read_text()} (process {pid})" if path.is_file() else f"process {pid}"


def warn_of_stalls(in_flight: InFlight, seconds: float, stop: threading.Event) -> None:
    """Logs each record that takes longer than `seconds` to read, once, until `stop` is set."""
    told: set[Reading] = set()
    while not stop.wait(seconds / LOOKS_PER_STALL):
        for one in in_flight.now():
            passed = time.time() - one.since
            if passed > seconds and one not in told:
                told.add(one)
                logging.warning(
                    "%s has been reading %s for %.0f s; is its disk or network slow?",
                    one.reader,
                    one.record,
                    passed,
                )


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
