"""Clicks: the official choices, replayed, and what padding and borders do."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seem_jax import interaction
from seem_jax.kernels.resize import upsample
from seem_jax.types import VisualPrompts
from tests.goldens import arrays, cases

first_clicks = jax.jit(interaction.first_clicks)
next_clicks = jax.jit(interaction.next_clicks)


def pixels(points, valid, height: int, width: int) -> np.ndarray:
    """bool [H, W] of the valid points of one prompt."""
    mask = np.zeros((height, width), bool)
    where = np.rint(np.asarray(points)[np.asarray(valid)] * [width, height]).astype(int)
    mask[where[:, 1], where[:, 0]] = True
    return mask


def no_prompts(batch: int, rows: int) -> VisualPrompts:
    return VisualPrompts(
        points=jnp.zeros((batch, rows, 2), jnp.float32),
        prompt=jnp.zeros((batch, rows), jnp.int32),
        positive=jnp.zeros((batch, rows), bool),
        valid=jnp.zeros((batch, rows), bool),
    )


def test_upsampling_is_bilinear_resizing():
    values = np.random.default_rng(0).normal(size=(2, 5, 7)).astype(np.float32)
    want = jax.image.resize(values, (2, 20, 28), "bilinear")
    np.testing.assert_allclose(upsample(jnp.asarray(values), 4), want, atol=1e-5)


def test_official_first_clicks():
    golden, stored = cases("clicks_seem")["first_click"]["point"], arrays("clicks_seem")
    truth = stored["first/gt"][None]
    points, positive, valid, prompted = first_clicks(truth)
    assert bool(positive.all())
    for p, want in enumerate(golden["per_mask"]):
        drawn = pixels(points[0, p], valid[0, p], *truth.shape[-2:])
        np.testing.assert_array_equal(drawn, np.asarray(prompted[0, p]) == 1)
        centre = np.argwhere(drawn).mean(0).round().astype(int).tolist()
        assert drawn.sum() == 9
        assert centre in want["pixels_within_1e-3_of_dt_max"]
        np.testing.assert_array_equal(drawn, stored["first/point_prompt"][p])


@pytest.mark.parametrize("name", ["three_objects", "early_stop", "ignore_band"])
def test_official_clicks_replayed(name):
    """Every click of an official session, given the decoder's answers: place, sign and area."""
    golden, stored = cases("clicks_seem")["loops"][name], arrays("clicks_seem")
    height, width = golden["padded_hw"]
    rows, columns = golden["image_hw"]
    num = golden["num_objects"]
    truth = np.zeros((1, num, height, width), bool)
    truth[0, :, :rows, :columns] = stored[f"{name}/gt_model_size"]
    logits = stored[f"{name}/logits"].astype(np.float32)
    click = first_clicks(truth)
    calls = golden["prompt_added_before_call"]
    for call, wanted in enumerate(calls):
        if call:
            click = next_clicks(logits[call - 1], truth, click[3])
        points, positive, valid, _ = click
        for p, want in enumerate(wanted):
            drawn = pixels(points[0, p], valid[0, p], height, width)
            if want is None:
                assert not drawn.any()
                continue
            row, column = np.argwhere(drawn).T
            assert bool(positive[0, p]) == want["positive"]
            assert drawn.sum() == want["new_pixels"]
            assert [row.min(), row.max()] == want["new_rows"]
            assert [column.min(), column.max()] == want["new_cols"]
    prompted = np.asarray(click[3][0])
    np.testing.assert_array_equal(prompted & 1 > 0, stored[f"{name}/final_pos"])
    np.testing.assert_array_equal(prompted & 2 > 0, stored[f"{name}/final_neg"])


def test_a_click_at_the_corner_is_clipped_and_a_prompt_without_truth_gets_none():
    truth = np.zeros((1, 2, 32, 32), bool)
    truth[0, 0, 0, 0] = True
    points, _, valid, prompted = first_clicks(truth)
    assert valid[0].sum(-1).tolist() == [4, 0]
    assert np.asarray(prompted[0, 0]).sum() == 4
    everywhere = np.ones((1, 2, 8, 8), np.float32)
    _, _, valid, _ = next_clicks(everywhere, truth, prompted)
    assert not valid[0, 1].any()


def test_a_pixel_is_prompted_once_per_sign():
    truth = np.zeros((1, 1, 16, 16), bool)
    truth[0, 0, 4:12, 4:12] = True
    prompted = np.full((1, 1, 16, 16), interaction.POSITIVE)
    nothing = np.full((1, 1, 4, 4), -1.0, np.float32)
    _, positive, valid, _ = next_clicks(nothing, truth, prompted)
    # All missing pixels are prompted: equal counts are "negative", and pixel (0, 0) is the choice.
    assert not positive.any()
    assert valid.sum() == 4  # new as "not this", though known as "this object"
    both = np.full((1, 1, 16, 16), interaction.POSITIVE | interaction.NEGATIVE)
    assert not next_clicks(nothing, truth, both)[2].any()


def test_no_click_from_the_stop_iou_on():
    truth = np.zeros((1, 1, 16, 16), bool)
    truth[..., :8] = True
    good = np.where(np.arange(4) < 2, 9.0, -9.0).astype(np.float32)
    logits = np.broadcast_to(good, (1, 1, 4, 4))
    prompted = np.zeros(truth.shape, np.uint8)
    assert not next_clicks(logits, truth, prompted)[2].any()
    assert next_clicks(logits, truth, prompted, stop_iou=1.1)[2].any()


def test_appended_clicks_are_what_the_prompts_mark():
    truth = np.zeros((2, 3, 24, 32), bool)
    truth[0, 0, 4:15, 6:20] = truth[0, 2, 10:24, 20:32] = truth[1, 1, :9, :9] = True
    prompts = interaction.reserve(no_prompts(2, 5), num_clicks=2, num_prompts=3)
    assert prompts.points.shape == (2, 5 + 2 * 3 * 9, 2)

    @jax.jit
    def session(prompts, truth):
        points, positive, valid, prompted = first_clicks(truth)
        prompts = interaction.append_points(prompts, points, positive, valid, 5)
        wrong = jnp.where(truth[..., ::4, ::4], -1.0, 1.0)
        points, positive, valid, prompted = next_clicks(wrong, truth, prompted)
        offset = jnp.int32(5 + 27)
        return interaction.append_points(prompts, points, positive, valid, offset), prompted

    prompts, prompted = session(prompts, truth)
    marks = jax.jit(
        functools.partial(interaction.prompted_mask, num_prompts=3, height=24, width=32)
    )
    np.testing.assert_array_equal(marks(prompts), prompted)
    assert prompts.prompt[0, 5:14].tolist() == [0] * 9
    assert bool(prompts.positive[0, 5])


@pytest.mark.parametrize("size", [96, 512, 1000])
def test_points_return_to_their_pixels(size):
    pixel = np.arange(size)
    points = np.stack([pixel / size, pixel[::-1] / size], -1).astype(np.float32)[None]
    yes = np.ones((1, size), bool)
    prompts = VisualPrompts(
        points=points, prompt=np.zeros((1, size), np.int32), positive=yes, valid=yes
    )
    mask = interaction.prompted_mask(prompts, 1, size, size)[0, 0]
    np.testing.assert_array_equal(np.asarray(mask) == 1, np.eye(size, dtype=bool)[::-1])


def test_logits_of_another_size_are_refused():
    with pytest.raises(ValueError, match="whole factor"):
        next_clicks(
            np.zeros((1, 1, 5, 5), np.float32),
            np.zeros((1, 1, 16, 16), bool),
            np.zeros((1, 1, 16, 16), np.uint8),
        )
