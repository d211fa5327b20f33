"""Where the time of a run went, over all its starts: WORKDIR/goodput.jsonl and its summary.

Every moment belongs to one kind, so the kinds add up to the wall time from the first start on:

    productive  the device computes steps that count (what overlaps with that costs nothing)
    compile     building the programs of the training step
    data        the device waits for a batch
    checkpoint  the device waits for a checkpoint: its copy, a save before it, the last one
    evaluation  scoring, between steps and at the end
    lost        steps that were taken again after a kill, or undone by a roll back
    idle        no process was running
    start       imports, opening data, making or restoring the state
    overhead    the device waits for the rest of the loop: feeding, logging

Work of the host (data, feeding, saves) costs nothing where the device is still at a step when it ends: that
time is productive. Where the device is not, all of it counts as the host's, also what a step overlapped with.

Lines: {"event": "start" or "roll back", "step": the step from which it goes on, "time": Unix time} and
{"step", "from", "to", "seconds": {kind: seconds}}. A process that is killed loses its last line, at
most ROW_SECONDS or one step, which then counts as idle.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from seem_jax import processes

KINDS = (
    "productive",
    "compile",
    "data",
    "checkpoint",
    "evaluation",
    "lost",
    "idle",
    "start",
    "overhead",
)
FILE = "goodput.jsonl"
ROW_SECONDS = 10.0


class Clock:
    """Adds up the seconds of the main thread by kind, from `began` on. Process 0 writes them.

    began is a Unix time; None takes the beginning of this process.
    """

    def __init__(self, workdir: str | Path, began: float | None = None):
        self._path = Path(workdir) / FILE if processes.number() == 0 else None
        if self._path is not None and self._path.is_file():
            _end_last_line(self._path)
        self._kind = "start"
        self._seconds = dict.fromkeys(KINDS, 0.0)
        self._offset = time.time() - time.monotonic()  # from here on the monotonic clock decides
        began = psutil.Process().create_time() if began is None else began
        # Known to a second only, and another machine may go on: no moment must count twice.
        began = max(began, _written_until(self._path))
        self._since = self._row_from = began - self._offset

    def goes_on(self, event: str, step: int) -> None:
        """Notes that the run continues from `step`: lines of work beyond it, if any, are lost.

        A roll back writes the line of that work, by `row`, before it calls this.
        """
        self._write({"event": event, "step": step, "time": self._row_from + self._offset})

    @contextlib.contextmanager
    def spend(self, kind: str, busy: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """The time inside is of this kind; where the device is still `busy` at its end, productive."""
        before = self._switch(kind)
        try:
            yield
        finally:
            self._switch(before, "productive" if busy() else kind)

    def stays(self, kind: str) -> None:
        """From here on, time outside of `spend` is of this kind."""
        self._switch(kind)

    def row(self, step: int, *, every: float = 0.0) -> None:
        """Writes what came since the last line, unless that is less than `every` seconds ago."""
        self._switch(self._kind)
        if self._since - self._row_from < every:
            return
        seconds = {kind: round(value, 6) for kind, value in self._seconds.items() if value}
        self._write(
            {
                "step": step,
                "from": self._row_from + self._offset,
                "to": self._since + self._offset,
                "seconds": seconds,
            }
        )
        self._seconds = dict.fromkeys(KINDS, 0.0)
        self._row_from = self._since

    def _switch(self, kind: str, book_as: str | None = None) -> str:
        now = time.monotonic()
        before = self._kind
        self._seconds[book_as or before] += now - self._since
        self._kind, self._since = kind, now
        return before

    def _write(self, line: dict) -> None:
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def summary(workdir: str | Path) -> dict[str, float]:
    """Seconds by kind over all starts so far, and "wall", from the first start to the last line."""
    lines = _lines(Path(workdir) / FILE)
    total = dict.fromkeys(KINDS, 0.0)
    steps: list[tuple[int, float]] = []  # productive seconds of the lines that still count
    until = None
    for line in lines:
        if "event" in line:
            lost = [entry for entry in steps if entry[0] > line["step"]]
            steps = [entry for entry in steps if entry[0] <= line["step"]]
            total["lost"] += sum(seconds for _, seconds in lost)
            if until is not None and line["event"] == "start":
                total["idle"] += max(line["time"] - until, 0.0)
            until = line["time"]
            continue
        for kind, seconds in line["seconds"].items():
            if kind == "productive":
                steps.append((line["step"], seconds))
            else:
                total[kind] += seconds
        until = line["to"]
    total["productive"] = sum(seconds for _, seconds in steps)
    begin = next((line["time"] for line in lines if "event" in line), 0.0)
    return total | {"wall": (until or begin) - begin}


def sentence(seconds: dict[str, float]) -> str:
    """One line for a person: the shares of the wall time, largest first."""
    wall = max(seconds["wall"], 1e-9)
    parts = sorted(((seconds[kind], kind) for kind in KINDS), reverse=True)
    shares = ", ".join(f"{kind} {100 * value / wall:.1f}%" for value, kind in parts if value > 0)
    return f"{seconds['wall']:.0f} s since the first start: {shares}"


def _end_last_line(path: Path) -> None:
    """A line that a kill cut short must not swallow the next one."""
    with path.open("rb+") as file:
        size = file.seek(0, 2)
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                file.write(b"\n")


def _written_until(path: Path | None) -> float:
    """The Unix time up to which a ledger says where the time went."""
    lines = [] if path is None else _lines(path)
    return max((line.get("to", line.get("time", 0.0)) for line in lines), default=0.0)


def _lines(path: Path) -> list[dict]:
    """The whole lines of a ledger; one that a kill cut short ends in nothing, not in an error."""
    if not path.is_file():
        return []
    found = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(text))
        except ValueError:
            continue
    return found
