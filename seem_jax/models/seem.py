"""SEEM: four functions that share parameters. Wiring only; the parts are in the folders beside.

    features = encode_image(images)                        once per image
    tokens, sentence = encode_text(ids, valid)             once per vocabulary or phrase
    visual = encode_prompts(features, drawn points)        on this image or another one
    outputs = decode(features, text, visual, memory)       every round

Zou et al., NeurIPS 2023, arXiv 2304.06718. Which prompts are present is a static property of the
call (`None` or arrays); any subset works.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn

from seem_jax.config import ModelConfig
from seem_jax.kernels.pixel_products import products_with_pixels
from seem_jax.models.backbones import backbone
from seem_jax.models.decoder.decoder import Decoder
from seem_jax.models.decoder.rules import TABLES
from seem_jax.models.language.text_encoder import TextEncoder, pool
from seem_jax.models.pixel_decoders import pixel_decoder
from seem_jax.models.prompts.text import text_tokens
from seem_jax.nn.blocks import fan_in_normal
from seem_jax.types import (
    Features,
    KeptTokens,
    Memory,
    Outputs,
    TextTokens,
    VisualPrompts,
    VisualTokens,
)

__all__ = [
    "SEEM",
    "build",
    "class_logits",
    "initialise",
    "mask_logits",
    "remember",
    "text_tokens",
]


class SEEM(nn.Module):
    """With scan_layers the decoder's layers are a loop, which compiles sooner (`Decoder`)."""

    config: ModelConfig
    scan_layers: bool = False

    def setup(self):
        config = self.config
        dtype = jnp.dtype(config.dtype)
        self.backbone = backbone(config.backbone, dtype)
        self.pixel_decoder = pixel_decoder(config.pixel_decoder, dtype)
        self.text = TextEncoder(config.text, dtype)
        self.decoder = Decoder(
            config.decoder, config.text.projection, config.attention, dtype, self.scan_layers
        )
        init = nn.with_logical_partitioning(fan_in_normal, ("embed", None))
        shape = (config.text.width, config.text.projection)
        self.text_projection = self.param("text_projection", init, shape)
        scale = nn.initializers.constant(config.text.logit_scale)
        self.logit_scale = self.param("logit_scale", scale, ())

    def encode_image(self, images, drop_path_key=None) -> Features:
        """Features of images [B, H, W, 3], RGB 0 to 255 (uint8 or float); H, W multiples of 32.

        With drop_path_key the backbone drops paths at random (training).
        """
        if images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"images have shape {images.shape}; expected [B, H, W, 3].")
        mean = jnp.asarray(self.config.pixel_mean, jnp.float32)
        std = jnp.asarray(self.config.pixel_std, jnp.float32)
        normalised = (images.astype(jnp.float32) - mean[None, None, None]) / std[None, None, None]
        return self.encode_normalised(normalised, drop_path_key)

    def encode_normalised(self, images, drop_path_key=None) -> Features:
        """`encode_image` of images whose mean and deviation were taken out already."""
        return self.decoder.prepare(*self.maps(images, drop_path_key))

    def maps(self, images, drop_path_key=None):
        """(mask features, levels coarse to fine) of normalised images: backbone and pixel decoder."""
        stages = self.backbone(images.astype(jnp.dtype(self.config.dtype)), drop_path_key)
        return self.pixel_decoder(stages)

    def encode_text(self, token_ids, token_valid):
        """(tokens [N, J, V], sentence [N, V]) of int32 ids [N, J]; neither is normalised."""
        hidden = self.text(token_ids, token_valid)
        tokens = hidden @ self.text_projection.astype(hidden.dtype)
        return tokens, pool(tokens, token_valid, self.config.text.pooling)

    def encode_prompts(
        self, features: Features, prompts: VisualPrompts, num_prompts: int, located=None
    ) -> VisualTokens:
        """Tokens of drawn points, read from the features of the image they were drawn on.

        In a decoder with explicit positions the tokens also say where on it, but for prompts that
        located, bool [B, num_prompts], leaves out: those meant for other images. None: all of them.
        """
        return self.decoder.read_points(features, prompts, num_prompts, located)

    def keep_prompts(
        self, features: Features, prompts: VisualPrompts, num_prompts: int
    ) -> KeptTokens:
        """The same tokens for the many rounds of a session without text, read and projected once;
        each prompt has equally many points, one prompt after the other."""
        return self.decoder.keep_points(features, prompts, num_prompts)

    def decode(
        self,
        features: Features,
        text: TextTokens | None = None,
        visual: VisualTokens | KeptTokens | None = None,
        memory: Memory | None = None,
        *,
        objects: bool = True,
        every_layer: bool = False,
        query_index=None,
        memory_index=None,
    ) -> Outputs:
        """Masks and names, as embeddings, for the object queries and whatever prompts are given.

        query_index int32 [B, P * queries_per_prompt] says which object queries the visual slots
        copy, memory_index int32 [layers, B, num_memory] which prompt each memory slot serves; both
        are drawn at random in the official release and fixed here when None. `every_layer` gives the
        predictions before the first and after each layer, else only the last. Raises ValueError
        when nothing is asked for.
        """
        return self.decoder(
            features,
            text,
            visual,
            memory,
            objects=objects,
            every_layer=every_layer,
            query_index=query_index,
            memory_index=memory_index,
        )

    def answer(self, slots):
        """(mask embedding [B, N, D], class embedding [B, N, V]) of slots [B, N, D], by the heads."""
        return self.decoder.predict(slots)

    def everything(self, images, token_ids, token_valid, prompts: VisualPrompts):
        """Touches every parameter once, on one image with one phrase and one prompt: for `init`."""
        features = self.encode_image(images)
        tokens, _ = self.encode_text(token_ids, token_valid)
        yes = jnp.ones((1, 1), bool)
        text = text_tokens(tokens[None], token_valid[None], yes, jnp.zeros((1, 1), jnp.int32))
        visual = self.encode_prompts(features, prompts, 1)
        memory = None
        if "memory" in TABLES[self.config.decoder.rules]:
            memory = Memory(mask_embedding=visual.pooled, valid=yes)
        return self.decode(features, text, visual, memory), self.logit_scale


def build(config: ModelConfig) -> SEEM:
    """The model of a configuration; holds no parameters."""
    return SEEM(config)


def initialise(model: SEEM, key):
    """Fresh parameters, boxed with their logical axes (`nn.unbox` frees them)."""
    images = jnp.zeros((1, 64, 64, 3), jnp.uint8)
    ids = jnp.ones((1, 2), jnp.int32)
    prompts = VisualPrompts(
        points=jnp.zeros((1, 1, 2), jnp.float32),
        prompt=jnp.zeros((1, 1), jnp.int32),
        positive=jnp.ones((1, 1), bool),
        valid=jnp.ones((1, 1), bool),
    )
    valid = jnp.ones((1, 2), bool)
    return model.init(key, images, ids, valid, prompts, method="everything")["params"]


def class_logits(class_embedding, table, logit_scale):
    """float32 [..., C]: scaled cosine similarity of [..., V] with the rows of a normalised table.

    Official compute_similarity (vlpencoder.py); the scale is not clamped there.
    """
    embedding = class_embedding.astype(jnp.float32)
    norm = jnp.sqrt(jnp.square(embedding).sum(-1, keepdims=True))
    return jnp.exp(logit_scale) * ((embedding / (norm + 1e-7)) @ table.T)


def remember(outputs: Outputs, visual: VisualTokens | KeptTokens) -> Memory:
    """What the last round answered: the chosen mask of each visual prompt."""
    chosen = jnp.take_along_axis(
        outputs.visual.mask_embedding[-1], outputs.visual_choice[:, :, None], axis=1
    )
    return Memory(mask_embedding=chosen, valid=visual.prompt_valid)


def mask_logits(mask_embedding, features: Features):
    """float32 [..., B, N, h, w] at stride 4, of mask embeddings [..., B, N, D]."""
    return products_with_pixels(mask_embedding, features.mask)
