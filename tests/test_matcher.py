"""The assignment on device against scipy, and the mask costs against their definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from seem_jax.config import LossConfig
from seem_jax.losses.matcher import WORST, assign, mask_cost, match

ROWS, COLUMNS = 8, 12
assign_many = jax.jit(jax.vmap(assign))


def check(cost, valid, column, atol=1e-3):
    """The columns are distinct, only valid rows have one, and the total cost is scipy's."""
    cost = np.clip(np.nan_to_num(np.float64(cost), nan=WORST), -WORST, WORST)
    rows = np.flatnonzero(valid)
    taken = np.flatnonzero(column >= 0)
    assert set(taken) <= set(rows)
    assert len(taken) == min(len(rows), cost.shape[1])
    assert len(set(column[taken])) == len(taken)
    want = cost[rows][linear_sum_assignment(cost[rows])].sum()
    np.testing.assert_allclose(cost[taken, column[taken]].sum(), want, rtol=1e-5, atol=atol)


def test_fifty_random_problems_cost_what_scipy_finds():
    rng = np.random.default_rng(0)
    cost = rng.normal(0, 5, (50, ROWS, COLUMNS)).astype(np.float32)
    cost[25:] = np.round(cost[25:])  # many ties
    valid = rng.random((50, ROWS)) < 0.6  # with holes
    valid[0], valid[1] = True, False
    for problem in zip(cost, valid, np.asarray(assign_many(cost, valid))):
        check(*problem)


def test_more_targets_than_slots_leave_the_dearest_targets_out():
    rng = np.random.default_rng(1)
    cost = rng.normal(0, 5, (50, COLUMNS, ROWS)).astype(np.float32)
    valid = rng.random((50, COLUMNS)) < 0.8
    for problem in zip(cost, valid, np.asarray(assign_many(cost, valid))):
        check(*problem)


@pytest.mark.parametrize("value", [0.0, 3.0, np.nan, np.inf, -np.inf])
def test_equal_costs_end_with_distinct_slots(value):
    cost = np.full((1, ROWS, COLUMNS), value, np.float32)
    valid = np.ones((1, ROWS), bool)
    check(cost[0], valid[0], np.asarray(assign_many(cost, valid))[0])


def test_costs_that_are_not_finite_never_hang_and_are_avoided():
    rng = np.random.default_rng(2)
    cost = rng.normal(0, 5, (50, ROWS, COLUMNS)).astype(np.float32)
    for value in (np.nan, np.inf):
        cost[rng.random(cost.shape) < 0.2] = value
    cost[:10, :, 3] = np.nan
    cost[10:20, 2] = np.inf
    cost[20] = np.nan
    valid = rng.random((50, ROWS)) < 0.8
    for problem in zip(cost, valid, np.asarray(assign_many(cost, valid))):
        check(*problem, atol=0.1)


HOSTILE = {
    "nan": lambda rng, cost: np.where(rng.random(cost.shape) < 0.3, np.nan, cost),
    "inf": lambda rng, cost: np.where(rng.random(cost.shape) < 0.3, np.inf, cost),
    "all nan": lambda rng, cost: np.full_like(cost, np.nan),
    "equal": lambda rng, cost: np.broadcast_to(cost[:, :1, :1], cost.shape),
    "empty": lambda rng, cost: cost,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_fifty_of_each_hostile_kind_end_with_a_valid_assignment(kind):
    rng = np.random.default_rng(3)
    cost = rng.normal(0, 5, (50, ROWS, COLUMNS)).astype(np.float32)
    cost = HOSTILE[kind](rng, cost).astype(np.float32)
    valid = np.zeros((50, ROWS), bool) if kind == "empty" else rng.random((50, ROWS)) < 0.7
    for problem in zip(cost, valid, np.asarray(assign_many(cost, valid))):
        check(*problem, atol=0.1)


def random_costs(rng, images):
    costs = {
        "object": rng.normal(0, 5, (3, images, 5, 7)).astype(np.float32),
        "text": rng.normal(0, 5, (3, images, 9, 7)).astype(np.float32),
        "visual": rng.normal(0, 5, (3, images, 2, 6)).astype(np.float32),
    }
    return costs, {name: rng.random((images, c.shape[2])) < 0.7 for name, c in costs.items()}


def test_groups_of_different_sizes_are_matched_as_if_alone():
    costs, valid = random_costs(np.random.default_rng(3), images=4)
    valid["text"][0] = True  # nine targets, seven slots
    matched = jax.jit(match)(costs, valid)
    for name, cost in costs.items():
        assert matched[name].shape == cost.shape[:3]
        for layer in range(3):
            for b in range(4):
                check(cost[layer, b], valid[name][b], np.asarray(matched[name][layer, b]))
    assert match({}, {}) == {}


def test_each_device_matches_its_own_images_to_the_same_result():
    if jax.device_count() < 4:
        pytest.skip("needs 4 devices")
    mesh = jax.make_mesh(
        (2, 1, 2),
        ("data", "fsdp", "tensor"),
        axis_types=(jax.sharding.AxisType.Auto,) * 3,
        devices=jax.devices()[:4],
    )
    costs, valid = random_costs(np.random.default_rng(3), images=4)
    alone = jax.jit(match)(costs, valid)
    split = jax.jit(lambda c, v: match(c, v, mesh))
    for name, slots in split(costs, valid).items():
        np.testing.assert_array_equal(slots, alone[name])
    assert "all-reduce" not in split.lower(costs, valid).compile().as_text()


def test_mask_cost_is_cross_entropy_and_dice_of_every_pair():
    rng = np.random.default_rng(4)
    logits = rng.normal(0, 4, (2, 6, 20)).astype(np.float32)
    truth = rng.random((2, 3, 20)).astype(np.float32)
    config = LossConfig(cost_bce=2.0, cost_dice=3.0)
    got = mask_cost(jnp.asarray(logits), jnp.asarray(truth), config)
    for b in range(2):
        for m in range(3):
            for q in range(6):
                x, t = np.float64(logits[b, q]), np.float64(truth[b, m])
                prob = 1 / (1 + np.exp(-x))
                bce = -(t * np.log(prob) + (1 - t) * np.log(1 - prob)).mean()
                dice = 1 - (2 * (prob * t).sum() + 1) / (prob.sum() + t.sum() + 1)
                np.testing.assert_allclose(got[b, m, q], 2 * bce + 3 * dice, rtol=1e-4)
