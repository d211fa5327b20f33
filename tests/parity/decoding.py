"""One run of the product's decoder with everything that the release can tell about its own.

The decoder is watched from outside (flax method interceptors), so that what is compared is the code
that users run. Where the file holds the release's attention masks, each layer is given those: a mask
logit at rounding distance of zero then changes nothing downstream, and the masks that our decoder
made by itself are compared bit by bit.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct

from seem_jax.config import NUM_LEVELS
from seem_jax.models.decoder.decoder import Decoder
from seem_jax.models.decoder.layer import DecoderLayer
from seem_jax.models.seem import class_logits, mask_logits
from seem_jax.postprocess import plan_resize, resize
from seem_jax.types import Features, Memory, Outputs, TextTokens, VisualPrompts, VisualTokens
from tests.parity.subject import PRECISION, Subject
from tests.parity.xdecoder import rules_for, seen_logits

MARGIN = 1e-3  # mask logits nearer to zero than this may fall on either side (README: attn_margin)


@struct.dataclass
class Inputs:
    """What a run is given besides the image."""

    text: TextTokens | None = None
    prompts: VisualPrompts | None = None
    memory: Memory | None = None
    query_index: jax.Array | None = None  # int32 [B, P * queries_per_prompt]
    memory_index: jax.Array | None = None  # int32 [layers, B, num_memory]


@struct.dataclass
class Trace:
    """A run: its outputs and what happened inside, lists over layers."""

    outputs: Outputs
    visual: VisualTokens | None
    negative: jax.Array | None  # [B, P, D], pooled like `visual.pooled`, at the negative points
    embedding: list  # [B, N, D], mask embeddings of all slots that look, before and after layers
    sees: list  # bool [B, N, S], the pixels that slots were given in each layer
    cross: list  # [B, N, D]
    self_: list  # [B, N + tokens, D], in the official order
    ffn: list


def run_decoder(
    subject: Subject,
    features: Features,
    inputs: Inputs,
    num_prompts: int = 0,
    blocked: list | None = None,
    flips: jax.Array | None = None,
) -> Trace:
    """The trace of a run; `blocked` are official attention masks bool [B, N, S] of each layer.

    `flips` are those of `replaced_masks`.
    """
    key = ("decoder", num_prompts)
    if key not in subject.jitted:
        rules = _as_it_is
        if subject.is_xdecoder:
            rules = rules_for(subject.config.decoder.num_object_queries)
        subject.jitted[key] = jax.jit(partial(_traced, subject.model, num_prompts, rules))
    with jax.default_matmul_precision(PRECISION):
        return subject.jitted[key](subject.params, features, inputs, blocked, flips)


def _as_it_is(call, args, kwargs, context):
    """The interceptor that changes nothing."""
    return call(*args, **kwargs)


def _traced(model, num_prompts, rules, params, features, inputs, blocked, flips) -> Trace:
    variables = {"params": params}
    encode = partial(model.apply, variables, features, method="encode_prompts")
    visual = negative = None
    if inputs.prompts is not None:
        visual = encode(inputs.prompts, num_prompts)
        swapped = inputs.prompts.replace(positive=~inputs.prompts.positive)
        negative = encode(swapped, num_prompts).pooled
    seen = {name: [] for name in ("embedding", "sees", "cross", "self", "ffn")}

    def watch(call, args, kwargs, context):
        module, method = context.module, context.method_name
        result = call(*args, **kwargs)
        if isinstance(module, DecoderLayer) and method in ("look", "read"):
            seen["cross" if method == "look" else "ffn"].append(result)
        elif isinstance(module, Decoder) and method == "predict":
            seen["embedding"].append(result[0])
        elif module.name == "self_norm" and method == "__call__":
            seen["self"].append(result)
        return result

    changed = replaced_masks(blocked, flips, seen["sees"])
    with (
        nn.intercept_methods(watch),
        nn.intercept_methods(changed),
        nn.intercept_methods(rules),
    ):
        outputs = model.apply(
            variables,
            features,
            inputs.text,
            visual,
            inputs.memory,
            every_layer=True,
            query_index=inputs.query_index,
            memory_index=inputs.memory_index,
            method="decode",
        )
    num_memory = 0 if inputs.memory is None else model.config.decoder.num_memory
    num_looking = seen["cross"][0].shape[1]

    def official_order(x, tokens):
        """Ours: object, text_query, visual_query, memory, text_token. Memory comes last there."""
        slots, memory = (
            x[:, : num_looking - num_memory],
            x[:, num_looking - num_memory : num_looking],
        )
        parts = [slots, x[:, num_looking:], *tokens, memory]
        return jnp.concatenate(parts, axis=1)

    own, ffn = [], []
    for i, (read, result) in enumerate(zip(seen["self"], seen["ffn"], strict=True)):
        tokens = ([], [])
        if visual is not None:
            tokens = _visual_tokens(model, params, visual, inputs.prompts, i)
        own.append(official_order(read, tokens[0]))
        ffn.append(official_order(result, tokens[1]))
    embedding = seen["embedding"]
    if num_memory:
        # The release predicts for memory too, which nothing but its counts of small logits shows.
        table = params["decoder"]["memory_features"]
        memory = [jnp.broadcast_to(table[None], (len(embedding[0]), *table.shape))]
        memory += [result[:, num_looking - num_memory : num_looking] for result in seen["ffn"]]
        said = [model.apply(variables, slots, method="answer")[0] for slots in memory]
        embedding = [jnp.concatenate(parts, axis=1) for parts in zip(embedding, said, strict=True)]
    return Trace(outputs, visual, negative, embedding, seen["sees"], seen["cross"], own, ffn)


def replaced_masks(blocked: list | None, flips: jax.Array | None, sees_of: list | None = None):
    """An interceptor under which each decoder layer sees other pixels than it would by itself.

    blocked are attention masks, bool [B, N, S] of each layer; official ones have no rows of memory, which
    sees the masks of the last round. flips, int32 [F, 4], are (layer, image, slot, pixel) of bits of
    our own masks to turn over; layer -1 is none. What each layer sees then is added to sees_of.
    """
    layers = iter(range(10**6))

    def change(call, args, kwargs, context):
        if not (isinstance(context.module, DecoderLayer) and context.method_name == "look"):
            return call(*args, **kwargs)
        *given, logits = args
        sees = logits >= 0
        i = next(layers)
        if blocked is not None:
            official = ~blocked[i][:, : sees.shape[1]]
            sees = jnp.concatenate([official, sees[:, official.shape[1] :]], axis=1)
        if flips is not None:
            here, places = flips[:, 0] == i, tuple(flips[:, 1:].T)
            sees = sees ^ jnp.zeros(sees.shape, bool).at[places].max(here, mode="drop")
        if sees_of is not None:
            sees_of.append(sees)
        return call(*given, jnp.where(sees, 1.0, -1.0), **kwargs)

    return change


def _visual_tokens(model, params, visual, prompts, i):
    """What the visual tokens become in layer i, ([B, K, D],) after reading and after the layer.

    Nothing depends on it, so the decoder leaves it out. In v1 the padding reads itself.
    """
    tokens = visual.levels[i % NUM_LEVELS]
    nothing = params["decoder"]["sign_embedding"][1][None, None]
    tokens = tokens - jnp.where(visual.valid[..., None], 0.0, nothing)  # padding has no sign there
    reads = visual.prompt[:, :, None] == visual.prompt[:, None, :]
    if model.config.decoder.empty_pooled == 0:  # v0 and demo
        reads = reads & visual.valid[:, :, None]
    read = []

    def watch(call, args, kwargs, context):
        result = call(*args, **kwargs)
        if context.module.name == "self_norm":
            read.append(result)
        return result

    with nn.intercept_methods(watch):
        layer = model.bind({"params": params}).decoder.layers[i]
        result = layer.read(tokens, tokens, tokens, tokens, reads)
    return read, [result]


@dataclasses.dataclass(frozen=True)
class Run:
    """A run and what of its surroundings the comparison needs."""

    subject: Subject
    features: Features
    trace: Trace
    tolerance: float
    followed: bool  # the official attention masks
    flips: jax.Array | None = None  # bits turned over, where the file has no masks
    note: str = ""

    @property
    def num_layers(self) -> int:
        return self.subject.config.decoder.num_layers

    def prediction(self, name: str) -> int:
        """The index of prediction "0" ... "final"."""
        return self.num_layers if name == "final" else int(name)

    def masks(self, embedding):
        """Mask logits float32 [B, N, h, w] of embeddings [B, N, D]."""
        with jax.default_matmul_precision(PRECISION):
            return mask_logits(embedding, self.features)

    def classes(self, embedding):
        """Class logits float32 [B, N, C] of class embeddings [B, N, V]."""
        with jax.default_matmul_precision(PRECISION):
            scale = self.subject.params["logit_scale"]
            return class_logits(embedding, self.subject.table, scale)

    def attention_logits(self, i: int) -> np.ndarray:
        """The mask logits [B, N, S] that prediction i gives at the level of layer i."""
        with jax.default_matmul_precision(PRECISION):
            small = self.features.mask_levels[i % NUM_LEVELS]
            logits = jnp.einsum("bnd,bsd->bns", self.trace.embedding[i], small)
        return np.asarray(self.official_slots(logits))

    def seen_logits(self, i: int) -> np.ndarray:
        """Those of `attention_logits` under which layer i looks at the image."""
        logits = self.attention_logits(i)
        if self.joined:
            logits = np.asarray(seen_logits(logits, self.subject.config.decoder.num_object_queries))
        return logits

    @property
    def joined(self) -> bool:
        """X-Decoder with phrases: its predictions hold object queries and those for phrases in a row."""
        return self.subject.is_xdecoder and self.trace.outputs.text is not None

    def official_slots(self, x):
        """x [B, N, ...] without the last query for phrases, which X-Decoder does not have."""
        if not self.joined:
            return x
        extra = 2 * self.subject.config.decoder.num_object_queries - 1
        return jnp.delete(x, extra, axis=1)

    def objects(self, name: str, index: int):
        """Embeddings [B, N, D] that the official predictions of objects are made from."""
        found = getattr(self.trace.outputs.object, name)[index]
        if self.joined:
            found = jnp.concatenate([found, getattr(self.trace.outputs.text, name)[index]], axis=1)
        return self.official_slots(found)

    def resized(self, image_size: np.ndarray, size: tuple[int, int]):
        """Final mask logits [Q, H, W] of the objects of the first image, enlarged, cut and resized."""
        masks = self.masks(self.trace.outputs.object.mask_embedding[-1][:1])  # [1, Q, h, w]
        padded = tuple(4 * n for n in masks.shape[-2:])
        plan = plan_resize(image_size[None], [tuple(size)], masks.shape[-2:], padded)
        return resize(masks, plan)[0, :, : size[0], : size[1]]

    def chosen(self):
        """Mask logits [B, P, h, w] of the slot that answers each prompt."""
        slots, choice = (
            self.trace.outputs.visual.mask_embedding[-1],
            self.trace.outputs.visual_choice,
        )
        return self.masks(jnp.take_along_axis(slots, choice[:, :, None], axis=1))

    def predicted(self, kind: str, index: int):
        """Prediction `index` under its official name."""
        outputs, visual = self.trace.outputs, self.trace.visual
        match kind:
            case "logits":
                return self.classes(self.objects("class_embedding", index))
            case "captions":
                return self.objects("class_embedding", index)
            case "masks":
                return self.masks(self.objects("mask_embedding", index))
            case "maskembs":
                return self.objects("mask_embedding", index)
            case "gmasks":
                return self.masks(outputs.text.mask_embedding[index])
            case "gtexts":
                return outputs.text.class_embedding[index]
            case "smasks":
                return self.masks(outputs.visual.mask_embedding[index])
            case "stexts":
                return outputs.visual.class_embedding[index]
            case "smaskembs":
                return outputs.visual.mask_embedding[index]
            case "pspatials":
                return visual.pooled
            case "nspatials":
                return self.trace.negative
        raise ValueError(f"no prediction is called pred_{kind}")
