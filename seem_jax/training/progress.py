"""Means of the metrics between two lines of the log, and the watch over their being finite."""

from __future__ import annotations

import time
from datetime import timedelta

import jax
import numpy as np

from seem_jax import processes
from seem_jax.config import Config
from seem_jax.training import utilisation
from seem_jax.training.ledger import device_bytes, peak_bytes


class NotFiniteError(FloatingPointError):
    """A step was not finite and the run does not simply go on. `step` is its number."""

    def __init__(self, step: int, message: str):
        super().__init__(message)
        self.step = step


class Progress:
    """Collects what steps say.

    Metrics stay on the device until a later step runs, so that looking at them does not stop it: a bad
    step, which changed nothing, is reported while the next one runs.
    """

    def __init__(self, config: Config):
        self.config = config
        self._in_a_row = 0
        self.restart()

    def restart(self) -> None:
        """Forgets what it has, and starts the clock of rates."""
        self.waited = 0.0
        self.skipped = 0
        self._begin = time.perf_counter()
        self._pending: list[tuple[int, np.ndarray, dict]] = []
        self._seen: list[dict[str, float]] = []

    def leave_out(self, seconds: float) -> None:
        """Takes time that was no training out of the rates."""
        self._begin += seconds

    def add(self, step: int, sample_id: np.ndarray, metrics: dict) -> None:
        self._pending.append((step, sample_id, metrics))

    def busy(self) -> bool:
        """Whether the device still computes a step."""
        return bool(self._pending) and not self._pending[-1][2]["loss"].is_ready()

    def check(self, *, all_steps: bool) -> None:
        """Looks at the steps so far, except the newest unless all_steps; waits for them.

        Raises NotFiniteError for a bad step, or with config.faults.not_finite = "skip" for one too many in
        a row; those before are said and counted.
        """
        keep = 0 if all_steps else 1
        while len(self._pending) > keep:
            step, sample_id, metrics = self._pending.pop(0)
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
            if values.pop("finite"):
                self._seen.append(values)
                self._in_a_row = 0
            else:
                self._bad(step, not_finite(step, sample_id, values, self.config))

    def _bad(self, step: int, message: str) -> None:
        self.skipped += 1
        self._in_a_row += 1
        faults = self.config.faults
        if faults.not_finite != "skip":
            raise NotFiniteError(step, message)
        if self._in_a_row > faults.max_not_finite:
            raise NotFiniteError(
                step,
                f"{message} {self._in_a_row} steps in a row were skipped, config.faults."
                f"max_not_finite = {faults.max_not_finite}: the weights or the optimizer's state are "
                "bad themselves. Start again from an earlier checkpoint.",
            )
        print(f"skipped: {message}", flush=True)

    def take(self) -> dict[str, float]:
        """Means since the last call, each over the steps that have it, with rates."""
        seconds = time.perf_counter() - self._begin
        names = dict.fromkeys(name for values in self._seen for name in values)
        means = {
            name: float(np.mean([values[name] for values in self._seen if name in values]))
            for name in names
        }
        rate = (len(self._seen) + self.skipped) / seconds
        means |= {
            "steps_per_second": rate,
            "data_wait_share": self.waited / seconds,
            "not_finite_steps": float(self.skipped),
            "peak_bytes": float(peak_bytes()),
            **device_bytes(),
            **utilisation.figures(self.config, rate),
        }
        self.restart()
        return means


def not_finite(step: int, sample_id: np.ndarray, values: dict, config: Config) -> str:
    """The message for a step whose loss, gradient or update is NaN or infinite."""
    terms = [name for name, value in values.items() if not np.isfinite(value)]
    where = f" (those of process {processes.number()})" if processes.several() else ""
    return (
        f"step {step}: {', '.join(sorted(terms))} not finite; records {sample_id.tolist()}{where} of "
        f"{', '.join(config.data.train)}. The step was not applied, and the last good checkpoint "
        f"in {config.workdir}/checkpoints is kept. Look at these records; if they are sound, a "
        "lower config.optimizer.learning_rate or clip_norm helps."
    )


def progress_line(step: int, num_steps: int, values: dict[str, float]) -> str:
    """One line for a person: how far, how fast, how long still, and how well."""
    rate = values["steps_per_second"]
    left = timedelta(seconds=round((num_steps - step) / max(rate, 1e-9)))
    terms: dict[str, list[str]] = {}
    for name in (name for name in values if "/" in name):
        group, kind = name.split("/")
        terms.setdefault(group, []).append(f"{kind} {values[name]:.2f}")
    parts = " | ".join(f"{group} {' '.join(kinds)}" for group, kinds in terms.items())
    return (
        f"step {step}/{num_steps}  {rate:.2f} steps/s  {left} left"
        f"  loss {values.get('loss', float('nan')):.2f}"
        f"  [{parts}]  data wait {100 * values['data_wait_share']:.0f}%"
        f"  {values['peak_bytes'] / 2**30:.1f} GiB"
    )
