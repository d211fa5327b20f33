"""A model as StableHLO programs and weights, to be run without this package."""

from seem_jax.export.folder import export_model

__all__ = ["export_model"]
