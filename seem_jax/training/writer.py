"""Numbers of a run, as JSON lines and as TensorBoard events. Only the first process writes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import jax
import tensorboardX


class Writer:
    """Appends to WORKDIR/metrics.jsonl and WORKDIR/tensorboard. A context manager.

    Each line is {"step": 100, "loss": 3.2, ...}. Lines beyond `step`, the step a run continues from,
    are dropped: their steps are going to be taken again.
    """

    def __init__(self, workdir: str | Path, step: int):
        self._lines = self._events = None
        if jax.process_index() != 0:
            return
        self._workdir = Path(workdir)
        self._workdir.mkdir(parents=True, exist_ok=True)
        self._open(step)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *error: object) -> None:
        if self._lines is not None:
            self._lines.close()
            self._events.close()

    def cut(self, step: int) -> None:
        """Drops what came after `step`, whose next steps are going to be taken again."""
        if self._lines is not None:
            self._lines.close()
            self._events.close()
            self._open(step)

    def _open(self, step: int) -> None:
        path = self._workdir / "metrics.jsonl"
        _cut(path, step)
        self._lines = path.open("a", encoding="utf-8")
        self._events = tensorboardX.SummaryWriter(
            str(self._workdir / "tensorboard"), purge_step=step + 1 if step else None
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if self._lines is None:
            return
        self._lines.write(json.dumps({"step": step, **values}) + "\n")
        self._lines.flush()
        for name, value in values.items():
            self._events.add_scalar(name, value, step)


def _cut(path: Path, step: int) -> None:
    """Keeps the lines up to `step`; a last line cut short by a kill goes too."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] > step:
                break
        except (ValueError, KeyError):
            break
        kept.append(line + "\n")
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)
