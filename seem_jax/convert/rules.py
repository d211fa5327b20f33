"""The names of the official release and ours, as one table; arrays change layout on the way.

The table is read in both directions, so that converting there and back gives the same bits.
Official names are those of the model's own state dict (`backbone.`, `sem_seg_head.`). A row names a
module of either side and the kind of its arrays; `{i}` and `{j}` stand for numbers.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

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
            lambda x: [x.reshape(x.shape[:2]).T],
            lambda parts: parts[0].T[:, :, None, None],
        ),
        _same(".bias", "/bias"),
    ),
    "enlarging": (
        Leaf(  # of a transposed convolution: IOHW is our HWIO
            ".weight",
            ("/kernel",),
            lambda x: [x.transpose(2, 3, 0, 1)],
            lambda parts: parts[0].transpose(2, 3, 0, 1),
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
KINDS["packed"] = tuple(  # the same under the names that vision transformers use
    dataclasses.replace(leaf, official=name)
    for name, leaf in zip(
        (".qkv.weight", ".qkv.bias", ".proj.weight", ".proj.bias"), KINDS["attention"], strict=True
    )
)

BACKBONE = "backbone."
BLOCK, OUR_BLOCK = "backbone.layers.{i}.blocks.{j}.", "backbone/stage_{i}_block_{j}/"
PIXEL, OUR_PIXEL = "sem_seg_head.pixel_decoder.", "pixel_decoder/"
ENCODER, OUR_ENCODER = PIXEL + "transformer.encoder.layers.{i}.", OUR_PIXEL + "encoder/layer_{i}/"
DEFORMABLE, OUR_DEFORMABLE = ENCODER + "self_attn.", OUR_ENCODER + "deformable_attention/"
DAVIT, OUR_DAVIT = "backbone.blocks.{i}.{j}.", "backbone/stage_{i}_block_{j}/"
VIT, OUR_VIT = "backbone.blocks.{i}.", "backbone/block_{i}/"
NECK, OUR_NECK = "backbone.neck.down_", "backbone/stride_"
HEAD = "sem_seg_head.predictor."
TEXT = HEAD + "lang_encoder.lang_encoder."
TEXT_LAYER = TEXT + "resblocks.{i}."
SELF = HEAD + "transformer_self_attention_layers.{i}."
CROSS = HEAD + "transformer_cross_attention_layers.{i}."
FFN = HEAD + "transformer_ffn_layers.{i}."


def _davit(block: str, attention: str) -> tuple[tuple[str, str, str], ...]:
    """The rows of a block of DaViT: "spatial" (attention "window") or "channel" ("channel")."""
    theirs, ours = f"{DAVIT}{block}_block.", f"{OUR_DAVIT}{block}/"
    return (
        (theirs + "conv1.fn.dw", ours + "depthwise_0", "conv"),
        (theirs + f"{attention}_attn.norm", ours + "attention_norm", "norm"),
        (theirs + f"{attention}_attn.fn", ours + "attention", "packed"),
        (theirs + "conv2.fn.dw", ours + "depthwise_1", "conv"),
        (theirs + "ffn.norm", ours + "feed_forward_norm", "norm"),
        (theirs + "ffn.fn.net.fc1", ours + "feed_forward/dense_0", "linear"),
        (theirs + "ffn.fn.net.fc2", ours + "feed_forward/dense_1", "linear"),
    )


TABLE: tuple[tuple[str, str, str], ...] = (  # official module, our module, kind
    (BACKBONE + "patch_embed.proj", "backbone/embed_0", "conv"),
    (BACKBONE + "patch_embed.norm", "backbone/embed_norm_0", "norm"),
    *(
        (BACKBONE + f"layers.{k}.downsample.proj", f"backbone/embed_{k + 1}", "conv")
        for k in range(3)
    ),
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
    # DaViT
    (BACKBONE + "convs.{i}.proj", "backbone/patch_{i}", "conv"),
    (BACKBONE + "convs.{i}.norm", "backbone/patch_norm_{i}", "norm"),
    *_davit("spatial", "window"),
    *_davit("channel", "channel"),
    # SAM-ViT; patch_embed.proj stands above
    (BACKBONE + "pos_embed", "backbone/position_embedding", "array"),
    (VIT + "norm1", OUR_VIT + "attention_norm", "norm"),
    (VIT + "norm2", OUR_VIT + "feed_forward_norm", "norm"),
    (VIT + "attn", OUR_VIT + "attention", "packed"),
    (VIT + "attn.rel_pos_h", OUR_VIT + "attention/row_positions", "array"),
    (VIT + "attn.rel_pos_w", OUR_VIT + "attention/column_positions", "array"),
    (VIT + "mlp.lin1", OUR_VIT + "feed_forward/dense_0", "linear"),
    (VIT + "mlp.lin2", OUR_VIT + "feed_forward/dense_1", "linear"),
    (NECK + "4.0", OUR_NECK + "4_enlarge_0", "enlarging"),
    (NECK + "4.1", OUR_NECK + "4_norm_0", "norm"),
    (NECK + "4.3", OUR_NECK + "4_enlarge_1", "enlarging"),
    (NECK + "4.4", OUR_NECK + "4_norm_1", "norm"),
    (NECK + "4.5", OUR_NECK + "4_project", "pointwise"),
    (NECK + "4.6", OUR_NECK + "4_norm", "norm"),
    (NECK + "8.0", OUR_NECK + "8_enlarge_0", "enlarging"),
    (NECK + "8.1", OUR_NECK + "8_norm_0", "norm"),
    (NECK + "8.2", OUR_NECK + "8_project", "pointwise"),
    (NECK + "8.3", OUR_NECK + "8_norm", "norm"),
    (NECK + "16.0", OUR_NECK + "16_project", "pointwise"),
    (NECK + "16.1", OUR_NECK + "16_norm", "norm"),
    (NECK + "32.0", OUR_NECK + "32_shrink", "conv"),
    (NECK + "32.1", OUR_NECK + "32_norm_0", "norm"),
    (NECK + "32.2", OUR_NECK + "32_project", "pointwise"),
    (NECK + "32.3", OUR_NECK + "32_norm", "norm"),
    # Pixel decoders
    (PIXEL + "input_proj", OUR_PIXEL + "input_projection", "pointwise"),
    (PIXEL + "input_proj.{i}.0", OUR_PIXEL + "input_projection_{i}", "pointwise"),
    (PIXEL + "input_proj.{i}.1", OUR_PIXEL + "input_norm_{i}", "norm"),
    (PIXEL + "transformer.level_embed", OUR_PIXEL + "level_embedding", "array"),
    (PIXEL + "mask_features", OUR_PIXEL + "mask_features", "conv"),
    (PIXEL + "adapter_{i}", OUR_PIXEL + "lateral_{i}", "pointwise"),
    (PIXEL + "adapter_{i}.norm", OUR_PIXEL + "lateral_norm_{i}", "norm"),
    (PIXEL + "layer_{i}", OUR_PIXEL + "output_{i}", "conv"),
    (PIXEL + "layer_{i}.norm", OUR_PIXEL + "output_norm_{i}", "norm"),
    (ENCODER + "self_attn", OUR_ENCODER + "attention", "attention"),
    (DEFORMABLE + "sampling_offsets", OUR_DEFORMABLE + "offsets", "linear"),
    (DEFORMABLE + "attention_weights", OUR_DEFORMABLE + "weights", "linear"),
    (DEFORMABLE + "value_proj", OUR_DEFORMABLE + "value", "linear"),
    (DEFORMABLE + "output_proj", OUR_DEFORMABLE + "out", "linear"),
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
BUFFERS = frozenset(("dilation_kernel", "criterion.empty_weight", HEAD + "self_attn_mask"))
# For captions and retrieval, which SEEM does not have: an X-Decoder file has them in vain.
XDECODER_ONLY = frozenset(
    ("backbone_proj", HEAD + "caping_embed", HEAD + "pos_embed_caping.weight")
)
# Our parameters that X-Decoder lacks: they start anew when SEEM starts from X-Decoder.
SEEM_ONLY = frozenset(
    (
        *(f"decoder/point_projection_{level}" for level in range(3)),
        "decoder/memory_features",
        "decoder/memory_positions",
        "decoder/sign_embedding",
    )
)


def _compile(template: str) -> re.Pattern:
    """Matches a name whose `{i}` are numbers; the numbers are its groups."""
    return re.compile(re.sub(r"\\{(\w)\\}", r"(?P<\1>\\d+)", re.escape(template)))


def _rules() -> Iterator[tuple[Leaf, str, tuple[str, ...]]]:
    for official, ours, kind in TABLE:
        for leaf in KINDS[kind]:
            yield leaf, official + leaf.official, tuple(ours + part for part in leaf.ours)


RULES = tuple(_rules())
BY_OFFICIAL = [(_compile(official), leaf, ours) for leaf, official, ours in RULES]
BY_OURS = [(_compile(ours[0]), leaf, official, ours) for leaf, official, ours in RULES]


def convert_state(state: State, shapes: dict) -> dict:
    """Our parameters, a nested dict of NumPy arrays, from an official state dict; see `views`."""
    wanted = flatten_dict(shapes, sep="/")
    return unflatten_dict(
        {
            path: np.asarray(view, wanted[path].dtype, order="C")
            for path, view in views(state, shapes).items()
        },
        sep="/",
    )


def views(state: State, shapes: dict) -> dict[str, np.ndarray]:
    """Our parameters by path, in the order of `shapes`, as views of the arrays of an official state.

    `shapes` is the expected tree of ShapeDtypeStructs (or arrays). Nothing is copied and no number is
    read. Buffers are skipped. Raises ValueError listing every official name that the model does not
    expect, every parameter left without a value and every array of another shape.
    """
    wanted = flatten_dict(shapes, sep="/")
    given: State = {}
    problems = []
    for name, array in sorted(state.items()):
        if name in BUFFERS:
            continue
        leaf, paths = _find(name)
        if leaf is None or any(path not in wanted for path in paths):
            problems.append(f"not expected by the model: {name} {np.shape(array)}")
            continue
        try:
            parts = leaf.forward(np.asarray(array))
            fits = [part.shape for part in parts] == [tuple(wanted[path].shape) for path in paths]
        except ValueError:  # the axes themselves are others
            fits = False
        if not fits:
            expected = ", ".join(f"{path} {tuple(wanted[path].shape)}" for path in paths)
            problems.append(f"shape {np.shape(array)} of {name} does not fit {expected}")
        given.update(zip(paths, parts if fits else [None] * len(paths), strict=True))
    problems += [
        f"missing for the model: {path} {tuple(wanted[path].shape)}, officially {_official_name(path)}"
        for path in sorted(set(wanted) - set(given))
    ]
    if problems:
        raise ValueError(
            f"the official weights do not fit this model ({len(problems)} differences): the file is "
            "incomplete, was changed, or is of another configuration:\n  " + "\n  ".join(problems)
        )
    return {path: given[path] for path in wanted}


def official_state(params: dict) -> State:
    """The official state dict, without buffers, of our parameters: `convert_state` backwards.

    Raises ValueError listing the parameters that no row of the table knows.
    """
    left = flatten_dict(params, sep="/")
    state: State = {}
    for pattern, leaf, official, ours in BY_OURS:
        for match in filter(None, map(pattern.fullmatch, list(left))):
            paths = [path.format(**match.groupdict()) for path in ours]
            parts = [np.asarray(left.pop(path)) for path in paths]
            name = official.format(**match.groupdict())
            state[name] = np.asarray(leaf.backward(parts), order="C")
    if left:
        raise ValueError(f"parameters without an official name: {sorted(left)}.")
    return state


def _find(name: str) -> tuple[Leaf | None, list[str]]:
    """The rule of an official name and our paths; None when there is none."""
    for pattern, leaf, ours in BY_OFFICIAL:
        match = pattern.fullmatch(name)
        if match:
            return leaf, [path.format(**match.groupdict()) for path in ours]
    return None, []


def _official_name(path: str) -> str:
    """The official array that a parameter of ours comes from; "without a name" if no rule has one."""
    for _, official, ours in RULES:
        for part in ours:
            match = _compile(part).fullmatch(path)
            if match:
                return official.format(**match.groupdict())
    return "without a name"
