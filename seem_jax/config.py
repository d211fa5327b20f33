"""The whole configuration as dataclasses: every field once, with type, default and unit.

Files in ``configs/`` start from `Config()` and state only what differs. The dataclasses stay
unfrozen because the flag parser assigns to them; `validate` is called once by every entry point.
"""

# No `from __future__ import annotations` here: config_flags reads the types of the fields, not strings.
import dataclasses
import importlib.util
import json
from pathlib import Path


@dataclasses.dataclass
class BackboneConfig:
    """FocalNet (Yang et al. 2022). `depthwise` is the variant of the official Focal-T."""

    name: str = "focalnet"
    width: int = 96  # channels of the first stage; doubles at each stage
    depths: tuple[int, ...] = (2, 2, 6, 2)
    focal_levels: tuple[int, ...] = (3, 3, 3, 3)
    focal_windows: tuple[int, ...] = (3, 3, 3, 3)  # pixels, first level; grows by 2 a level
    mlp_ratio: float = 4.0
    depthwise: bool = True  # two extra depthwise 3x3 convolutions in each block
    layer_scale: bool = True
    layer_scale_init: float = 1e-4  # start value of the layer scales (official 1e-4)
    drop_path: float = 0.3  # stochastic depth at the last block, in training


@dataclasses.dataclass
class PixelDecoderConfig:
    """Transformer encoder on the coarsest map, then a feature pyramid."""

    name: str = "fpn"
    width: int = 512
    num_layers: int = 6
    num_heads: int = 8
    mlp_width: int = 2048
    num_groups: int = 32  # of the group normalisation


@dataclasses.dataclass
class TextConfig:
    """Text encoder. `pooling` "end" reads the end token, "mean" averages the words."""

    vocab_size: int = 49408
    context_length: int = 77
    width: int = 512
    num_layers: int = 12
    num_heads: int = 8
    projection: int = 512  # width V of the text space
    pooling: str = "end"
    causal: bool = True
    logit_scale: float = 1.0  # start of the learned log temperature of names (officially 1)
    token_deviation: float = 0.02  # of the token embeddings at the start


@dataclasses.dataclass
class DecoderConfig:
    """SEEM decoder. `rules` names a table of decoder/rules.py."""

    width: int = 512
    num_layers: int = 9
    num_heads: int = 8
    mlp_width: int = 2048
    num_object_queries: int = 101
    num_memory: int = 32
    queries_per_prompt: int = 3
    rules: str = "official"  # "official" or "composed"


@dataclasses.dataclass
class ModelConfig:
    backbone: BackboneConfig = dataclasses.field(default_factory=BackboneConfig)
    pixel_decoder: PixelDecoderConfig = dataclasses.field(default_factory=PixelDecoderConfig)
    text: TextConfig = dataclasses.field(default_factory=TextConfig)
    decoder: DecoderConfig = dataclasses.field(default_factory=DecoderConfig)
    pixel_mean: tuple[float, ...] = (123.675, 116.28, 103.53)  # RGB, 0 to 255
    pixel_std: tuple[float, ...] = (58.395, 57.12, 57.375)
    dtype: str = "float32"  # of activations and matrix products; parameters stay float32
    attention: str = ""  # implementation of masked attention; "" lets kernels choose


@dataclasses.dataclass
class DataConfig:
    """Where the records are and how an image becomes a training example."""

    root: str = "data/shapes/records"  # folder that holds the converted data sets
    train: tuple[str, ...] = ("shapes_panoptic:train",)  # "data set:split"
    weights: tuple[float, ...] = (1.0,)
    panoptic_eval: str = "shapes_panoptic:val"
    referring_eval: str = "shapes_referring:val"
    referring_unseen_eval: str = "shapes_referring:unseen"  # "" where there is none
    interactive_eval: str = "shapes_panoptic:val"
    tokenizer: str = "data/shapes/records/tokenizer.model"
    image_size: int = 1024  # pixels, square training crop
    min_scale: float = 0.1  # large-scale jitter
    max_scale: float = 2.0
    flip: bool = True
    max_objects: int = 100  # M; further segments are dropped smallest first, and counted
    num_planes: int = 2  # R; plane 0 is the index map, the others hold overlapping masks
    max_phrases: int = 4  # G
    max_phrase_tokens: int = 77  # J
    max_prompts: int = 10  # P
    max_points: int = 512  # K of the first drawings of an image
    prompt_kinds: tuple[str, ...] = ("point", "polygon", "scribble", "circle")
    phrase_prompt_probability: float = 0.0  # chance that a phrase comes with a drawn prompt
    batch_size: int = 16  # all hosts together
    seed: int = 0
    num_workers: int = 0  # processes; 0 reads in threads
    num_threads: int = 2
    prefetch: int = 8  # batches


@dataclasses.dataclass
class LossConfig:
    """Weights of the official focalt_unicl_lang_v1.yaml."""

    object_class: float = 2.0
    object_bce: float = 5.0
    object_dice: float = 5.0
    text_class: float = 0.4
    text_bce: float = 1.0
    text_dice: float = 1.0
    visual_class: float = 0.4
    visual_bce: float = 1.0
    visual_dice: float = 1.0
    cost_class: float = 2.0  # of the matching, all branches
    cost_bce: float = 5.0
    cost_dice: float = 5.0
    no_object: float = 0.1  # weight of the "no object" class
    sentence_weight: float = 2.0  # text_class of sentences
    class_name_weight: float = 0.5  # text_class of class names
    num_points: int = 12544
    oversample: float = 3.0
    importance: float = 0.75  # share of the points taken where the mask is least certain
    deep_supervision: bool = True
    dense_class: float = 0.0  # per-pixel class loss on the mask features; 0 officially
    dense_thing_weight: float = 5.0  # weight of thing pixels in it


@dataclasses.dataclass
class OptimizerConfig:
    """AdamW. Steps of the official schedule are shares of the whole run."""

    learning_rate: float = 1e-4
    schedule: str = "multistep"  # "multistep" (official) or "cosine"
    decay_at: tuple[float, ...] = (0.88889, 0.96296)
    decay_factor: float = 0.1
    final_share: float = 0.02  # last learning rate of "cosine", as a share
    warmup_steps: int = 10
    weight_decay: float = 0.05  # not on norms and embeddings
    clip_norm: float = 5.0
    backbone_multiplier: float = 0.1
    text_multiplier: float = 0.1
    frozen: tuple[str, ...] = ("backbone", "pixel_decoder", "text")
    beta2: float = 0.999


@dataclasses.dataclass
class MeshConfig:
    """Devices along each axis; -1 takes what is left."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


@dataclasses.dataclass
class EvaluationConfig:
    every: int = 0  # steps; 0: only at the end
    batch_size: int = 8
    image_size: int = 0  # square bucket in pixels; 0 takes data.image_size
    max_images: int = 0  # 0: all
    max_clicks: int = 20
    object_threshold: float = 0.8
    overlap_threshold: float = 0.8
    num_pictures: int = 12  # rows of a picture sheet


@dataclasses.dataclass
class Config:
    name: str = "focalt"
    workdir: str = "runs/focalt"
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    num_steps: int = 100_000
    max_rounds: int = 5  # simulated interactive rounds without gradient: 0 to this, uniform
    seed: int = 0
    log_every: int = 50  # steps
    checkpoint_every: int = 1000  # steps
    keep_checkpoints: int = 3
    compile_cache: str = ".cache/jax"


def validate(config: Config) -> None:
    """Raises ValueError naming the field, the value and what would be right."""
    model, data = config.model, config.data

    def need(ok: bool, field: str, value: object, expected: str) -> None:
        if not ok:
            raise ValueError(f"config.{field} = {value!r}: expected {expected}.")

    for part, width, heads in (
        ("decoder", model.decoder.width, model.decoder.num_heads),
        ("pixel_decoder", model.pixel_decoder.width, model.pixel_decoder.num_heads),
        ("text", model.text.width, model.text.num_heads),
    ):
        need(width % heads == 0, f"model.{part}.width", width, f"a multiple of num_heads = {heads}")
        need(width % 4 == 0, f"model.{part}.width", width, "a multiple of 4 (sine positions)")
    need(
        model.pixel_decoder.width == model.decoder.width,
        "model.pixel_decoder.width",
        model.pixel_decoder.width,
        f"model.decoder.width = {model.decoder.width}",
    )
    need(
        model.pixel_decoder.width % model.pixel_decoder.num_groups == 0,
        "model.pixel_decoder.num_groups",
        model.pixel_decoder.num_groups,
        f"a divisor of the width {model.pixel_decoder.width}",
    )
    need(
        model.text.projection == model.decoder.width,
        "model.text.projection",
        model.text.projection,
        f"model.decoder.width = {model.decoder.width}: text tokens are decoder slots",
    )
    need(
        model.text.pooling in ("end", "mean"),
        "model.text.pooling",
        model.text.pooling,
        '"end" or "mean"',
    )
    need(
        model.decoder.rules in ("official", "composed"),
        "model.decoder.rules",
        model.decoder.rules,
        '"official" or "composed"',
    )
    need(
        model.dtype in ("float32", "bfloat16"),
        "model.dtype",
        model.dtype,
        '"float32" or "bfloat16"',
    )
    need(data.image_size % 32 == 0, "data.image_size", data.image_size, "a multiple of 32")
    need(data.max_objects <= 255, "data.max_objects", data.max_objects, "at most 255")
    need(
        data.max_phrase_tokens <= model.text.context_length,
        "data.max_phrase_tokens",
        data.max_phrase_tokens,
        f"at most model.text.context_length = {model.text.context_length}",
    )
    need(
        len(data.train) == len(data.weights),
        "data.weights",
        data.weights,
        f"one weight for each of data.train = {data.train}",
    )
    kinds = {"point", "polygon", "scribble", "circle", "box"}
    need(
        set(data.prompt_kinds) <= kinds,
        "data.prompt_kinds",
        data.prompt_kinds,
        f"names of {sorted(kinds)}",
    )
    need(
        config.optimizer.schedule in ("multistep", "cosine"),
        "optimizer.schedule",
        config.optimizer.schedule,
        '"multistep" or "cosine"',
    )
    for field in ("num_steps", "log_every", "checkpoint_every", "keep_checkpoints"):
        need(getattr(config, field) > 0, field, getattr(config, field), "a positive number")
    need(config.max_rounds >= 0, "max_rounds", config.max_rounds, "0 or more")


def load_config(path: str | Path) -> Config:
    """The configuration of a file in configs/, validated. For code and tests; flags use config_flags."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no configuration file {str(path)!r}; those at hand are in configs/.")
    spec = importlib.util.spec_from_file_location(f"seem_jax_config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    validate(config)
    return config


def to_json(config: Config) -> str:
    """The configuration as JSON text, for the work folder and the checkpoints."""
    return json.dumps(dataclasses.asdict(config), indent=2, sort_keys=True)


def from_json(text: str) -> Config:
    """The configuration that `to_json` wrote. An unknown or missing field is a ValueError naming it."""
    return _build(Config, json.loads(text), "config")


def _build(kind: type, values: dict, where: str):
    fields = {field.name: field for field in dataclasses.fields(kind)}
    unknown = sorted(set(values) - set(fields))
    missing = sorted(set(fields) - set(values))
    if unknown or missing:
        raise ValueError(
            f"{where}: unknown fields {unknown}, missing fields {missing}; written by another version?"
        )
    default = kind()
    out = {}
    for name, value in values.items():
        current = getattr(default, name)
        if dataclasses.is_dataclass(current):
            value = _build(type(current), value, f"{where}.{name}")
        elif isinstance(current, tuple):
            value = tuple(value)
        out[name] = value
    return kind(**out)
