"""How much of a device's peak the useful work of training takes.

Useful work is what the recipe needs with the exact rewrites and without recomputation, so a slower
program cannot look better by doing more: `train_step/gflop_per_image` of
`python -m seem_jax.benchmark --suite=operations`, given to the run as config.useful_gflop_per_image.
"""

from __future__ import annotations

import jax

from seem_jax.config import Config

# Dense bfloat16 operations per second and device, from the makers' data sheets (TPU: of a chip).
PEAK_TFLOPS = {
    "TPU v4": 275.0,
    "TPU v5 lite": 197.0,
    "TPU v5e": 197.0,
    "TPU v5": 459.0,
    "TPU v5p": 459.0,
    "TPU v6 lite": 918.0,
    "TPU v6e": 918.0,
    "NVIDIA A100": 312.0,
    "NVIDIA H100": 989.0,
    "NVIDIA H200": 989.0,
    "NVIDIA B200": 2250.0,
}


def figures(config: Config, steps_per_second: float) -> dict[str, float]:
    """useful_tflops, of all devices a second, and utilisation, 0 to 1, where the peak is known."""
    if not config.useful_gflop_per_image:
        return {}
    done = config.useful_gflop_per_image * config.data.batch_size * steps_per_second / 1e3
    peak = peak_tflops(jax.devices()[0].device_kind)
    out = {"useful_tflops": done}
    if peak:
        out["utilisation"] = done / (peak * jax.device_count())
    return out


def peak_tflops(device_kind: str) -> float | None:
    """The peak of a kind of device; None where this table does not know it (every CPU)."""
    fits = [name for name in PEAK_TFLOPS if device_kind.startswith(name)]
    return PEAK_TFLOPS[max(fits, key=len)] if fits else None
