"""The typed contracts between the parts, and the axis glossary that every file uses.

Axes:
    B batch                 H, W image pixels         h, w pixels of a feature map (stride 4)
    S pixels of one level   L levels or layers        D decoder width
    A heads                 E width per head          V width of the text space
    N decoder slots         Q object queries          P drawn (visual) prompts of an image
    G phrases of an image   T text tokens             M ground-truth objects
    K points                C classes (the last one is "no object")
    R planes                J tokens of one sentence

Images are ``[B, H, W, 3]``. A point is ``(x, y)`` with ``x = column / W`` and ``y = row / H`` of its
pixel, so in ``[0, 1)``; boxes are ``(x0, y0, x1, y1)``. A mask that allows is True where it allows.
Padding always travels with a ``valid`` array. Every dataclass is a pytree; ``None`` is an absent part.
"""

from __future__ import annotations

from typing import Any

from flax import struct

Array = Any  # jax.Array, np.ndarray or jax.ShapeDtypeStruct: the shapes stand in the comments


@struct.dataclass
class MaskRefs:
    """Masks inside shared byte planes: mask m is ``planes[plane[m]] & select[m] == value[m]``.

    A segment of an index map has select 255 and value index; an overlapping mask is one bit of a
    plane (select == value == 1 << bit). So 255 segments, or 8 overlapping masks, cost one byte a pixel.
    """

    plane: Array  # int32 [B, M], index into the R planes
    select: Array  # uint8 [B, M]
    value: Array  # uint8 [B, M]
    valid: Array  # bool [B, M]; a mask that is not valid is empty


@struct.dataclass
class Objects:
    """The segments of an image (panoptic truth); crowds and padding are not among them."""

    masks: MaskRefs  # [B, M]
    label: Array  # int32 [B, M], contiguous class 0..C-2 (things first)


@struct.dataclass
class Phrases:
    """Referring sentences (or class names) with their masks."""

    token_ids: Array  # int32 [B, G, J], with begin and end tokens; padding is 0
    token_valid: Array  # bool [B, G, J]
    masks: MaskRefs  # [B, G]; masks.valid says which of the G phrases exist
    group: (
        Array  # int32 [B, G]; phrases of one image with equal text share a number (official: hash)
    )
    is_class: (
        Array  # bool [B]; True: the texts are class names (official mode "class"), else sentences
    )
    prompt: Array  # int32 [B, G]; the visual prompt drawn together with the phrase, or -1


@struct.dataclass
class VisualPrompts:
    """What was drawn, as points. A click is 3x3 pixels, so 9 points, as in the official release."""

    points: Array  # float32 [B, K, 2], (x, y) in [0, 1)
    prompt: Array  # int32 [B, K], which of the P prompts a point belongs to
    positive: Array  # bool [B, K], True "this object", False "not this"
    valid: Array  # bool [B, K]


@struct.dataclass
class Batch:
    """One training batch of static shapes, as the grain pipeline yields it (NumPy)."""

    sample_id: Array  # int32 [B], index of the record in its data set: names samples in errors
    image: Array  # uint8 [B, H, W, 3]; right and bottom are padding beyond image_size
    image_size: Array  # int32 [B, 2], (height, width) of the part that is not padding
    planes: Array  # uint8 [B, R, H, W]
    objects: Objects
    phrases: Phrases
    strokes: VisualPrompts  # the first drawing of each prompt
    prompt_masks: MaskRefs  # [B, P], the object meant by each visual prompt


@struct.dataclass
class Features:
    """Everything that `decode` needs of an image; computed once per image.

    Levels run from coarse (stride 32) to fine (stride 8). `keys` and `values` hold one entry per
    decoder layer: the projected pixels of level ``layer % 3`` (with scan_layers otherwise, see `Decoder`).
    """

    mask: Array  # [B, h, w, D], stride 4
    levels: tuple[Array, ...]  # [B, h_l, w_l, D] with the level embedding added
    mask_levels: tuple[Array, ...]  # [B, S_l, D]: `mask` resized to each level (linear, so exact)
    keys: tuple[Array, ...]  # [B, A, S_l, E]
    values: tuple[Array, ...]  # [B, A, S_l, E]


@struct.dataclass
class TextTokens:
    """The sentences of an image, token by token, in the text space."""

    tokens: Array  # float [B, T, V], not normalised
    valid: Array  # bool [B, T]
    prompt: Array  # int32 [B, T]: visual prompt given with the token's phrase, or -1


@struct.dataclass
class VisualTokens:
    """Drawn prompts read from the features of the image they were drawn on (maybe another image)."""

    levels: tuple[Array, ...]  # [B, K, D] per level, sign indicator added
    prompt: Array  # int32 [B, K]
    valid: Array  # bool [B, K]
    pooled: Array  # [B, P, D]: mean mask feature at the positive points (official: pspatial)
    prompt_valid: Array  # bool [B, P]


@struct.dataclass
class KeptTokens:
    """Drawn prompts as the decoder's self-attention reads them: projected once, read every round.

    Only the slots of a prompt read its tokens, so they lie by prompt, n rows each. A round of a
    session then neither reads the image at old points nor projects their tokens again, and no slot
    scores the tokens of other prompts.
    """

    keys: tuple[Array, ...]  # [B, A, P, n, E] per decoder layer
    values: tuple[Array, ...]  # [B, A, P, n, E]
    valid: Array  # bool [B, P, n]
    pooled: Array  # [B, P, D], as of VisualTokens
    count: Array  # float32 [B, P, 1], positive points in `pooled`
    prompt_valid: Array  # bool [B, P]


@struct.dataclass
class Memory:
    """What the last round answered, for each visual prompt."""

    mask_embedding: Array  # [B, P, D]; the mask is its product with the mask features
    valid: Array  # bool [B, P]


@struct.dataclass
class SlotOutputs:
    """Predictions of one group of slots. Leading axis L: the predictions asked for, in layer order
    (index 0 before the first layer ... -1 after the last; just the last unless every_layer)."""

    mask_embedding: Array  # [L, B, N, D]; mask logits = einsum with Features.mask
    class_embedding: Array  # [L, B, N, V]


@struct.dataclass
class Outputs:
    """What the decoder says, per group of slots; a group that was not asked for is None."""

    object: SlotOutputs | None  # N = Q
    text: SlotOutputs | None  # N = Q
    visual: SlotOutputs | None  # N = P * queries_per_prompt, prompts in order
    visual_choice: (
        Array | None
    )  # int32 [B, P]: the visual slot that answers each prompt (final layer)


@struct.dataclass
class ClassTable:
    """Embeddings of the class names; the last row is "no object"."""

    embedding: Array  # float32 [C, V], normalised
