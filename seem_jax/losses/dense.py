"""Auxiliary loss: every pixel of the stride-4 mask features names its class.

Not in the official recipe. From scratch, on small data, thing classes hardly start without it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from seem_jax.kernels.mask_planes import dense
from seem_jax.losses.object import class_logits
from seem_jax.types import Array, Objects


def class_loss(
    mask_features: Array,
    planes: Array,
    objects: Objects,
    table: Array,
    logit_scale: Array,
    num_things: int,
    thing_weight: float,
) -> Array:
    """Scalar cross-entropy of the pixels of mask_features [B, h, w, D], weighted mean over the batch.

    The truth of a pixel is the label of the segment at its centre; where segments overlap, of the
    first; pixels of none do not count. Labels below num_things weigh thing_weight, others 1. The
    features are compared with the class table [C, D] (without "no object"), so D must equal V.
    """
    if mask_features.shape[-1] != table.shape[-1]:
        raise ValueError(
            f"mask features of width {mask_features.shape[-1]} cannot be compared with a class table "
            f"of width {table.shape[-1]}: make them equal, or set config.loss.dense_class = 0."
        )
    label, known = pixel_labels(planes, objects, *mask_features.shape[1:3])
    logits = class_logits(mask_features, table[:-1], logit_scale)  # [B, h, w, C - 1]
    named = jax.nn.log_softmax(logits, axis=-1)
    loss = -jnp.take_along_axis(named, label[..., None], axis=-1)[..., 0]
    weight = jnp.where(label < num_things, thing_weight, 1.0) * known.astype(jnp.float32)
    return (loss * weight).sum() / jnp.maximum(weight.sum(), 1e-6)


def pixel_labels(planes: Array, objects: Objects, height: int, width: int) -> tuple[Array, Array]:
    """(label int32, known bool) [B, height, width]: the class at the centres of a coarser grid."""
    rows = _centres(height, planes.shape[2])
    columns = _centres(width, planes.shape[3])
    small = planes[:, :, rows][:, :, :, columns]  # [B, R, h, w]
    inside = dense(small, objects.masks)  # [B, M, h, w]
    first = jnp.argmax(inside, axis=1).reshape(len(small), -1)
    label = jnp.take_along_axis(objects.label, first, axis=1)
    return label.reshape(-1, height, width), inside.any(1)


def _centres(coarse: int, fine: int) -> np.ndarray:
    """int64 [coarse], the fine pixel at the centre of each coarse one."""
    return ((np.arange(coarse) + 0.5) * fine / coarse).astype(np.int64)
