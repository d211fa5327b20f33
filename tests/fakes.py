"""A tiny configuration with every part present, and batches that agree with themselves.

A fake image holds one rectangle per object in its own flat colour, so that masks, phrases and strokes
all speak of something that can be seen, and a tiny model can learn it.
"""

from __future__ import annotations

import jax
import numpy as np

from seem_jax.config import (
    BackboneConfig,
    Config,
    DataConfig,
    DecoderConfig,
    EvaluationConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    PixelDecoderConfig,
    TextConfig,
)
from seem_jax.config_checks import validate
from seem_jax.types import Batch, MaskRefs, Objects, Phrases, VisualPrompts

NUM_CLASSES = 7  # of `class_token_ids`; the last one is "no object"
NUM_TEMPLATES = 2


def tiny_config() -> Config:
    """Every part of the real configuration, at sizes that compile in seconds."""
    config = Config(
        name="tiny",
        workdir="runs/tiny",
        model=ModelConfig(
            backbone=BackboneConfig(
                width=16, depths=(1, 1, 1, 1), focal_levels=(2, 2, 2, 2), drop_path=0.1
            ),
            pixel_decoder=PixelDecoderConfig(
                width=32, num_layers=1, num_heads=4, mlp_width=64, num_groups=8
            ),
            text=TextConfig(
                vocab_size=64, context_length=16, width=24, num_layers=1, num_heads=4, projection=32
            ),
            decoder=DecoderConfig(
                width=32,
                num_layers=2,
                num_heads=4,
                mlp_width=64,
                num_object_queries=9,
                num_memory=8,
                rules="composed",
            ),
        ),
        data=DataConfig(
            image_size=64,
            max_objects=6,
            max_phrases=3,
            max_phrase_tokens=10,
            max_prompts=3,
            max_points=24,
            phrase_prompt_probability=0.5,
            batch_size=2,
        ),
        loss=LossConfig(num_points=64, region_class=1.0, region_dice=1.0),
        optimizer=OptimizerConfig(
            learning_rate=1e-3, schedule="cosine", warmup_steps=2, clip_norm=1.0, frozen=()
        ),
        evaluation=EvaluationConfig(batch_size=2, max_images=2, max_clicks=2, num_pictures=2),
        num_steps=6,
        max_rounds=2,
        log_every=1,
        checkpoint_every=2,
    )
    validate(config)
    return config


def fake_batch(config: Config, batch_size: int = 2, seed: int = 0) -> Batch:
    """A batch of `batch_size` images by the sizes of `config.data`; the same seed gives the same batch.

    The numbers of objects, phrases and prompts differ from image to image. Odd phrases have their mask
    in plane 1 (one bit each), even ones are segments of plane 0. Phrase 0 comes with prompt 0.
    """
    images = [
        _fake_image(config, np.random.default_rng([seed, index]), index)
        for index in range(batch_size)
    ]
    return _stack(images)


def class_token_ids(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Token ids int32 [C, templates, J] of fake class names, and which are valid."""
    length = config.data.max_phrase_tokens
    return _sentences(
        np.random.default_rng(7), (NUM_CLASSES, NUM_TEMPLATES), length, config.model.text.vocab_size
    )


def _fake_image(config: Config, rng: np.random.Generator, index: int) -> Batch:
    data, size = config.data, config.data.image_size
    image = np.full((size, size, 3), 200, np.uint8)
    planes = np.zeros((data.num_planes, size, size), np.uint8)
    num_objects = int(rng.integers(1, data.max_objects + 1))
    cells = rng.permutation(16)[:num_objects]  # of a 4 by 4 grid, so objects never overlap
    for number, cell in enumerate(cells):
        side = size // 4
        top, left = cell // 4 * side + rng.integers(0, 3), cell % 4 * side + rng.integers(0, 3)
        area = np.s_[top : top + side - 3, left : left + side - 3]
        image[area] = rng.integers(0, 160, 3)
        planes[0][area] = number + 1
    num_phrases = min(data.max_phrases, num_objects)
    for phrase in range(1, num_phrases, 2):
        planes[1] |= np.where(planes[0] == phrase + 1, 1 << phrase, 0).astype(np.uint8)
    num_prompts = min(data.max_prompts, num_objects)

    number = np.arange(data.max_objects)
    phrase = np.arange(data.max_phrases)
    in_bits = phrase % 2 == 1
    token_ids, token_valid = _sentences(
        rng, (data.max_phrases,), data.max_phrase_tokens, config.model.text.vocab_size
    )
    exists = phrase < num_phrases
    return Batch(
        sample_id=np.int32(index),
        image=image,
        image_size=np.array([size, size], np.int32),
        planes=planes,
        objects=Objects(
            masks=_segments(data.max_objects, num_objects),
            label=np.where(
                number < num_objects, rng.integers(0, NUM_CLASSES - 1, data.max_objects), 0
            ).astype(np.int32),
        ),
        phrases=Phrases(
            token_ids=np.where(exists[:, None], token_ids, 0).astype(np.int32),
            token_valid=token_valid & exists[:, None],
            masks=MaskRefs(
                plane=in_bits.astype(np.int32),
                select=np.where(in_bits, 1 << phrase, 255).astype(np.uint8),
                value=np.where(in_bits, 1 << phrase, phrase + 1).astype(np.uint8),
                valid=exists,
            ),
            group=phrase.astype(np.int32),
            is_class=np.bool_(index % 2 == 1),
            prompt=np.where(phrase == 0, 0, -1).astype(np.int32),
        ),
        strokes=_strokes(rng, planes[0], num_prompts, data.max_points),
        prompt_masks=_segments(data.max_prompts, num_prompts),
    )


def _segments(maximum: int, count: int) -> MaskRefs:
    """The first `count` segments of plane 0, padded to `maximum`."""
    number = np.arange(maximum)
    return MaskRefs(
        plane=np.zeros(maximum, np.int32),
        select=np.full(maximum, 255, np.uint8),
        value=(number + 1).astype(np.uint8),
        valid=number < count,
    )


def _strokes(
    rng: np.random.Generator, segments: np.ndarray, num_prompts: int, max_points: int
) -> VisualPrompts:
    """Some points inside each of the first segments; the last fifth of the rows is padding."""
    points = np.zeros((max_points, 2), np.float32)
    prompt = np.zeros(max_points, np.int32)
    valid = np.arange(max_points) < max_points * 4 // 5
    for row in np.flatnonzero(valid):
        prompt[row] = row % num_prompts
        inside = np.argwhere(segments == prompt[row] + 1)
        y, x = inside[rng.integers(len(inside))]
        points[row] = x / segments.shape[1], y / segments.shape[0]
    return VisualPrompts(points=points, prompt=prompt, positive=valid.copy(), valid=valid)


def _sentences(
    rng: np.random.Generator, shape: tuple[int, ...], length: int, vocab_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Random sentences: begin token, 1 to 4 words, end token, padding (0)."""
    end = rng.integers(2, 6, shape)[..., None]  # position of the end token
    place = np.broadcast_to(np.arange(length), (*shape, length))
    words = rng.integers(3, vocab_size - 2, (*shape, length))
    ids = np.where(place == 0, vocab_size - 2, np.where(place == end, vocab_size - 1, words))
    valid = place <= end
    return np.where(valid, ids, 0).astype(np.int32), valid


def _stack(images: list[Batch]) -> Batch:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *images)
