"""Which prediction answers which target: the matching costs, and the exact assignment on device."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from seem_jax.config import LossConfig
from seem_jax.types import Array

WORST = 1e4  # stands for a cost that is NaN or larger: keeps the search finite, and float32 exact enough
FAR = 1e18  # distance of a column that no path has reached
# A detour must gain more than rounding. Two targets with the same text and mask cost exactly the
# same; the first then keeps its slot, as in scipy's double precision, and does not change by chance.
TIE = 1e-6


def mask_cost(logits: Array, truth: Array, config: LossConfig) -> Array:
    """float32 [..., M, Q], the weighted mask costs of logits [..., Q, K] and truth [..., M, K].

    Both are read at K points; truth lies in [0, 1]. Official batch_sigmoid_ce_loss and
    batch_dice_loss (matcher.py).
    """
    prob = jax.nn.sigmoid(logits)
    both = jnp.einsum("...mk,...qk->...mq", truth, prob)
    total = truth.sum(-1)[..., :, None] + prob.sum(-1)[..., None, :]
    dice = 1 - (2 * both + 1) / (total + 1)
    # t softplus(-x) + (1 - t) softplus(x) = softplus(x) - t x, so one product does
    agreement = jnp.einsum("...mk,...qk->...mq", truth, logits)
    bce = (jax.nn.softplus(logits).sum(-1)[..., None, :] - agreement) / logits.shape[-1]
    return config.cost_bce * bce + config.cost_dice * dice


def match(
    costs: dict[str, Array], valid: dict[str, Array], mesh: Mesh | None = None
) -> dict[str, Array]:
    """int32 [L, B, M] per name, the slot of each target by the cheapest assignment; -1 for none.

    costs are [L, B, M, Q], valid bool [B, M]; M and Q may differ from name to name. All names, layers
    and images are matched in one call, since its many small steps cost time one after another. With a
    mesh, each device matches the images it holds: without, its loops would wait for all devices at
    every turn. The axes of the mesh other than "tensor" must be those that split the batch.
    """
    if not costs:
        return {}
    rows, columns = (max(cost.shape[axis] for cost in costs.values()) for axis in (2, 3))
    every_cost, every_valid = [], []
    for name, cost in costs.items():
        layers, _, m, q = cost.shape
        missing = ((0, 0), (0, 0), (0, rows - m), (0, columns - q))
        every_cost.append(jnp.pad(_finite(cost), missing, constant_values=WORST))
        padded = jnp.pad(valid[name], ((0, 0), (0, rows - m)))
        every_valid.append(jnp.broadcast_to(padded, (layers, *padded.shape)))

    assigned = jax.vmap(jax.vmap(assign))
    if mesh is not None:
        images = PartitionSpec(None, tuple(axis for axis in mesh.axis_names if axis != "tensor"))
        assigned = jax.shard_map(
            assigned, mesh=mesh, in_specs=(images, images), out_specs=images, check_vma=False
        )
    slots = assigned(jnp.concatenate(every_cost), jnp.concatenate(every_valid))

    matched, start = {}, 0
    for name, cost in costs.items():
        layers, _, m, q = cost.shape
        slot = slots[start : start + layers, :, :m]
        matched[name] = jnp.where(slot < q, slot, -1)
        start += layers
    return matched


def assign(cost: Array, valid: Array) -> Array:
    """int32 [M], the column each valid row takes in the cheapest assignment, else -1.

    cost is [M, Q]; no column is taken twice. Where more rows are valid than there are columns, all
    columns are used and the rows that cost most are left out (-1), as scipy's
    linear_sum_assignment does. A cost that is not finite counts as `WORST`, so the search always
    ends. Shortest augmenting paths: Crouse, "On implementing 2D rectangular assignment algorithms"
    (2016); one row after another, so padding takes no time.
    """
    num_rows, num_columns = cost.shape
    count = valid.sum(dtype=jnp.int32)
    order = jnp.argsort(~valid, stable=True)  # valid rows first
    cost = _finite(cost)[order]
    # surplus rows get a column each that costs nothing: being left out has one price for all
    cost = jnp.pad(cost, ((0, 0), (0, max(num_rows - num_columns, 0))))
    usable = jnp.arange(cost.shape[1]) < jnp.maximum(num_columns, count)
    column = _shortest_paths(cost, usable, count)
    column = jnp.where(column < num_columns, column, -1)
    return jnp.full(num_rows, -1, jnp.int32).at[order].set(column)


def _finite(cost: Array) -> Array:
    return jnp.clip(jnp.nan_to_num(cost.astype(jnp.float32), nan=WORST), -WORST, WORST)


def _shortest_paths(cost: Array, usable: Array, count: Array) -> Array:
    """int32 [M], the column of each of the first `count` rows; -1 for the others."""
    num_rows, num_columns = cost.shape

    def add_row(new, state):
        row_price, column_price, row_of, column_of = state

        def grow(search):
            row, distance, previous, seen, visited, reached, _ = search
            visited = visited.at[row].set(True)
            through = reached + cost[row] - row_price[row] - column_price
            gain = TIE * (1 + jnp.abs(through))
            shorter = ~seen & usable & (through + gain < distance)
            previous = jnp.where(shorter, row, previous)
            distance = jnp.where(shorter, through, distance)
            nearest = jnp.argmin(jnp.where(seen | ~usable, FAR, distance)).astype(jnp.int32)
            free = row_of[nearest] < 0
            return (
                jnp.where(free, row, row_of[nearest]),
                distance,
                previous,
                seen.at[nearest].set(True),
                visited,
                distance[nearest],
                jnp.where(free, nearest, -1),
            )

        start = (
            new,
            jnp.full(num_columns, FAR, jnp.float32),
            jnp.full(num_columns, -1, jnp.int32),
            jnp.zeros(num_columns, bool),
            jnp.zeros(num_rows, bool),
            jnp.float32(0),
            jnp.int32(-1),
        )
        needed = new < count  # under vmap a finished problem comes here too, and must not search
        search = jax.lax.while_loop(lambda search: needed & (search[-1] < 0), grow, start)
        _, distance, previous, seen, visited, reached, end = search

        own = jnp.where(column_of >= 0, distance[jnp.maximum(column_of, 0)], 0.0)
        row_price += jnp.where(visited, reached - own, 0.0)
        column_price -= jnp.where(seen, reached - distance, 0.0)

        def flip(path):
            row_of, column_of, column, _ = path
            row = previous[column]
            return row_of.at[column].set(row), column_of.at[row].set(column), column_of[row], row

        path = (row_of, column_of, end, jnp.int32(-1))
        row_of, column_of, _, _ = jax.lax.while_loop(
            lambda path: needed & (path[3] != new), flip, path
        )
        return row_price, column_price, row_of, column_of

    state = (
        jnp.zeros(num_rows, jnp.float32),
        jnp.zeros(num_columns, jnp.float32),
        jnp.full(num_columns, -1, jnp.int32),
        jnp.full(num_rows, -1, jnp.int32),
    )
    return jax.lax.fori_loop(jnp.int32(0), count, add_row, state)[3]
