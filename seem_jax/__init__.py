"""SEEM in JAX. `Predictor` and `VideoPredictor` are the way in for those who want masks."""

from typing import Any

__all__ = ["Predictor", "VideoPredictor"]


def __getattr__(name: str) -> Any:
    """The predictors at their first use: training and data preparation need not load them."""
    if name == "Predictor":
        from seem_jax.predictor import Predictor

        return Predictor
    if name == "VideoPredictor":
        from seem_jax.video import VideoPredictor

        return VideoPredictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
