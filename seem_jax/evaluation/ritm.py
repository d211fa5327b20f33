"""The simulated user of RITM and SimpleClick (Sofiiuk et al. 2022): one object, original pixels."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from seem_jax.kernels.bit_planes import count
from seem_jax.kernels.distance_transform import squared_euclidean_distance

IGNORE = -1  # truth value that counts nowhere
THRESHOLD = 0.49  # probability above which a pixel is the object
TARGET_IOU = 0.9  # an object is done from here on


def next_click(predicted, truth, clicked):
    """Where the object is most wrong: (row, column, positive), int32 and bool [...].

    predicted bool, truth int8 (1 object, 0 not, -1 ignored) and clicked bool are [..., H, W]. Of
    the missing and of the wrong pixels the deepest is found by the exact Euclidean distance, with
    the image border as outside; the click is positive where the missing one lies strictly deeper.
    Pixels clicked before are no candidates, but stay part of their region. The first pixel in
    row-major order wins; with nothing wrong the click is negative at pixel (0, 0), as the owner's.
    """
    counted = truth != IGNORE
    missing = (truth == 1) & ~predicted & counted
    wrong = (truth != 1) & predicted & counted
    free = ~clicked
    deep, far = (jnp.where(free, squared_euclidean_distance(r), 0) for r in (missing, wrong))
    positive = deep.max((-2, -1)) > far.max((-2, -1))
    depth = jnp.where(positive[..., None, None], deep, far)
    place = jnp.argmax(depth.reshape(*depth.shape[:-2], -1), axis=-1).astype(jnp.int32)
    return place // depth.shape[-1], place % depth.shape[-1], positive


def iou(predicted, truth) -> jax.Array:
    """float32 [...], IoU of bool and int8 maps [..., H, W] without the ignored pixels."""
    counted, true = truth != IGNORE, truth == 1
    shared, union = count(predicted & true & counted), count((predicted | true) & counted)
    return shared.astype(jnp.float32) / union.astype(jnp.float32)
