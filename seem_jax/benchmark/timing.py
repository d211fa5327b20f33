"""Suites `forward`, `click`, `round` and `train_step`: how long this machine takes.

Rates stand beside those of a plain matrix product measured in the same run. Operations are counted as
in suite `operations`; for training at the official size, utilisation counts useful work only.
"""

from __future__ import annotations

import jax
import numpy as np

from seem_jax import sharding
from seem_jax.benchmark import inputs
from seem_jax.benchmark.clock import Budget, figures, plain_product, times
from seem_jax.benchmark.costs import compiled, product_flop
from seem_jax.benchmark.operations import CLICK_POINTS, ROUNDS
from seem_jax.benchmark.programs import Parts, Program, parts
from seem_jax.config import Config
from seem_jax.training import state as states

# GFLOP per image that a training step of configs/focalt.py needs at 1024x1024; what it computes
# beyond that, a second time for the gradient for example, is no useful work.
USEFUL_TRAINING = {("focalt", 1024): 1520.0}


def forward(config: Config, budget: Budget) -> dict[str, float]:
    """The maps of the encoders, with what the decoder keeps of them, and all segments with their names.

    For each batch size.
    """
    measured, plain = parts(config), plain_product(config.model.dtype, budget)
    found = {"forward/plain_product_gflop_per_second": plain}
    for batch in budget.batches:
        for name, program in {
            "maps": measured.maps(batch),
            "encode": measured.encode(batch),
            "panoptic": measured.panoptic(batch),
        }.items():
            key = f"forward/{name}" + (f"_{batch}" if batch > 1 else "")
            found |= _timed(key, program, budget, plain)
            found[f"{key}/images_per_second"] = 1e3 * batch / found[f"{key}/p50_ms"]
    return found


def click(config: Config, budget: Budget) -> dict[str, float]:
    """A click on an encoded image, with few and with many points drawn before."""
    measured, plain = parts(config), plain_product(config.model.dtype, budget)
    found = {"click/plain_product_gflop_per_second": plain}
    for points in CLICK_POINTS:
        found |= _timed(f"click/{points}_points", measured.click(points), budget, plain)
    return found


def one_round(config: Config, budget: Budget) -> dict[str, float]:
    """A simulated round of training, all prompts of an image, with the clicks that follow."""
    measured, plain = parts(config), plain_product(config.model.dtype, budget)
    found = {"round/plain_product_gflop_per_second": plain}
    batch = inputs.batch(measured.config.data)
    program = measured.one_round()
    *rest, truth, _ = inputs.fill(program.arguments)
    truth = jax.numpy.asarray(batch.planes[:, :1] == batch.prompt_masks.value[:, :, None, None])
    nothing = jax.numpy.zeros(truth.shape, jax.numpy.uint8)
    return found | _timed("round", program, budget, plain, (*rest, truth, nothing))


def train_step(config: Config, budget: Budget) -> dict[str, float]:
    """A whole step, for each batch size; the number of its rounds is drawn as in training.

    `<key>/rounds_<number>/p50_ms` is the median of the steps that had so many rounds.
    """
    measured, plain = parts(config), plain_product(config.model.dtype, budget)
    found = {"train_step/plain_product_gflop_per_second": plain}
    rounds = ROUNDS * _flop(measured.one_round()) if measured.config.max_rounds else 0.0
    for batch in budget.batches:
        found |= _train(measured, batch, budget, plain, batch * rounds)
    return found


def _train(
    measured: Parts, batch: int, budget: Budget, plain: float, rounds: float
) -> dict[str, float]:
    key = "train_step" + (f"_{batch}" if batch > 1 else "")
    config, mesh = measured.config, measured.mesh
    with sharding.use(mesh):
        program = measured.train_step(rounds=True, batch=batch)
        flop = _flop(measured.train_step(rounds=False, batch=batch)) + rounds
        state = states.create(measured.model, config, mesh, jax.random.key(config.seed))
        given = sharding.put_batch(inputs.batch(config.data, batch), mesh)
        names = inputs.fill(program.arguments[2])
        step = program.function.lower(state, given, names).compile()
        memory = step.memory_analysis()

        rounds_of_runs: list[int] = []

        def run():
            nonlocal state
            state, metrics = step(state, given, names)
            rounds_of_runs.append(int(metrics["num_rounds"]))
            return metrics

        seconds = times(run, budget)
    useful = USEFUL_TRAINING.get((config.name, config.data.image_size))
    flop = min(flop, useful * 1e9 * batch) if useful else flop
    found = figures(key, seconds, flop, plain)
    found[f"{key}/images_per_second"] = batch / float(seconds.mean())
    found[f"{key}/useful_gflop"] = flop / 1e9
    found[f"{key}/temp_bytes"] = memory.temp_size_in_bytes
    drawn = np.array(rounds_of_runs[1:])  # the first run does not count
    for number in sorted(set(drawn.tolist())):
        found[f"{key}/rounds_{number}/p50_ms"] = 1e3 * float(np.median(seconds[drawn == number]))
    return found


def _flop(program: Program) -> float:
    return product_flop(jax.make_jaxpr(program.function)(*program.arguments).jaxpr)


def _timed(
    key: str, program: Program, budget: Budget, plain: float, arguments: tuple | None = None
) -> dict[str, float]:
    run, cost = compiled(program.function, *program.arguments)
    arguments = inputs.fill(program.arguments) if arguments is None else arguments
    seconds = times(lambda: run(*arguments), budget)
    return figures(key, seconds, cost.flop, plain) | {f"{key}/temp_bytes": cost.temp_bytes}
