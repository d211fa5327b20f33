"""The names of the official release and ours, as one table; arrays change layout on the way.

The table is read in both directions, so that converting there and back gives the same bits.
Official names are those of the model's own state dict (`backbone.`, `sem_seg_head.`). A row names a
module of either side and the kind of its arrays; `{i}` and `{j}` stand for numbers.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable

import numpy as np

State = dict[str, np.ndarray]  # official name -> array, torch layouts


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One official array and the arrays of ours that it becomes, in order."""

    official: str
    ours: tuple[str, ...]
    forward: Callable[[np.ndarray], list[np.ndarray]]
    backward: Callable[[list[np.ndarray]], np.ndarray]


def _same(official: str, ours: str) -> Leaf:
    return Leaf(official, (ours,), lambda x: [x], lambda parts: parts[0])


def _transposed(official: str, ours: str) -> Leaf:
    """Torch linear [out, in] is our [in, out]."""
    return Leaf(official, (ours,), lambda x: [x.T], lambda parts: parts[0].T)


QKV = ("query", "key", "value")
KINDS: dict[str, tuple[Leaf, ...]] = {
    "array": (_same("", ""),),
    "table": (_same(".weight", ""),),
    "norm": (_same(".weight", "/scale"), _same(".bias", "/bias")),
    "linear": (_transposed(".weight", "/kernel"), _same(".bias", "/bias")),
    "conv": (
        Leaf(  # OIHW is our HWIO; a depthwise [C, 1, k, k] becomes [k, k, 1, C]
            ".weight",
            ("/kernel",),
            lambda x: [x.transpose(2, 3, 1, 0)],
            lambda parts: parts[0].transpose(3, 2, 0, 1),
        ),
        _same(".bias", "/bias"),
    ),
    "pointwise": (  # a 1x1 convolution is our dense layer
        Leaf(
            ".weight",
            ("/kernel",),
            lambda x: [x[:, :, 0, 0].T],
            lambda parts: parts[0].T[:, :, None, None],
        ),
        _same(".bias", "/bias"),
    ),
    "attention": (
        Leaf(  # torch packs the three projections as [3D, D]
            ".in_proj_weight",
            tuple(f"/{name}/kernel" for name in QKV),
            lambda x: [part.T for part in np.split(x, 3)],
            lambda parts: np.concatenate([part.T for part in parts]),
        ),
        Leaf(
            ".in_proj_bias",
            tuple(f"/{name}/bias" for name in QKV),
            lambda x: np.split(x, 3),
            np.concatenate,
        ),
        _transposed(".out_proj.weight", "/out/kernel"),
        _same(".out_proj.bias", "/out/bias"),
    ),
}

BACKBONE = "backbone."
BLOCK, OUR_BLOCK = "backbone.layers.{i}.blocks.{j}.", "backbone/stage_{i}_block_{j}/"
PIXEL, OUR_PIXEL = "sem_seg_head.pixel_decoder.", "pixel_decoder/"
ENCODER, OUR_ENCODER = PIXEL + "transformer.encoder.layers.{i}.", OUR_PIXEL + "encoder/layer_{i}/"
HEAD = "sem_seg_head.predictor."
TEXT = HEAD + "lang_encoder.lang_encoder."
TEXT_LAYER = TEXT + "resblocks.{i}."
SELF = HEAD + "transformer_self_attention_layers.{i}."
CROSS = HEAD + "transformer_cross_attention_layers.{i}."
FFN = HEAD + "transformer_ffn_layers.{i}."

TABLE: tuple[tuple[str, str, str], ...] = (  # official module, our module, kind
    (BACKBONE + "patch_embed.proj", "backbone/embed_0", "conv"),
    (BACKBONE + "patch_embed.norm", "backbone/embed_norm_0", "norm"),
    *((BACKBONE + f"layers.{k}.downsample.proj", f"backbone/embed_{k + 1}", "conv") for k in range(3)),
    *(
        (BACKBONE + f"layers.{k}.downsample.norm", f"backbone/embed_norm_{k + 1}", "norm")
        for k in range(3)
    ),
    (BACKBONE + "norm{i}", "backbone/norm_{i}", "norm"),
    (BLOCK + "gamma_1", OUR_BLOCK + "layer_scale_0", "array"),
    (BLOCK + "gamma_2", OUR_BLOCK + "layer_scale_1", "array"),
    (BLOCK + "dw1", OUR_BLOCK + "depthwise_0", "conv"),
    (BLOCK + "dw2", OUR_BLOCK + "depthwise_1", "conv"),
    (BLOCK + "norm1", OUR_BLOCK + "norm_0", "norm"),
    (BLOCK + "norm2", OUR_BLOCK + "norm_1", "norm"),
    (BLOCK + "modulation.f", OUR_BLOCK + "modulation/project_in", "linear"),
    (BLOCK + "modulation.h", OUR_BLOCK + "modulation/modulator", "pointwise"),
    (BLOCK + "modulation.proj", OUR_BLOCK + "modulation/project_out", "linear"),
    (BLOCK + "modulation.focal_layers.{k}.0", OUR_BLOCK + "modulation/focal_{k}", "conv"),
    (BLOCK + "mlp.fc1", OUR_BLOCK + "feed_forward/dense_0", "linear"),
    (BLOCK + "mlp.fc2", OUR_BLOCK + "feed_forward/dense_1", "linear"),
    (PIXEL + "input_proj", OUR_PIXEL + "input_projection", "pointwise"),
    (PIXEL + "mask_features", OUR_PIXEL + "mask_features", "conv"),
    (PIXEL + "adapter_{i}", OUR_PIXEL + "lateral_{i}", "pointwise"),
    (PIXEL + "adapter_{i}.norm", OUR_PIXEL + "lateral_norm_{i}", "norm"),
    (PIXEL + "layer_{i}", OUR_PIXEL + "output_{i}", "conv"),
    (PIXEL + "layer_{i}.norm", OUR_PIXEL + "output_norm_{i}", "norm"),
    (ENCODER + "self_attn", OUR_ENCODER + "attention", "attention"),
    (ENCODER + "linear1", OUR_ENCODER + "feed_forward/dense_0", "linear"),
    (ENCODER + "linear2", OUR_ENCODER + "feed_forward/dense_1", "linear"),
    (ENCODER + "norm1", OUR_ENCODER + "attention_norm", "norm"),
    (ENCODER + "norm2", OUR_ENCODER + "feed_forward_norm", "norm"),
    (TEXT + "token_embedding", "text/token_embedding", "table"),
    (TEXT + "positional_embedding", "text/position_embedding", "array"),
    (TEXT + "ln_final", "text/norm", "norm"),
    (TEXT_LAYER + "attn", "text/layer_{i}/attention", "attention"),
    (TEXT_LAYER + "ln_1", "text/layer_{i}/attention_norm", "norm"),
    (TEXT_LAYER + "ln_2", "text/layer_{i}/feed_forward_norm", "norm"),
    (TEXT_LAYER + "mlp.c_fc", "text/layer_{i}/feed_forward/dense_0", "linear"),
    (TEXT_LAYER + "mlp.c_proj", "text/layer_{i}/feed_forward/dense_1", "linear"),
    (HEAD + "lang_encoder.lang_proj", "text_projection", "array"),
    (HEAD + "lang_encoder.logit_scale", "logit_scale", "array"),
    (HEAD + "query_feat", "decoder/query_features", "table"),
    (HEAD + "query_embed", "decoder/query_positions", "table"),
    (HEAD + "level_embed", "decoder/level_embedding", "table"),
    (HEAD + "class_embed", "decoder/class_embedding", "array"),
    (HEAD + "decoder_norm", "decoder/norm", "norm"),
    (HEAD + "mask_embed.layers.{i}", "decoder/mask_mlp/dense_{i}", "linear"),
    (HEAD + "mask_sptial_embed.{i}", "decoder/point_projection_{i}", "array"),
    (HEAD + "spatial_featured", "decoder/memory_features", "table"),
    (HEAD + "spatial_embed", "decoder/memory_positions", "table"),
    (HEAD + "pn_indicator", "decoder/sign_embedding", "table"),
    (CROSS + "multihead_attn", "decoder/layer_{i}/cross_attention", "attention"),
    (CROSS + "norm", "decoder/layer_{i}/cross_norm", "norm"),
    (SELF + "self_attn", "decoder/layer_{i}/self_attention", "attention"),
    (SELF + "norm", "decoder/layer_{i}/self_norm", "norm"),
    (FFN + "linear1", "decoder/layer_{i}/feed_forward/dense_0", "linear"),
    (FFN + "linear2", "decoder/layer_{i}/feed_forward/dense_1", "linear"),
    (FFN + "norm", "decoder/layer_{i}/feed_forward_norm", "norm"),
)

# Computed from the configuration, so not converted.
BUFFERS = frozenset(
    ("dilation_kernel", "criterion.empty_weight", HEAD + "self_attn_mask")
)


def convert_state(state: State, shapes: dict) -> dict:
    """Our parameters, a nested dict, from an official state dict.

    `shapes` is the expected tree of ShapeDtypeStructs (or arrays); arrays get its dtypes. Raises
    ValueError listing every official name that no row of the table knows or no parameter expects,
    every parameter left without a value and every shape that differs. Buffers are skipped.
    """
    wanted = flatten(shapes)
    given, unknown = {}, []
    for name, array in state.items():
        if name in BUFFERS:
            continue
        found = _find(name)
        if found is None:
            unknown.append(name)
            continue
        leaf, paths = found
        if any(path not in wanted for path in paths):
            unknown.append(name)
            continue
        given.update(zip(paths, leaf.forward(np.asarray(array)), strict=True))
    problems = [f"not expected by the model: {name}" for name in sorted(unknown)]
    problems += [f"missing for the model: {path}" for path in sorted(set(wanted) - set(given))]
    problems += [
        f"{path} has shape {value.shape}, expected {tuple(wanted[path].shape)}"
        for path, value in sorted(given.items())
        if value.shape != tuple(wanted[path].shape)
    ]
    if problems:
        raise ValueError(
            f"the checkpoint does not fit the configuration ({len(problems)} differences); choose "
            "the configuration it was trained with:\n  " + "\n  ".join(problems)
        )
    return unflatten(
        {path: np.ascontiguousarray(given[path], wanted[path].dtype) for path in wanted}
    )
