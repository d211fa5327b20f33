"""Small SEEM on the drawn scenes of data_prep/shapes.py: minutes on two CPU cores, from nothing.

Same architecture and tasks as focalt.py; only values differ.
"""

from configs import base
from seem_jax.config import (
    BackboneConfig,
    Config,
    DecoderConfig,
    EvaluationConfig,
    LossConfig,
    OptimizerConfig,
    PixelDecoderConfig,
    TextConfig,
)


def get_config() -> Config:
    """The values that differ from base.py."""
    config = base.get_config()
    config.name = "shapes"
    config.workdir = "runs/shapes"

    model = config.model
    model.backbone = BackboneConfig(
        width=32,
        depths=(1, 1, 2, 1),
        focal_levels=(2, 2, 2, 2),
        layer_scale_init=1.0,
        drop_path=0.0,
    )
    model.pixel_decoder = PixelDecoderConfig(
        width=64, num_layers=1, num_heads=4, mlp_width=192, num_groups=8
    )
    # From scratch the mean over words learns; an end token looked stuck.
    model.text = TextConfig(
        vocab_size=400,
        context_length=24,
        width=64,
        num_layers=2,
        num_heads=4,
        projection=64,
        pooling="mean",
        causal=False,
        logit_scale=3.5,  # from 1, or 2.66 as in CLIP, names stay blurred for longer
        token_deviation=1.0,  # words start apart; from 0.02 all names of things fell into one
    )
    model.decoder = DecoderConfig(
        width=64,
        num_layers=3,
        num_heads=4,
        mlp_width=192,
        num_object_queries=24,
        num_memory=8,
        rules="composed",
        explicit_positions=True,  # from scratch, in minutes, features do not learn to tell twins apart,
        opposed_points=True,  # nor slots to take "not this" for what it is
    )

    data = config.data
    data.image_size = 160  # drawn at 96: finer maps see shapes sooner, and follow their edges
    data.min_scale, data.max_scale = 1.0, 1.0  # a crop could make "leftmost" false
    data.max_objects = 10
    data.max_phrases = 4
    data.max_phrase_tokens = 10
    data.max_prompts = 7
    # Answers to a single click are wrong more often: more to correct, and as in use.
    data.prompt_kinds = ("click", "click", "click", "point", "polygon", "scribble", "circle")
    data.max_points = 48
    data.phrase_prompt_probability = 0.35
    data.batch_size = 4

    config.loss = LossConfig(
        object_class=4.0,
        object_bce=2.0,
        object_dice=2.0,
        text_class=4.0,
        text_bce=2.0,
        text_dice=2.0,
        visual_class=1.0,
        visual_bce=3.0,
        visual_dice=3.0,
        class_name_weight=1.0,
        sentence_weight=1.0,
        num_points=256,
        names_train_text=False,  # else all names of things fall together before shapes are told apart
        region_class=6.0,
        region_phrase=4.0,
        region_bce=5.0,
        region_dice=5.0,
    )
    config.num_steps = 3000
    # An eighth of the time: the decoder then starts from maps and heads that tell segments apart.
    config.encoder_steps = 800
    config.optimizer = OptimizerConfig(
        learning_rate=2e-3,
        schedule="cosine",
        warmup_steps=180,
        clip_norm=1.0,
        beta2=0.98,
        backbone_multiplier=1.0,
        text_multiplier=0.2,
        frozen=(),
    )
    config.evaluation = EvaluationConfig(batch_size=8, object_threshold=0.2)
    config.location_dropout = 0.15
    config.max_rounds = 5
    config.round_stop_iou = 1.0  # clicks on good masks too, else a further one spoils them
    config.log_every = 50
    config.checkpoint_every = 500
    return config
