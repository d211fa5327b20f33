"""The training mix as officially: what each value of the configuration that differs from it does."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from seem_jax.config import DataConfig
from seem_jax.config_files import load_config
from seem_jax.models.prompts.text import different_texts
from tests.pipeline_support import (
    BALLS,
    CLASS_RECORDS,
    CONFIG,
    RECORDS,
    FakeRecords,
    batches_of,
    masks_of,
    record,
    text_of,
)

FLIPPED_SIDES = {"left": "right", "right": "left"}


def official(**changes) -> DataConfig:
    """CONFIG with the training mix of configs/focalt_official.py."""
    wanted = load_config("configs/focalt_official.py").data
    names = ("mirror_text", "keep_hidden", "phrase_prompt_probability", "prompt_kinds", "flip")
    mix = {name: getattr(wanted, name) for name in names}
    return dataclasses.replace(CONFIG, **mix, **changes)


def test_the_configurations_name_the_official_values():
    for name in ("focalt", "focalt_official"):
        data = load_config(f"configs/{name}.py").data
        # COCO panoptic with LVIS masks and RefCOCOg sentences, without RefCOCOg's validation images.
        assert data.train == ("coco_lvis:train",) and data.weights == (1.0,)
        assert (data.min_scale, data.max_scale, data.image_size) == (0.1, 2.0, 1024) and data.flip
        assert data.max_texts == 4  # MAX_LEN 5, minus 1
        assert data.max_prompts == 10  # STROKE_SAMPLER.MAX_CANDIDATE of the training command
        assert sorted(data.prompt_kinds) == ["circle", "point", "polygon", "scribble"]
        assert data.max_points == 512  # MAX_SPATIAL_LEN
        assert data.batch_size == 16 and data.max_bad_records == 0
        side = data.image_size
        assert side * side * (3 + data.num_planes) < 8e6  # bytes of an image to the device
    assert not data.mirror_text and data.keep_hidden and data.phrase_prompt_probability == 0
    assert load_config("configs/focalt_official.py").model.decoder.rules == "official"


def test_all_segments_but_crowds_stay_targets_where_the_cut_left_them_out():
    crowded = record(0)
    crowded.segment_crowd = [False, True, False, False, False, False]
    wanted = sorted(
        c for c, crowd in zip(crowded.segment_category, crowded.segment_crowd) if not crowd
    )
    hidden = 0
    for batch in batches_of(official(max_scale=4.0), 8, splits=(FakeRecords([crowded]),)):
        masks = masks_of(batch.planes, batch.objects.masks)
        for row in range(CONFIG.batch_size):
            valid = batch.objects.masks.valid[row]
            assert sorted(batch.objects.label[row][valid].tolist()) == wanted
            hidden += (masks[row][valid].sum(axis=(1, 2)) == 0).sum()
            # Nobody draws on what cannot be seen.
            assert masks_of(batch.planes, batch.prompt_masks)[row].any(axis=(1, 2)).sum() == (
                batch.prompt_masks.valid[row].sum()
            )
    assert hidden > 10


def test_objects_that_the_cut_left_out_are_asked_for_and_empty():
    hidden = 0
    for batch in batches_of(official(max_scale=4.0), 8):
        masks = masks_of(batch.planes, batch.phrases.masks)
        hidden += (batch.phrases.masks.valid & ~masks.any(axis=(2, 3))).sum()
    assert hidden > 10
    for batch in batches_of(dataclasses.replace(CONFIG, max_scale=4.0), 8):
        masks = masks_of(batch.planes, batch.phrases.masks)
        assert not (batch.phrases.masks.valid & ~masks.any(axis=(2, 3))).any()


def test_sentences_of_flipped_images_stay_as_written_unless_mirrored():
    config = official(max_texts=1)
    plain = batches_of(config, 12)
    mirrored = batches_of(dataclasses.replace(config, mirror_text=True), 12)
    still = batches_of(dataclasses.replace(config, flip=False), 12)
    changed = 0
    for one, other, third in zip(plain, mirrored, still, strict=True):
        for row in range(CONFIG.batch_size):
            text, mirror = (text_of(b.phrases.token_ids[row, 0]) for b in (one, other))
            assert text == text_of(third.phrases.token_ids[row, 0])
            flipped = not np.array_equal(one.image[row], third.image[row])
            word = text.split()[0]
            if flipped and word in FLIPPED_SIDES:
                assert mirror == text.replace(word, FLIPPED_SIDES[word])
                changed += 1
            else:
                assert mirror == text
    assert changed > 3


def test_every_segment_of_a_named_class_is_a_phrase_and_the_texts_stay_few():
    config = official(max_phrases=6, max_texts=2)
    most = 0
    for batch in batches_of(config, 12, splits=(CLASS_RECORDS,)):
        for row in range(CONFIG.batch_size):
            valid = batch.phrases.masks.valid[row]
            groups = batch.phrases.group[row][valid]
            assert 1 <= len(set(groups.tolist())) <= 2
            most = max(most, valid.sum())
    assert most >= BALLS + 1 > config.max_texts
    assert {len(set(r.phrase_object)) for r in RECORDS} == {BALLS}
    for batch in batches_of(config, 4):  # sentences are as many as there are texts
        assert batch.phrases.masks.valid.sum(axis=1).max() <= 2


def test_each_text_is_read_once_whatever_the_number_of_its_segments():
    phrase_valid = jnp.asarray([[True] * 5, [False, True, True, False, False], [False] * 5])
    group = jnp.asarray([[7, 7, 1, 7, 1], [0, 3, 3, 0, 0], [0] * 5])
    rows, valid, text_of = (
        np.asarray(x) for x in different_texts(group, phrase_valid, max_texts=2)
    )
    np.testing.assert_array_equal(valid, [[True, True], [True, False], [False, False]])
    np.testing.assert_array_equal(rows[valid], [0, 2, 1])  # where each is said first
    np.testing.assert_array_equal(text_of, [[0, 0, 1, 0, 1], [0] * 5, [0] * 5])
    assert different_texts(group, phrase_valid, max_texts=9)[0].shape == (3, 5)
