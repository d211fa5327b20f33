"""Which official model a state dict belongs to, from the names and shapes that tell them apart."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping

import numpy as np

from seem_jax.config import RELEASES, BackboneConfig, Config, as_released
from seem_jax.convert.rules import HEAD, XDECODER_ONLY

PATCHES, STEM, POSITIONS = (
    f"backbone.{name}" for name in ("patch_embed.proj.weight", "convs.0.proj.weight", "pos_embed")
)
VARIANTS = (  # an array and its shape, the model, the file in configs/
    (PATCHES, (96, 3, 7, 7), "Focal-T", "focalt"),
    (PATCHES, (192, 3, 7, 7), "Focal-L", "focall"),
    (STEM, (128, 3, 7, 7), "DaViT-d3", "davitd3"),
    (STEM, (256, 3, 7, 7), "DaViT-d5", "davitd5"),
    (POSITIONS, (1, 64, 64, 768), "SAM-ViT-B", "samvitb"),
    (POSITIONS, (1, 64, 64, 1024), "SAM-ViT-L", "samvitl"),
)
EMPTY_WEIGHT = "criterion.empty_weight"
WORDS = HEAD + "lang_encoder.lang_encoder.token_embedding.weight"


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a file looks like."""

    family: str  # "SEEM", "X-Decoder" or "" for neither
    variant: str  # "Focal-T" ..., or "" for none of the release
    config: str  # name of its file in configs/, or ""
    release: str  # "v0 or v1", which are alike, or "demo"

    @property
    def is_demo(self) -> bool:
        return self.family == "SEEM" and self.release == "demo"

    def __str__(self) -> str:
        release = f" ({self.release})" if self.family == "SEEM" else ""
        return f"{self.family} {self.variant or 'of no official size'}{release}"


def recognise(state: Mapping[str, np.ndarray]) -> Kind:
    """The official model that names and shapes point to. v0 and v1 have the same arrays."""
    variant, config = "", ""
    for name, shape, label, file in VARIANTS:
        if name in state and state[name].shape == shape:
            variant, config = label, file
    family = ""
    if any(name in state for name in XDECODER_ONLY):
        family = "X-Decoder"
    elif any(name.startswith(HEAD) for name in state):
        family = "SEEM"
    return Kind(family, variant, config, "v0 or v1" if EMPTY_WEIGHT in state else "demo")


def release_of(config: Config) -> str | None:
    """The official version that the decoder of a configuration follows; None for another one."""
    decoder = config.model.decoder
    return next((name for name in RELEASES if as_released(decoder, name) == decoder), None)


def check(kind: Kind, state: Mapping[str, np.ndarray], config: Config) -> None:
    """ValueError when the file is no SEEM or X-Decoder model, or has another vocabulary."""
    if not kind.family:
        raise ValueError(
            f"no weights of SEEM or X-Decoder: its {len(state)} tensors have names like "
            f"{sorted(state)[:3]}, and none begins with {HEAD!r}"
        )
    words = config.model.text.vocab_size
    if WORDS in state and state[WORDS].ndim and len(state[WORDS]) != words:
        raise ValueError(
            f"its vocabulary has {len(state[WORDS])} words, but config.model.text.vocab_size = "
            f"{words}: give the configuration and the tokenizer that the weights were trained with"
        )


def other_config(kind: Kind, config: Config) -> str | None:
    """The file in configs/ that a file of this kind needs, or None if `config` is like it."""
    if not kind.config:
        return None
    official = importlib.import_module(f"configs.{kind.config}").get_config()
    same = _built(official.model.backbone) == _built(config.model.backbone)
    return None if same else f"configs/{kind.config}.py"


def _built(backbone: BackboneConfig) -> BackboneConfig:
    """Without the values that no shape depends on."""
    return dataclasses.replace(backbone, drop_path=0.0, layer_scale_init=0.0)
