"""Auxiliary losses: the mean features of each true segment answer for it, as a slot would.

Not in the official recipe, which starts from trained encoders. From scratch, on small data, the
decoder's slots hear of shapes and colours too late: what they read of a segment by masked attention
is such a mean. So it is taken for a slot, and the decoder's own heads must make of it the segment's
mask, its class and its phrases. No pixel has to know the whole shape for it; but pixels of twins
must differ, or else a slot, or a click, could not cut out one of them.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from seem_jax.config import REGION_TERMS, LossConfig
from seem_jax.kernels.mask_planes import dense
from seem_jax.losses import masks
from seem_jax.losses.object import class_logits
from seem_jax.losses.text import MAX_SCALE, normalise
from seem_jax.nn.positions import sine_positions
from seem_jax.types import Array, Batch, Features, MaskRefs, Objects, Phrases

Heads = Callable[[Array], tuple[Array, Array]]  # slots [B, N, D] -> mask and class embeddings


def region_terms(
    heads: Heads,
    features: Features,
    batch: Batch,
    table: Array,
    phrase_embedding: Array,
    logit_scale: Array,
    config: LossConfig,
    key: Array,
    *,
    positions: bool,
) -> dict[str, Array]:
    """The unweighted terms "region/class", "phrase", "bce" and "dice", each float32 [2 maps].

    positions says that mask features hold explicit positions: the means then do so too.

    The means are taken of the two finer levels, which slots look at; on the coarsest, small segments
    have no pixel. Empty when all weights in `config` are 0; table and phrase_embedding as in
    `losses.total_loss`.
    """
    if not any(getattr(config, f"region_{name}") > 0 for name in REGION_TERMS):
        return {}
    objects, values = batch.objects, []
    named = (objects, batch.phrases, phrase_embedding, logit_scale)
    for number, level in enumerate(features.levels[1:]):
        if positions:
            level = level + jnp.asarray(sine_positions(*level.shape[1:]), level.dtype)[None]
        mean, seen = region_means(level, batch.planes, objects.masks)
        mask_embedding, said = heads(mean)
        bce, dice, _ = masks.matched_losses(
            jax.random.fold_in(key, number),
            mask_embedding,
            features.mask,
            batch.planes,
            objects.masks,
            config,
        )
        values.append(
            {
                "region/class": class_loss(said, seen, objects, table, logit_scale),
                "region/phrase": phrase_loss(said, seen, batch.planes, level.shape[1:3], *named),
                "region/bce": _mean(bce, seen),
                "region/dice": _mean(dice, seen),
            }
        )
    return jax.tree.map(lambda *maps: jnp.stack(maps), *values)


def region_means(features: Array, planes: Array, refs: MaskRefs) -> tuple[Array, Array]:
    """(float32 [B, M, D] mean of features [B, h, w, D] over each mask, bool [B, M] any pixel)."""
    inside = masks_at_centres(planes, refs, *features.shape[1:3]).astype(jnp.float32)
    area = inside.sum((2, 3))  # [B, M]
    total = jnp.einsum("bmhw,bhwd->bmd", inside, features.astype(jnp.float32))
    return total / jnp.maximum(area, 1.0)[..., None], area > 0


def class_loss(
    said: Array, seen: Array, objects: Objects, table: Array, logit_scale: Array
) -> Array:
    """Scalar cross-entropy of class embeddings [B, M, V] against the class table [C, V].

    Mean over the segments that are seen, bool [B, M]; the last row of the table, "no object", takes no
    part.
    """
    named = jax.nn.log_softmax(class_logits(said, table[:-1], logit_scale), axis=-1)
    label = jnp.where(seen, objects.label, 0)
    loss = -jnp.take_along_axis(named, label[..., None], axis=-1)[..., 0]
    return _mean(loss, seen)


def phrase_loss(
    said: Array,
    seen: Array,
    planes: Array,
    size: tuple[int, int],
    objects: Objects,
    phrases: Phrases,
    embedding: Array,
    logit_scale: Array,
) -> Array:
    """Scalar cross-entropy of each phrase over the segments of its image, mean over phrases.

    said is [B, M, V], seen bool [B, M], embedding [B, G, V]; masks are compared at `size`. A phrase
    names, in equal parts, the segments of which its mask covers more than half; one that names none
    does not count.
    """
    scale = jnp.minimum(jnp.exp(logit_scale), MAX_SCALE)
    logits = scale * jnp.einsum("bgv,bmv->bgm", normalise(embedding), normalise(said))
    named = jax.nn.log_softmax(jnp.where(seen[:, None], logits, -1e9), axis=-1)
    segment = masks_at_centres(planes, objects.masks, *size).astype(jnp.float32)
    phrase = masks_at_centres(planes, phrases.masks, *size).astype(jnp.float32)
    shared = jnp.einsum("bmhw,bghw->bgm", segment, phrase)
    wanted = (shared > 0.5 * segment.sum((2, 3))[:, None]) & seen[:, None]
    wanted = wanted.astype(jnp.float32)
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
