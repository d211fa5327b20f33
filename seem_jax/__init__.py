"""SEEM in JAX. `seem_jax.Predictor` is the way in for those who want masks."""

from typing import Any

__all__ = ["Predictor"]


def __getattr__(name: str) -> Any:
    """`Predictor` at its first use: training and data preparation need not load it."""
    if name == "Predictor":
        from seem_jax.predictor import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
