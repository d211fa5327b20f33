"""Whether the values of a configuration fit together; every entry point asks once."""

from __future__ import annotations

import functools

from seem_jax.config import NUM_LEVELS, REGION_TERMS, Config


def validate(config: Config) -> None:
    """Raises ValueError naming the field, the value and what would be right."""
    _validate_model(config)
    _validate_backbone(config)
    _validate_data(config)
    _validate_training(config)
    _validate_evaluation(config)


def _validate_model(config: Config) -> None:
    model = config.model
    for part in ("decoder", "pixel_decoder", "text"):
        field, sizes = f"model.{part}.width", getattr(model, part)
        heads = sizes.num_heads
        _need(config, f"model.{part}.num_heads", heads > 0, "a positive number")
        _need(config, field, sizes.width % heads == 0, f"a multiple of num_heads = {heads}")
        _need(config, field, sizes.width % 4 == 0, "a multiple of 4 (sine positions)")
    width = model.decoder.width
    _need(
        config,
        "model.pixel_decoder.width",
        model.pixel_decoder.width == width,
        f"model.decoder.width = {width}",
    )
    _need(
        config,
        "model.pixel_decoder.num_groups",
        width % max(model.pixel_decoder.num_groups, 1) == 0,
        f"a divisor of the width {width}",
    )
    _need(
        config,
        "model.text.projection",
        model.text.projection == width,
        f"model.decoder.width = {width}: text tokens are decoder slots",
    )
    _one_of(config, "model.text.pooling", ("end", "mean"))
    _one_of(config, "model.decoder.rules", ("official", "composed", "shared"))
    _one_of(config, "model.dtype", ("float32", "bfloat16"))


def _validate_backbone(config: Config) -> None:
    backbone = config.model.backbone
    _one_of(config, "model.backbone.name", ("focalnet", "davit", "sam_vit"))
    lists = {
        "focalnet": ("depths", "focal_levels", "focal_windows"),
        "davit": ("depths", "patch_sizes"),
        "sam_vit": ("depths",),
    }
    stages = 1 if backbone.name == "sam_vit" else 4
    for field in lists[backbone.name]:
        fits = len(getattr(backbone, field)) == stages
        _need(config, f"model.backbone.{field}", fits, f"a value for each stage, {stages} in all")
    if backbone.name != "focalnet":
        fits = backbone.head_width > 0 and backbone.width % backbone.head_width == 0
        field = "model.backbone.head_width"
        _need(config, field, fits, f"a divisor of the width {backbone.width}")
    blocks = range(sum(backbone.depths))
    fits = set(backbone.global_blocks) <= set(blocks)
    _need(config, "model.backbone.global_blocks", fits, f"blocks from 0 to {len(blocks) - 1}")
    fits = backbone.size_divisor > 0 and backbone.size_divisor % 32 == 0
    _need(config, "model.backbone.size_divisor", fits, "a multiple of 32")


def _validate_data(config: Config) -> None:
    data, context = config.data, config.model.text.context_length
    for field in (
        "image_size",
        "batch_size",
        "max_objects",
        "max_phrases",
        "max_texts",
        "max_prompts",
    ):
        _need(config, f"data.{field}", getattr(data, field) > 0, "a positive number")
    _need(config, "data.image_size", data.image_size % 32 == 0, "a multiple of 32")
    _need(config, "data.max_objects", data.max_objects <= 255, "at most 255")
    _need(
        config,
        "data.max_phrase_tokens",
        data.max_phrase_tokens <= context,
        f"at most model.text.context_length = {context}",
    )
    _need(
        config,
        "data.weights",
        len(data.train) == len(data.weights),
        f"one weight for each of data.train = {data.train}",
    )
    kinds = {
        "click",
        "point",
        "polygon",
        "scribble",
        "circle",
        "box",
    }  # data/strokes.py, a layer above
    fits = len(data.prompt_kinds) > 0 and set(data.prompt_kinds) <= kinds
    _need(config, "data.prompt_kinds", fits, f"names of {sorted(kinds)}")
    _need(config, "data.max_bad_records", data.max_bad_records >= 0, "0 or more")
    _need(config, "data.stall_seconds", data.stall_seconds >= 0, "0 or more")


def _validate_training(config: Config) -> None:
    _one_of(config, "optimizer.schedule", ("multistep", "cosine"))
    for field in ("num_steps", "log_every", "checkpoint_every", "keep_checkpoints"):
        _need(config, field, getattr(config, field) > 0, "a positive number")
    _need(
        config,
        "encoder_steps",
        config.encoder_steps == 0
        or any(getattr(config.loss, f"region_{name}") > 0 for name in REGION_TERMS),
        "0 where all of loss.region_* are 0: the encoders had nothing to learn",
    )
    _need(
        config,
        "encoder_steps",
        config.encoder_steps < config.num_steps,
        f"fewer than num_steps = {config.num_steps}: the decoder would not learn",
    )
    _need(config, "max_rounds", config.max_rounds >= 0, "0 or more")
    _need(config, "round_stop_iou", 0 < config.round_stop_iou <= 1, "above 0, at most 1")
    fits = not config.may_be_fresh or bool(config.start_from)
    _need(config, "may_be_fresh", fits, "none, since config.start_from is empty")
    _validate_faults(config)


def _validate_faults(config: Config) -> None:
    _one_of(config, "faults.not_finite", ("abort", "skip", "roll_back"))
    _need(config, "faults.max_not_finite", config.faults.max_not_finite >= 0, "0 or more")
    for field in ("stall_seconds", "phase_seconds"):
        _need(config, f"faults.{field}", getattr(config.faults, field) >= 0, "0 or more seconds")
    for field in ("lost_seconds", "meet_seconds"):
        _need(config, f"faults.{field}", getattr(config.faults, field) > 0, "seconds above 0")
    _need(config, "profile.first_step", config.profile.first_step >= 0, "0 (none) or a step")
    fits = config.accumulate > 0 and config.data.batch_size % config.accumulate == 0
    batch = config.data.batch_size
    _need(config, "accumulate", fits, f"a divisor of data.batch_size = {batch}")
    share = 0 <= config.location_dropout <= 1
    _need(config, "location_dropout", share, "a share from 0 to 1")
    _one_of(config, "rematerialise", ("", "products", "parts"))
    whole = config.model.decoder.num_layers % NUM_LEVELS == 0
    turns = f"False where model.decoder.num_layers is not a multiple of {NUM_LEVELS}"
    _need(config, "scan_layers", whole or not config.scan_layers, turns)
    _need(config, "useful_gflop_per_image", config.useful_gflop_per_image >= 0, "0 or more")
    _need(config, "profile.num_steps", config.profile.num_steps > 0, "a positive number")


def _validate_evaluation(config: Config) -> None:
    for name in ("edges", "referring_edges", "video_edges"):
        edges = getattr(config.evaluation, name)
        fits = not edges or (len(edges) == 2 and 0 < edges[0] < edges[1])
        _need(config, f"evaluation.{name}", fits, "() or (shortest, longest) edge in pixels")
    for name in ("batch_size", "max_clicks", "objects_together"):
        _need(config, f"evaluation.{name}", getattr(config.evaluation, name) > 0, "above 0")


def _need(config: Config, field: str, ok: bool, expected: str) -> None:
    """ValueError naming the field and its value unless `ok`."""
    if not ok:
        value = functools.reduce(getattr, field.split("."), config)
        raise ValueError(f"config.{field} = {value!r}: expected {expected}.")


def _one_of(config: Config, field: str, names: tuple[str, ...]) -> None:
    value = functools.reduce(getattr, field.split("."), config)
    *first, last = (f'"{name}"' for name in names)
    _need(config, field, value in names, f"{', '.join(first)} or {last}")
