import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from seem_jax import sharding
from seem_jax.benchmark import clock, compiling, inputs, operations, timing
from seem_jax.benchmark.costs import loop_flop, measure, product_flop
from seem_jax.benchmark.operations import CLICK_POINTS, ROUNDS, cost_of
from seem_jax.benchmark.programs import parts
from seem_jax.config_files import load_config
from seem_jax.kernels import convolution
from seem_jax.nn.attention import Attention
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


def test_a_loop_within_a_loop_counts_every_turn_of_both():
    def outer(x, w):
        return jax.lax.scan(lambda x, _: (repeated(x, w), None), x, None, length=3)[0]

    shape = jax.ShapeDtypeStruct((SIDE, SIDE), jnp.float32)
    program = jax.make_jaxpr(outer)(shape, shape).jaxpr
    assert product_flop(program) == 3 * TURNS * ONE_PRODUCT
    assert loop_flop(program) == (3 * TURNS - 1) * ONE_PRODUCT


@pytest.fixture(scope="module")
def tiny():
    return parts(tiny_config())


def test_a_click_costs_a_small_part_of_the_image_and_more_with_more_points(tiny):
    """Regression limits at the tiny size, where points weigh most; measured: 7%, 66% of the image."""
    encode = cost_of(tiny.encode())
    few, many = (cost_of(tiny.click(points)) for points in CLICK_POINTS)
    assert 1e7 < encode.flop < 3.2e7
    assert few.flop < 0.1 * encode.flop
    assert few.flop < many.flop < 0.8 * encode.flop
    assert encode.lines < 3600  # measured 3,350
    assert encode.temp_bytes < 250_000  # measured 185,728


def test_the_embedding_of_a_level_costs_no_product_with_every_pixel_in_the_gradient():
    """Where the encoders are frozen, it is all that the projections of the image learn from."""
    attention = Attention(32, 4)
    pixels = jax.ShapeDtypeStruct((1, 4096, 32), jnp.float32)
    mark = jax.ShapeDtypeStruct((32,), jnp.float32)

    def project(params, mark, pixels):
        return attention.apply({"params": params}, pixels, pixels, mark, method="keys_values")

    def total(params, mark, pixels):
        return sum(jnp.sin(x).sum() for x in project(params, mark, pixels))

    params = jax.eval_shape(
        lambda key: nn.unbox(attention.init(key, *[jnp.zeros((1, 4, 32))] * 3)), jax.random.key(0)
    )["params"]
    given = (params, mark, pixels)
    forward = product_flop(jax.make_jaxpr(project)(*given).jaxpr)
    gradient = product_flop(jax.make_jaxpr(jax.grad(total, argnums=1))(*given).jaxpr)
    assert forward >= 2 * 2 * 4096 * 32 * 32
    assert gradient < 1.01 * forward


def test_the_figures_of_a_time_belong_together():
    seconds = np.array([0.1, 0.2, 0.3])
    found = clock.figures("x", seconds, flop=4e9, plain=100.0)
    assert found["x/p50_ms"] == pytest.approx(200)
    assert found["x/gflop_per_second"] == pytest.approx(20)
    assert found["x/share_of_plain_product"] == pytest.approx(0.2)
    assert found["x/runs"] == 3
    assert found["x/p50_ms"] < found["x/p95_ms"] < 300


def test_the_batch_that_is_timed_is_one_that_training_could_get():
    data = tiny_config().data
    batch = inputs.batch(data, 2)
    assert set(np.unique(batch.planes[:, 0])) == set(range(1, data.max_objects + 1))
    assert batch.image.shape == (2, data.image_size, data.image_size, 3)
    x, y = np.moveaxis((batch.strokes.points * data.image_size).astype(int), -1, 0)
    inside = batch.planes[np.arange(2)[:, None], 0, y, x]
    owner = np.take_along_axis(batch.prompt_masks.value, batch.strokes.prompt, axis=1)
    np.testing.assert_array_equal(inside, owner)


BUDGET = clock.Budget(seconds=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    "suite", [timing.forward, timing.one_round, timing.train_step, compiling.run]
)
def test_every_suite_gives_figures_under_its_name(suite):
    found = suite(tiny_config(), BUDGET)
    assert {name.split("/")[0] for name in found} <= {"forward", "round", "train_step", "compile"}
    assert all(np.isfinite(value) and value >= 0 for value in found.values())


def test_a_suite_times_a_click_beside_a_plain_product(monkeypatch):
    monkeypatch.setattr(timing, "CLICK_POINTS", (64,))
    monkeypatch.setattr(clock, "SIDE", {"cpu": 64})
    found = timing.click(tiny_config(), BUDGET)
    assert found["click/64_points/p50_ms"] > 0
    assert found["click/plain_product_gflop_per_second"] > 0


def test_an_unknown_suite_is_refused_by_name():
    command = [sys.executable, "-m", "seem_jax.benchmark", "--suite=speed"]  # of configs/focalt.py
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode != 0
    assert "--suite=speed: choose from" in ended.stderr + ended.stdout


def traced_gflop(program):
    """Of the matrix products and convolutions, every turn of loops counted; compiles nothing."""
    return product_flop(jax.make_jaxpr(program.function)(*program.arguments).jaxpr) / 1e9


@pytest.fixture
def plainly_convolved(monkeypatch):
    """Without Winograd's sums, which only a CPU takes: the counts of all other devices."""
    monkeypatch.setattr(convolution, "WIDE", 10**9)


def test_the_parts_of_the_full_size_need_no_more_products(plainly_convolved):
    """configs/focalt.py at 1024x1024; the limits are what was measured, rounded up."""
    measured = parts(load_config(ROOT / "configs/focalt.py"))
    assert traced_gflop(measured.encode()) <= 1044
    assert traced_gflop(measured.decode()) <= 36
    assert traced_gflop(measured.click(64)) <= 8.2
    assert traced_gflop(measured.click(1024)) <= 19.4
    assert traced_gflop(measured.one_round()) <= 28.1


def test_large_maps_on_a_cpu_take_a_quarter_of_the_products():
    measured = parts(load_config(ROOT / "configs/focalt.py"))
    assert traced_gflop(measured.maps()) <= 480  # 982 of the official code


@pytest.mark.slow
def test_the_full_training_step_needs_no_more_products(plainly_convolved):
    """The aim of 1,650 GFLOP an image, simulated rounds in their mean number among them."""
    measured = parts(load_config(ROOT / "configs/focalt.py"))
    with sharding.use(measured.mesh):
        step = traced_gflop(measured.train_step(rounds=False))
    rounds = ROUNDS * traced_gflop(measured.one_round())
    assert step + rounds <= 1650
    assert rounds <= 0.08 * (step + rounds)


@pytest.mark.slow
def test_the_full_size_costs_what_was_promised(plainly_convolved):
    """configs/focalt.py at 1024x1024: takes minutes of compiling, and runs nothing."""
    figures = operations.run(load_config(ROOT / "configs/focalt.py"))
    assert figures["click_1024/gflop"] <= 24
    assert figures["click_64/gflop"] <= 13
    assert (
        figures["train_step/gflop_per_image"] <= 1750
    )  # 1,703 counted in an earlier state; the aim is 1,650
    assert figures["train_step/share_of_rounds"] <= 0.08
    assert figures["decode/gflop"] <= 40
    step, rounds = figures["train_step_without_rounds/gflop"], ROUNDS * figures["round/gflop"]
    assert figures["train_step/gflop_per_image"] == pytest.approx(step + rounds)


@pytest.mark.slow
def test_the_full_training_step_fits_into_two_and_a_half_gigabytes():
    config = load_config(ROOT / "configs/focalt.py")
    config.model.dtype = "bfloat16"
    measured = parts(config)
    with sharding.use(measured.mesh):
        assert cost_of(measured.train_step(rounds=True)).temp_bytes <= 2.5e9
