from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from seem_jax.benchmark import CLICK_POINTS, ROUNDS, _click_cost, _encode, measure, operations
from seem_jax.config import load_config
from seem_jax.models.seem import build, initialise
from tests.fakes import tiny_config

ROOT = Path(__file__).resolve().parents[1]

SIDE, TURNS = 32, 7
ONE_PRODUCT = 2 * SIDE**3


def repeated(x, w):
    def turn(x, _):
        return x @ w, None

    return jax.lax.scan(turn, x, None, length=TURNS)[0]


def test_every_turn_of_a_loop_counts():
    shape = jax.ShapeDtypeStruct((SIDE, SIDE), jnp.float32)
    once = measure(lambda x, w: x @ w, shape, shape)
    looped = measure(repeated, shape, shape)
    assert ONE_PRODUCT <= once.flop < 1.1 * ONE_PRODUCT
    assert TURNS * ONE_PRODUCT <= looped.flop < 1.1 * TURNS * ONE_PRODUCT


def test_a_convolution_counts_its_kernel():
    image = jax.ShapeDtypeStruct((1, 16, 16, 8), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 8, 4), jnp.float32)

    def turn(image, kernel):
        def body(total, _):
            out = jax.lax.conv_general_dilated(
                image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            return total + out.sum(), None

        return jax.lax.scan(body, jnp.float32(0), None, length=3)[0]

    one = 2 * 3 * 3 * 8 * 4 * 16 * 16
    extra = measure(turn, image, kernel).flop
    assert 2 * one <= extra <= 3.1 * one


def test_a_click_costs_a_small_part_of_the_image_and_more_with_more_points():
    """Regression limits at the tiny size, where points weigh most; measured: 7%, 66% of the image."""
    model = build(tiny_config().model)
    params = jax.eval_shape(lambda key: nn.unbox(initialise(model, key)), jax.random.key(0))
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.uint8)
    encode = measure(lambda params, image: _encode(model, params, image), params, image)
    features = jax.eval_shape(lambda p, i: _encode(model, p, i), params, image)
    few, many = (_click_cost(model, params, features, points).flop for points in CLICK_POINTS)
    assert 1e7 < encode.flop < 3.2e7
    assert few < 0.1 * encode.flop
    assert few < many < 0.8 * encode.flop


@pytest.mark.slow
def test_the_full_size_costs_what_was_promised():
    """configs/focalt.py at 1024x1024: takes minutes of compiling, and runs nothing."""
    figures = operations(load_config(ROOT / "configs/focalt.py"))
    assert figures["click/gflop"] <= 25
    assert figures["train_step/gflop_per_image"] <= 1750
    # 198 of the backbone, 784 of the pixel decoder, 102 of the keys and values of nine layers.
    assert 1060 <= figures["encode/gflop"] <= 1100
    assert figures["decode/gflop"] <= 40
    step, rounds = figures["train_step_without_rounds/gflop"], ROUNDS * figures["round/gflop"]
    assert figures["train_step/gflop_per_image"] == pytest.approx(step + rounds)
