"""From the raw answers of one question to the masks that a caller asked for."""

from __future__ import annotations

import jax
import numpy as np

from seem_jax.predictor import everything
from seem_jax.predictor.decoding import EncodedImage, Reply
from seem_jax.predictor.naming import Naming
from seem_jax.predictor.prompts import MaskMemory
from seem_jax.predictor.results import Prediction


def select(
    image: EncodedImage,
    reply: Reply,
    naming: Naming,
    vocabulary: tuple[str, ...],
    top_k: int,
    threshold: float,
) -> Prediction:
    """The top_k best answers of each phrase with scores from threshold on, at the original size.

    With a vocabulary each mask has a name.
    """
    chosen = []
    for answer in reply.answers:
        good = np.flatnonzero(answer.valid & (answer.score >= threshold))[:top_k]
        chosen.append(jax.tree.map(lambda array, good=good: array[good], answer))
    score, quality, logits, embedding = (
        np.concatenate([getattr(part, name) for part in chosen])
        for name in ("score", "quality", "logits", "embedding")
    )
    masks = np.zeros((len(score), *image.size), bool)
    for index, low in enumerate(logits):
        masks[index] = everything.enlarge(low, image.placement) > 0
    labels = np.full(len(score), -1, np.int32)
    probabilities = np.zeros((len(score), 0), np.float32)
    if vocabulary:
        probabilities = naming.of_masks(image, logits, vocabulary)
        labels = probabilities.argmax(-1).astype(np.int32)
    counts = [len(part.score) for part in chosen]
    return Prediction(
        masks=masks,
        scores=score,
        quality=quality,
        texts=tuple(text for text, n in zip(reply.texts, counts, strict=True) for _ in range(n)),
        logits=logits,
        memories=tuple(MaskMemory(row) for row in embedding),
        classes=vocabulary,
        labels=labels,
        probabilities=probabilities,
        dropped_points=reply.dropped,
    )
