"""Times of a compiled program, beside those of a plain matrix product in the same run."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from seem_jax.training.utilisation import peak_tflops

SIDE = {"cpu": 1536, "gpu": 8192, "tpu": 8192}  # of the plain product: large enough for full speed


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much is measured."""

    seconds: float = 10.0  # for each figure
    batches: tuple[int, ...] = (1,)
    at_least: int = 3  # runs of each program, after the first, which does not count


def times(run: Callable[[], object], budget: Budget) -> np.ndarray:
    """Seconds of each of several runs, waiting for every one; the first is left out."""
    jax.block_until_ready(run())
    taken: list[float] = []
    while len(taken) < budget.at_least or sum(taken) < budget.seconds:
        begin = time.perf_counter()
        jax.block_until_ready(run())
        taken.append(time.perf_counter() - begin)
    return np.array(taken)


def figures(name: str, seconds: np.ndarray, flop: float, plain: float) -> dict[str, float]:
    """Milliseconds and rates of a program of `flop` operations; plain is GFLOP/s of a product."""
    p10, p50, p90, p95 = (1e3 * np.percentile(seconds, share) for share in (10, 50, 90, 95))
    rate = flop / 1e6 / p50  # GFLOP/s
    found = {
        f"{name}/p50_ms": p50,
        f"{name}/p95_ms": p95,
        f"{name}/spread_ms": p90 - p10,
        f"{name}/runs": len(seconds),
        f"{name}/gflop_per_second": rate,
        f"{name}/share_of_plain_product": rate / plain,
    }
    peak = peak_tflops(jax.devices()[0].device_kind)
    if peak:
        found[f"{name}/utilisation"] = rate / (1e3 * peak)
    return found


def plain_product(dtype: str, budget: Budget) -> float:
    """GFLOP/s of a square matrix product in this precision."""
    side = SIDE.get(jax.devices()[0].platform, 4096)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((side, side), np.float32), dtype)
    product = jax.jit(jnp.matmul)
    seconds = times(
        lambda: product(x, x), dataclasses.replace(budget, seconds=min(2, budget.seconds))
    )
    return 2 * side**3 / float(np.median(seconds)) / 1e9
