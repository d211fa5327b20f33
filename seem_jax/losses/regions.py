"""Auxiliary losses: the mean features of each true segment say its class and its phrases.

Not in the official recipe, which starts from trained encoders. From scratch, on small data, the
decoder's slots hear of shapes and colours too late: what they read of a segment by masked attention
is such a mean, so it is taught directly. No pixel has to know the whole shape for it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from seem_jax.kernels.mask_planes import dense
from seem_jax.losses.object import class_logits
from seem_jax.losses.text import MAX_SCALE, normalise
from seem_jax.types import Array, MaskRefs, Objects, Phrases


def region_means(features: Array, planes: Array, refs: MaskRefs) -> tuple[Array, Array]:
    """(float32 [B, M, D] mean of features [B, h, w, D] over each mask, bool [B, M] any pixel)."""
    inside = masks_at_centres(planes, refs, *features.shape[1:3]).astype(jnp.float32)
    area = inside.sum((2, 3))  # [B, M]
    total = jnp.einsum("bmhw,bhwd->bmd", inside, features.astype(jnp.float32))
    return total / jnp.maximum(area, 1.0)[..., None], area > 0


def class_loss(
    features: Array, planes: Array, objects: Objects, table: Array, logit_scale: Array
) -> Array:
    """Scalar cross-entropy of the segments' means against the class table [C, V], mean over segments.

    features are [B, h, w, V]; the last row of the table, "no object", takes no part.
    """
    _check_width(features, table)
    mean, seen = region_means(features, planes, objects.masks)
    named = jax.nn.log_softmax(class_logits(mean, table[:-1], logit_scale), axis=-1)
    label = jnp.where(seen, objects.label, 0)
    loss = -jnp.take_along_axis(named, label[..., None], axis=-1)[..., 0]
    return _mean(loss, seen)


def phrase_loss(
    features: Array,
    planes: Array,
    objects: Objects,
    phrases: Phrases,
    embedding: Array,
    logit_scale: Array,
) -> Array:
    """Scalar cross-entropy of each phrase over the segments of its image, mean over phrases.

    features are [B, h, w, V], embedding [B, G, V]. A phrase names, in equal parts, the segments of
    which its mask covers more than half; one that names none does not count.
    """
    _check_width(features, embedding)
    mean, seen = region_means(features, planes, objects.masks)  # [B, M, V]
    scale = jnp.minimum(jnp.exp(logit_scale), MAX_SCALE)
    logits = scale * jnp.einsum("bgv,bmv->bgm", normalise(embedding), normalise(mean))
    named = jax.nn.log_softmax(jnp.where(seen[:, None], logits, -1e9), axis=-1)
    size = features.shape[1:3]
    segment = masks_at_centres(planes, objects.masks, *size).astype(jnp.float32)
    phrase = masks_at_centres(planes, phrases.masks, *size).astype(jnp.float32)
    shared = jnp.einsum("bmhw,bghw->bgm", segment, phrase)
    wanted = (shared > 0.5 * segment.sum((2, 3))[:, None]).astype(jnp.float32)
    number = wanted.sum(-1)
    loss = -(wanted * named).sum(-1) / jnp.maximum(number, 1.0)  # [B, G]
    return _mean(loss, (number > 0) & phrases.masks.valid)


def masks_at_centres(planes: Array, refs: MaskRefs, height: int, width: int) -> Array:
    """bool [B, M, height, width], masks read at the centres of the cells of a coarser grid."""
    rows, columns = _centres(height, planes.shape[2]), _centres(width, planes.shape[3])
    return dense(planes[:, :, rows][:, :, :, columns], refs)


def _centres(coarse: int, fine: int) -> np.ndarray:
    """int64 [coarse], the fine pixel at the centre of each coarse one."""
    return ((np.arange(coarse) + 0.5) * fine / coarse).astype(np.int64)


def _mean(loss: Array, counted: Array) -> Array:
    counted = counted.astype(jnp.float32)
    return (loss * counted).sum() / jnp.maximum(counted.sum(), 1.0)


def _check_width(features: Array, names: Array) -> None:
    if features.shape[-1] != names.shape[-1]:
        raise ValueError(
            f"features of width {features.shape[-1]} cannot be compared with names of width "
            f"{names.shape[-1]}: make them equal, or set config.loss.region_class and "
            f"region_phrase to 0."
        )
