"""Which of too many points stay: the same ones always, spread over all that was drawn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def thin(rows: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of the rows, in order; which ones depends on their number alone."""
    if len(rows) <= most:
        return rows
    # Not evenly spaced: a step equal to the width of a region would pick a single column.
    return rows[np.sort(np.random.default_rng(0).choice(len(rows), most, replace=False))]


def fair_shares(sizes: Sequence[int], budget: int) -> list[int]:
    """How many of each size to keep, at most `budget` in all: small ones whole, the rest alike."""
    out = [0] * len(sizes)
    order = sorted(range(len(sizes)), key=lambda index: sizes[index])
    for done, index in enumerate(order):
        out[index] = min(sizes[index], budget // (len(sizes) - done))
        budget -= out[index]
    return out
