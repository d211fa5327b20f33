"""What a run costs: seconds, memory and compilations, added up over all its starts."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import jax
import psutil

# What JAX records of each program compiled, and of each that it finds in its own cache instead.
COMPILED = "/jax/core/compile/backend_compile_duration"
FROM_CACHE = "/jax/compilation_cache/cache_retrieval_time_sec"


@dataclasses.dataclass
class Totals:
    """The figures of a run in evaluation.json, with "run/" before their names."""

    train_seconds: float = 0.0  # in training steps, waiting for data and saving included
    total_seconds: float = 0.0  # from the start of the process on
    peak_bytes: int = 0  # largest resident memory of the process, worker processes not counted
    peak_device_bytes: int = 0  # largest use of an accelerator's memory; 0 on CPU
    compilations_after_first_step: int = 0  # not those of saving and of evaluation, see train.py
    starts: int = 0


class Ledger:
    """Keeps `Totals` in WORKDIR/ledger.json, so that a run that was stopped goes on counting."""

    def __init__(self, workdir: str | Path):
        self._path = Path(workdir) / "ledger.json"
        self._earlier = Totals()
        if self._path.is_file():
            self._earlier = Totals(**json.loads(self._path.read_text()))
        self._earlier.starts += 1
        self._started = psutil.Process().create_time()
        self.train_seconds = 0.0
        self.compilations = 0

    def totals(self) -> Totals:
        earlier = self._earlier
        return Totals(
            train_seconds=earlier.train_seconds + self.train_seconds,
            total_seconds=earlier.total_seconds + time.time() - self._started,
            peak_bytes=max(earlier.peak_bytes, peak_bytes()),
            peak_device_bytes=max(earlier.peak_device_bytes, peak_device_bytes()),
            compilations_after_first_step=earlier.compilations_after_first_step + self.compilations,
            starts=earlier.starts,
        )

    def write(self) -> None:
        if jax.process_index() != 0:
            return
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps(dataclasses.asdict(self.totals()), indent=1))
        os.replace(temporary, self._path)

    def figures(self) -> dict[str, float]:
        """The totals as they stand in evaluation.json."""
        return {f"run/{name}": value for name, value in dataclasses.asdict(self.totals()).items()}


class EventCounter:
    """Counts what JAX records in this thread while it is entered: COMPILED (cached ones included) or FROM_CACHE.

    Programs of a save in the background do not make the training loop wait.
    """

    def __init__(self, event: str):
        self.count = 0
        self._event = event
        self._thread = threading.get_ident()

    def __enter__(self) -> EventCounter:
        jax.monitoring.register_event_duration_secs_listener(self._record)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        jax.monitoring.unregister_event_duration_listener(self._record)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, nothing counts."""
        count = self.count
        yield
        self.count = count

    def _record(self, event: str, duration: float, **_: object) -> None:
        self.count += event == self._event and threading.get_ident() == self._thread


def peak_bytes() -> int:
    """Largest resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if not status.is_file():  # not Linux: what is in use now
        return psutil.Process().memory_info().rss
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def peak_device_bytes() -> int:
    """Largest use of memory of any local accelerator so far; 0 where the backend does not say."""
    used = [device.memory_stats() or {} for device in jax.local_devices()]
    return max(stats.get("peak_bytes_in_use", 0) for stats in used)


def device_bytes() -> dict[str, float]:
    """Memory of the fullest local accelerator, for the metrics; nothing where there is none."""
    used = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    if not used:
        return {}
    return {
        f"device_{name}": float(max(stats.get(key, 0) for stats in used))
        for name, key in (("bytes", "bytes_in_use"), ("peak_bytes", "peak_bytes_in_use"))
    }
