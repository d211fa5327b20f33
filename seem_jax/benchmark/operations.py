"""Suite `operations`: what the parts of a configuration cost, by the compiler. Nothing runs.

Keys are `<part>/gflop` (2 per multiply-add, every turn of loops counted), `<part>/temp_bytes`,
`<part>/moved_bytes` and `<part>/lines` of the program. Simulated rounds are counted by themselves and
taken `ROUNDS` times, the mean of 0 to max_rounds = 5.
"""

from __future__ import annotations

from seem_jax import sharding
from seem_jax.benchmark.costs import Cost, measure
from seem_jax.benchmark.programs import Program, parts
from seem_jax.config import Config

ROUNDS = 2.5
CLICK_POINTS = (64, 1024)  # drawn points of an interactive session, few and as many as officially


def run(config: Config) -> dict[str, float]:
    """The figures of one image at config.data.image_size, part by part."""
    measured = parts(config)
    programs = {
        "encode": measured.encode(),
        "decode": measured.decode(),
        **{f"click_{points}": measured.click(points) for points in CLICK_POINTS},
        "round": measured.one_round(),
    }
    costs = {name: cost_of(program) for name, program in programs.items()}
    costs["click"] = costs[f"click_{max(CLICK_POINTS)}"]
    with sharding.use(measured.mesh):
        costs["train_step_without_rounds"] = cost_of(measured.train_step(rounds=False))
    step, one_round = costs["train_step_without_rounds"], costs["round"]

    figures: dict[str, float] = {}
    for name, cost in costs.items():
        figures[f"{name}/gflop"] = cost.flop / 1e9
        figures[f"{name}/temp_bytes"] = cost.temp_bytes
        figures[f"{name}/moved_bytes"] = cost.moved_bytes
        figures[f"{name}/lines"] = cost.lines
    rounds = ROUNDS * one_round.flop
    figures["train_step/gflop_per_image"] = (step.flop + rounds) / 1e9
    figures["train_step/share_of_rounds"] = rounds / (step.flop + rounds)
    figures["train_step/temp_bytes"] = step.temp_bytes
    return figures


def cost_of(program: Program) -> Cost:
    return measure(program.function, *program.arguments)
