"""The predictor: images and prompts in, masks and names out."""

from seem_jax.predictor.decoding import EncodedImage
from seem_jax.predictor.predictor import Predictor
from seem_jax.predictor.prompts import MaskMemory, Prompts
from seem_jax.predictor.reference import Reference
from seem_jax.predictor.results import PanopticPrediction, Prediction, SemanticPrediction
from seem_jax.predictor.session import Session, SessionPool

__all__ = [
    "EncodedImage",
    "MaskMemory",
    "PanopticPrediction",
    "Prediction",
    "Predictor",
    "Prompts",
    "Reference",
    "SemanticPrediction",
    "Session",
    "SessionPool",
]
