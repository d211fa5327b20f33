"""The whole configuration as dataclasses: every field once, with type, default and unit.

Files in ``configs/`` start from `Config()` and state only what differs. The dataclasses stay
unfrozen because the flag parser assigns to them; `config_checks.validate` is called
once by every entry point; `config_files` reads and writes configurations.
"""

# No `from __future__ import annotations` here: config_flags reads the types of the fields, not strings.
import dataclasses


@dataclasses.dataclass
class BackboneConfig:
    """FocalNet (Yang et al. 2022), DaViT (Ding et al. 2022) or SAM's ViT (Kirillov et al. 2023).

    A field that names no backbone is used by all of them.
    """

    name: str = "focalnet"  # "focalnet", "davit" or "sam_vit"
    width: int = 96  # channels of the first stage; focalnet, davit: doubles at each stage
    depths: tuple[int, ...] = (2, 2, 6, 2)  # blocks of each stage; sam_vit has one stage
    mlp_ratio: float = 4.0
    drop_path: float = 0.3  # stochastic depth at the last block, in training
    size_divisor: int = 32  # images are padded to multiples of this, pixels
    focal_levels: tuple[int, ...] = (3, 3, 3, 3)  # focalnet
    focal_windows: tuple[int, ...] = (3, 3, 3, 3)  # focalnet: pixels, first level; + 2 a level
    depthwise: bool = True  # focalnet (as Focal-T): two depthwise 3x3 convolutions in each block
    layer_scale: bool = True  # focalnet
    layer_scale_init: float = 1e-4  # focalnet: start value of the layer scales (official 1e-4)
    head_width: int = 32  # davit, sam_vit: channels of an attention head
    window: int = 7  # davit, sam_vit: side of the attention windows, in pixels of the map
    patch_sizes: tuple[int, ...] = (7, 2, 2, 2)  # davit: kernels of the convolutions that shrink
    global_blocks: tuple[int, ...] = ()  # sam_vit: blocks whose window is the whole map
    position_size: int = 64  # sam_vit: side of the table of positions, in patches of 16 pixels
    pyramid_width: int = 128  # sam_vit: channels of its map of stride 4; doubles at each stride


@dataclasses.dataclass
class PixelDecoderConfig:
    """Transformer encoder, then a feature pyramid.

    "fpn": the encoder reads the coarsest map. "deformable" (Zhu et al. 2021): the three coarsest
    maps read each other at a few learned points.
    """

    name: str = "fpn"  # "fpn" or "deformable"
    width: int = 512
    num_layers: int = 6
    num_heads: int = 8
    mlp_width: int = 2048
    num_groups: int = 32  # of the group normalisation
    num_points: int = 4  # deformable: points that a head reads on each map


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


NUM_LEVELS = 3  # maps that the decoder reads, one a layer in turn: strides 32, 16 and 8


@dataclasses.dataclass
class DecoderConfig:
    """SEEM decoder. `rules` names a table of decoder/rules.py.

    `RELEASES` has the values of the official versions. With the rules "shared" the object queries
    answer the prompts, without memory; that is for inference only, as no loss is defined for it.
    """

    width: int = 512
    num_layers: int = 9
    num_heads: int = 8
    mlp_width: int = 2048
    num_object_queries: int = 101
    num_memory: int = 32
    queries_per_prompt: int = 3  # object queries copied for each visual prompt (v0: all 101)
    empty_pooled: float = -1.0  # pooled value of a prompt without positive points (v0, demo: 0)
    rules: str = "official"  # "official", "composed" or "shared"
    # Mask features and the tokens of drawn points hold sine positions, so that equal things in
    # different places can be told apart; officially they have none.
    explicit_positions: bool = False
    # Drawn points of "not this" enter with the opposite sign (models/prompts/visual.py); not officially.
    opposed_points: bool = False


# The official versions of one and the same weights; in v0 a prompt has a copy of all object queries.
RELEASES = {
    "v1": {"rules": "official", "queries_per_prompt": 3, "empty_pooled": -1.0},
    "v0": {"rules": "official", "queries_per_prompt": 101, "empty_pooled": 0.0},
    "demo": {"rules": "shared", "empty_pooled": 0.0},
}


def as_released(decoder: DecoderConfig, version: str) -> DecoderConfig:
    """The decoder with the values of an official version: "v0", "v1" or "demo"."""
    if version not in RELEASES:
        raise ValueError(f"unknown version {version!r}; choose from {sorted(RELEASES)}.")
    return dataclasses.replace(decoder, **RELEASES[version])


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
    video_eval: str = "shapes_video:val"
    tokenizer: str = "data/shapes/records/tokenizer.model"
    image_size: int = 1024  # pixels, square training crop
    min_scale: float = 0.1  # large-scale jitter
    max_scale: float = 2.0
    flip: bool = True
    mirror_text: bool = True  # left and right change places in flipped images; officially not
    keep_hidden: bool = False  # targets that the cut left out stay, empty; officially so
    max_objects: int = 100  # M; further segments are dropped smallest first, and counted
    num_planes: int = 2  # R; plane 0 is the index map, the others hold overlapping masks
    max_phrases: int = 4  # G; one for each segment of a class that is asked for by its name
    max_texts: int = 4  # different texts an image, at most max_phrases (official: MAX_LEN - 1)
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
    stall_seconds: float = (
        30.0  # a record that takes longer to read is named in a warning; 0: never
    )
    max_bad_records: int = 0  # that cannot be read; replaced by others and counted, then an error


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
    names_train_text: bool = True  # whether class losses move the text encoder (where not frozen)
    # Auxiliary losses of the mean features of each true segment (losses/regions.py); 0 officially.
    region_class: float = 0.0
    region_phrase: float = 0.0
    region_bce: float = 0.0
    region_dice: float = 0.0


REGION_TERMS = ("class", "phrase", "bce", "dice")


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
class FaultsConfig:
    """What a run does when something goes wrong. Seconds; 0 turns a limit of progress off."""

    # A step whose loss, gradient or update is NaN or infinite is never applied. Then: "abort" ends the
    # run; "skip" goes on with the next batch; "roll_back" goes on from the last checkpoint, with
    # the batches after the bad one.
    not_finite: str = "abort"
    max_not_finite: int = 10  # skips in a row, or roll backs of one start, that are borne
    stall_seconds: float = 1800.0  # without progress inside the training loop, then all exit
    phase_seconds: float = (
        7200.0  # the same while starting, compiling, and for a batch of evaluation
    )
    lost_seconds: float = 60.0  # without a word from another process, then all exit
    meet_seconds: float = 1800.0  # to wait for the other processes where all must come together


@dataclasses.dataclass
class ProfileConfig:
    """Steps whose profiler trace goes to WORKDIR/profile; for TensorBoard, XProf or Perfetto."""

    first_step: int = 0  # 0: none
    num_steps: int = 3


@dataclasses.dataclass
class EvaluationConfig:
    every: int = 0  # steps; 0: only at the end
    batch_size: int = 8
    image_size: int = 0  # square in pixels that images fit into; 0 takes data.image_size
    # Official test sizes instead: (shortest, longest) edge in pixels, then multiples of
    # model.backbone.size_divisor. () keeps the square.
    edges: tuple[int, ...] = ()
    referring_edges: tuple[int, ...] = ()
    video_edges: tuple[int, ...] = ()
    max_images: int = 0  # 0: all
    max_clicks: int = 20
    object_threshold: float = 0.8
    overlap_threshold: float = 0.8
    num_pictures: int = 12  # rows of a picture sheet: best, median and worst
    tasks: tuple[str, ...] = (
        "panoptic",
        "referring",
        "interactive",
    )  # also instance, semantic, video
    referring_ways: tuple[str, ...] = ("text", "text+click")  # also "click", a drawn prompt alone
    # Where the official evaluation and common practice differ; in brackets the official side.
    first_sentence_only: bool = False  # of each object; else both ways are reported [True]
    objects_together: int = 5  # clicked until all are good; 1: each by itself [5]
    grown_masks: bool = False  # objects at model size grow by bicubic overshoot [True]
    box_is_object: bool = True  # a box stands for its object in later clicks too [True]
    training_strokes: bool = False  # first strokes by the laws of training [False]
    voc_grey_ids: bool = False  # objects of VOC whose colours are equal as grey merge [True]
    first_prompts: tuple[str, ...] = (
        "point",
    )  # of interactive; also circle, scribble, polygon, box
    ritm: bool = False  # interactive also by the protocol of RITM and SimpleClick
    vocabulary: str = ""  # JSON file: class name -> what to call it, one name or several
    calibrate: bool = False  # fit a temperature of the class scores, on every second image
    instance_annotations: str = ""  # COCO file with the truth of AP; "" takes the panoptic segments
    faster_coco_eval: bool = False  # AP by the package faster-coco-eval instead of pycocotools


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
    faults: FaultsConfig = dataclasses.field(default_factory=FaultsConfig)
    profile: ProfileConfig = dataclasses.field(default_factory=ProfileConfig)
    num_steps: int = 100_000
    encoder_steps: int = 0  # first of these: encoders and heads learn alone (loss.region_*)
    # Weights to start from: a work folder (of training or seem_jax.convert) or one of its steps. ""
    # starts from random ones; a run that has a checkpoint of its own continues from that.
    start_from: str = ""
    may_be_fresh: tuple[str, ...] = ()  # paths of parameters that start_from may lack, as "decoder"
    max_rounds: int = 5  # simulated interactive rounds without gradient: 0 to this, uniform
    round_stop_iou: float = 0.925  # no simulated click on a mask this good (0.925: official)
    # Share of drawn prompts that do not say where they are, with decoder.explicit_positions: what a
    # prompt drawn on another image is like.
    location_dropout: float = 0.0
    accumulate: int = 1  # parts of a batch, one after the other, whose gradients are averaged
    # What the backward pass computes again to save memory: "" nothing, "products" all but products
    # with weights, "parts" everything inside the encoders and the decoder.
    rematerialise: str = ""
    # The decoder's layers in a loop over turns of three levels: XLA compiles a third of them. The layers
    # of evaluation and of the predictor always stand one by one.
    scan_layers: bool = False
    seed: int = 0
    useful_gflop_per_image: float = 0.0  # training/utilisation.py; 0: no utilisation is reported
    log_every: int = 50  # steps
    checkpoint_every: int = 1000  # steps
    keep_checkpoints: int = 3
    compile_cache: str = ".cache/jax"  # of compiled programs, trusted like the code; "" keeps none
