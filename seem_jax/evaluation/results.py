"""Results sample by sample in a JSONL file: a killed evaluation goes on, hosts share their work.

A run writes `<task>.part<host>.jsonl`, whose first line says what was evaluated, and the whole as
`<task>.jsonl` when the task is done. The parts stay until all tasks of the run are done; those of a
killed run with the same first line are taken up.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from seem_jax import processes

MEET_SECONDS = 7200.0  # hosts finish their shares of a task at different times
Result = dict[str, Any]  # of one sample; "sample" is its number in the split


class Store:
    """The results of one task in a folder; `done` holds what was found of an earlier run."""

    def __init__(self, folder: Path, task: str, header: dict[str, Any]):
        process, total = jax.process_index(), jax.process_count()
        names = [folder / f"{task}.part{number}.jsonl" for number in range(total)]
        self.final, self.part = folder / f"{task}.jsonl", names[process]
        self.header = header
        folder.mkdir(parents=True, exist_ok=True)
        parts = sorted(folder.glob(f"{task}.part*.jsonl"))
        found = [result for path in parts for result in _same_run(path, header)]
        # Of all hosts, since each may have a disk of its own; and all have read before one writes.
        self.done = {result["sample"]: result for result in _gather(found)}
        self.own = list(self.done.values()) if process == 0 else []
        self.new = 0  # results that this run has added
        temporary = self.part.with_name(self.part.name + ".tmp")
        self._file = temporary.open("w")
        self._write([header, *self.own])
        os.replace(temporary, self.part)  # a kill before this leaves the old parts
        processes.meet(f"{task}: parts written", MEET_SECONDS)
        for path in set(parts) - set(names):  # there were more hosts
            path.unlink(missing_ok=True)

    def add(self, results: Sequence[Result]) -> None:
        """Stores some new results; they are on disk when this returns."""
        self.own += results
        self.new += len(results)
        self._write(results)

    def finish(self) -> list[Result]:
        """All results of all hosts in the order of the samples; writes the final file."""
        self._file.close()
        results = sorted(_gather(self.own), key=lambda result: result["sample"])
        samples = [result["sample"] for result in results]
        if len(set(samples)) != len(samples):
            raise ValueError(f"{self.final}: some samples were evaluated twice: {samples}.")
        if jax.process_index() == 0:
            temporary = self.final.with_name(self.final.name + ".tmp")
            temporary.write_text("".join(_line(entry) for entry in (self.header, *results)))
            os.replace(temporary, self.final)
        return results

    def forget(self) -> None:
        """Removes this host's part: no run will go on from it."""
        self.part.unlink()

    def _write(self, entries: Sequence[dict]) -> None:
        self._file.write("".join(_line(entry) for entry in entries))
        self._file.flush()
        os.fsync(self._file.fileno())


def read(path: Path) -> tuple[dict[str, Any], list[Result]]:
    """(header, results) of a file; a last line that a kill cut short is left out.

    Raises ValueError naming the line for any other damage.
    """
    lines, entries = path.read_text().split("\n"), []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines):  # a whole line ends with a line break
                break
            raise ValueError(f"{path}, line {number} is no JSON: {line[:80]!r}.") from error
    if not entries:
        return {}, []
    return entries[0], entries[1:]


def _same_run(path: Path, header: dict[str, Any]) -> list[Result]:
    found, results = read(path)
    return results if found == json.loads(_line(header)) else []


def _line(entry: dict) -> str:
    return json.dumps(_plain(entry)) + "\n"


def _plain(value: Any) -> Any:
    """As JSON can hold it: NumPy numbers as Python's, what is not finite as null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _gather(results: list[Result]) -> list[Result]:
    """The results of all hosts, each as JSON gives it back, so that one host reads what many do."""
    texts = processes.gather("results", json.dumps(_plain(results)), MEET_SECONDS)
    return [result for text in texts for result in json.loads(text)]
