"""What a configuration costs: python -m seem_jax.benchmark --suite=operations --config=configs/focalt.py

Suite `operations` compiles the parts at full size without running them, and prints a flat dictionary:
operations in GFLOP (2 per multiply-add) by the compiler's cost analysis, and the bytes of its
temporaries. That analysis counts the body of a loop once: the matrix products and convolutions of
every further turn of a loop of known length are added here, from the traced program. Simulated rounds
are counted by themselves and taken `ROUNDS` times, the mean of 0 to max_rounds = 5.

Suite `data` measures how fast records become training examples; see benchmark_data.py. Suite
`interactive` compares the interactive evaluation with a loop at batch 1; see benchmark_interactive.py.
Suite `checkpoint` measures what saving costs; see benchmark_checkpoint.py.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax.sharding import Mesh

from seem_jax import (
    benchmark_checkpoint,
    benchmark_data,
    benchmark_interactive,
    interaction,
    sharding,
)
from seem_jax import config as config_lib
from seem_jax.config import Config, DataConfig
from seem_jax.config_flag import CONFIG
from seem_jax.models.seem import SEEM, build, class_logits, mask_logits, remember
from seem_jax.training import state as states
from seem_jax.training.step import Vocabulary, make_train_step
from seem_jax.types import Batch, MaskRefs, Memory, Objects, Phrases, VisualPrompts

SUITE = flags.DEFINE_list(
    "suite", ["operations"], "What to measure: operations, data, interactive, checkpoint."
)
JSON = flags.DEFINE_string("json", None, "File to write the figures to.")

ROUNDS = 2.5
CLICK_POINTS = (64, 1024)  # drawn points of an interactive session, few and as many as officially
NUM_CLASSES = 134  # COCO panoptic and "no object"


@dataclasses.dataclass(frozen=True)
class Cost:
    flop: float
    temp_bytes: int


def operations(config: Config) -> dict[str, float]:
    """GFLOP and temporary bytes of one image at config.data.image_size, part by part."""
    config = copy.deepcopy(config)
    config.data.batch_size = 1
    config.mesh = config_lib.MeshConfig(1, 1, 1)
    model, mesh = build(config.model), sharding.make_mesh(config.mesh, jax.devices()[:1])
    params = jax.tree.map(_shape, states.merge(states.abstract(model, config, mesh)))
    images = _images(config.data)
    features = jax.eval_shape(functools.partial(_encode, model), params, images)

    costs = {
        "encode": measure(functools.partial(_encode, model), params, images),
        "decode": _decode_cost(model, params, features),
        **{
            f"click_{points}": _click_cost(model, params, features, points)
            for points in CLICK_POINTS
        },
    }
    costs["click"] = costs[f"click_{max(CLICK_POINTS)}"]
    costs["round"] = _round_cost(model, config, params, features)
    costs["train_step_without_rounds"] = _step_cost(model, config, mesh)
    step, one_round = costs["train_step_without_rounds"], costs["round"]

    figures: dict[str, float] = {}
    for name, cost in costs.items():
        figures[f"{name}/gflop"] = cost.flop / 1e9
        figures[f"{name}/temp_bytes"] = cost.temp_bytes
    figures["train_step/gflop_per_image"] = (step.flop + ROUNDS * one_round.flop) / 1e9
    figures["train_step/temp_bytes"] = step.temp_bytes
    return figures


def _encode(model: SEEM, params, images):
    return model.apply({"params": params}, images, method="encode_image")


def _decode_cost(model: SEEM, params, features) -> Cost:
    """Of the object queries: names and masks at stride 4."""

    def decode(params, features, table):
        objects = model.apply({"params": params}, features, method="decode").object
        names = class_logits(objects.class_embedding, table, params["logit_scale"])
        return names, mask_logits(objects.mask_embedding, features)

    table = jax.ShapeDtypeStruct((NUM_CLASSES, model.config.text.projection), np.float32)
    return measure(decode, params, features, table)


def _click(model: SEEM, params, features, prompts, memory):
    """(memory, mask logits) of drawn prompts on an encoded image; the object queries rest."""
    variables, number = {"params": params}, memory.valid.shape[1]
    visual = model.apply(variables, features, prompts, number, method="encode_prompts")
    outputs = model.apply(variables, features, None, visual, memory, objects=False, method="decode")
    memory = remember(outputs, visual)
    return memory, mask_logits(memory.mask_embedding, features)


def _click_cost(model: SEEM, params, features, points: int) -> Cost:
    memory = _memory(features, 1, model.config.decoder.width)
    return measure(functools.partial(_click, model), params, features, _prompts(points), memory)


def _round_cost(model: SEEM, config: Config, params, features) -> Cost:
    """Of a round of training: all prompts of an image, and the clicks that follow."""

    def one_round(params, features, prompts, memory, truth, prompted):
        memory, logits = _click(model, params, features, prompts, memory)
        return memory, interaction.next_clicks(logits, truth, prompted)

    data, number = config.data, config.data.max_prompts
    points = data.max_points + config.max_rounds * number * interaction.POINTS_PER_CLICK
    area = (1, number, data.image_size, data.image_size)
    return measure(
        one_round,
        params,
        features,
        _prompts(points),
        _memory(features, number, config.model.decoder.width),
        jax.ShapeDtypeStruct(area, bool),
        jax.ShapeDtypeStruct(area, np.uint8),
    )


def _step_cost(model: SEEM, config: Config, mesh: Mesh) -> Cost:
    """Of a training step without simulated rounds."""
    config = dataclasses.replace(config, max_rounds=0)
    step = make_train_step(model, config, mesh)
    state = states.abstract(model, config, mesh)
    with sharding.use(mesh):
        return measure(step, state, _batch(config.data), _vocabulary(config))


def measure(function: Callable, *arguments) -> Cost:
    """Compiles a function for abstract arguments; see the top of this file for what is counted."""
    jitted = function if hasattr(function, "lower") else jax.jit(function)
    compiled = jitted.lower(*arguments).compile()
    repeated = loop_flop(jax.make_jaxpr(function)(*arguments).jaxpr)
    return Cost(
        flop=compiled.cost_analysis()["flops"] + repeated,
        temp_bytes=compiled.memory_analysis().temp_size_in_bytes,
    )


def loop_flop(jaxpr) -> float:
    """Operations of matrix products and convolutions in all turns of loops but the first."""
    total = 0.0
    for equation in jaxpr.eqns:
        for inner in _inner(equation):
            total += loop_flop(inner)
            if equation.primitive.name == "scan":
                total += (equation.params["length"] - 1) * (product_flop(inner))
    return total


def product_flop(jaxpr) -> float:
    """Operations of the matrix products and convolutions of a traced program, loops unrolled once."""
    total = 0.0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            depth = math.prod(shape[axis] for axis in contracted)
            total += 2.0 * depth * math.prod(equation.outvars[0].aval.shape)
        elif name == "conv_general_dilated":
            kernel, out = equation.invars[1].aval, equation.outvars[0].aval
            channels = equation.params["dimension_numbers"].rhs_spec[0]
            per_output = math.prod(kernel.shape) // kernel.shape[channels]
            total += 2.0 * per_output * math.prod(out.shape)
        total += sum(product_flop(inner) for inner in _inner(equation))
    return total


def _inner(equation) -> list:
    """The programs inside an equation: bodies of loops, branches, calls."""
    found = []
    for value in equation.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            item = getattr(item, "jaxpr", item)
            if hasattr(item, "eqns"):
                found.append(item)
    return found


def _shape(leaf):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _images(data: DataConfig):
    return jax.ShapeDtypeStruct((1, data.image_size, data.image_size, 3), np.uint8)


def _prompts(points: int) -> VisualPrompts:
    return VisualPrompts(
        points=jax.ShapeDtypeStruct((1, points, 2), np.float32),
        prompt=jax.ShapeDtypeStruct((1, points), np.int32),
        positive=jax.ShapeDtypeStruct((1, points), bool),
        valid=jax.ShapeDtypeStruct((1, points), bool),
    )


def _memory(features, number: int, width: int) -> Memory:
    return Memory(
        mask_embedding=jax.ShapeDtypeStruct((1, number, width), features.mask.dtype),
        valid=jax.ShapeDtypeStruct((1, number), bool),
    )


def _batch(data: DataConfig) -> Batch:
    """The shapes of a training batch of one image."""

    def array(dtype, *shape):
        return jax.ShapeDtypeStruct((1, *shape), dtype)

    def refs(number):
        return MaskRefs(
            plane=array(np.int32, number),
            select=array(np.uint8, number),
            value=array(np.uint8, number),
            valid=array(bool, number),
        )

    size, phrases, tokens = data.image_size, data.max_phrases, data.max_phrase_tokens
    return Batch(
        sample_id=array(np.int32),
        image=array(np.uint8, size, size, 3),
        image_size=array(np.int32, 2),
        planes=array(np.uint8, data.num_planes, size, size),
        objects=Objects(masks=refs(data.max_objects), label=array(np.int32, data.max_objects)),
        phrases=Phrases(
            token_ids=array(np.int32, phrases, tokens),
            token_valid=array(bool, phrases, tokens),
            masks=refs(phrases),
            group=array(np.int32, phrases),
            is_class=array(bool),
            prompt=array(np.int32, phrases),
        ),
        strokes=_prompts(data.max_points),
        prompt_masks=refs(data.max_prompts),
    )


def _vocabulary(config: Config) -> Vocabulary:
    """The shapes of the class names, in one template; encoded beforehand where text is frozen."""
    shape = (NUM_CLASSES, 1, config.data.max_phrase_tokens)
    sentences = None
    if "text" in config.optimizer.frozen:
        sentences = jax.ShapeDtypeStruct((*shape[:2], config.model.text.projection), jnp.float32)
    return Vocabulary(
        token_ids=jax.ShapeDtypeStruct(shape, np.int32),
        token_valid=jax.ShapeDtypeStruct(shape, bool),
        sentences=sentences,
    )


SUITES = {
    "operations": operations,
    "data": benchmark_data.run,
    "interactive": benchmark_interactive.run,
    "checkpoint": benchmark_checkpoint.run,
}


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}; see --help")
    config = CONFIG.value
    config_lib.validate(config)
    unknown = sorted(set(SUITE.value) - set(SUITES))
    if unknown:
        raise app.UsageError(f"--suite={','.join(unknown)}: choose from {sorted(SUITES)}.")
    figures: dict[str, float] = {}
    for name in SUITE.value:
        begin = time.perf_counter()
        figures |= SUITES[name](config)
        print(f"suite {name} of {config.name} took {time.perf_counter() - begin:.0f} s", flush=True)
    for name, value in figures.items():
        print(f"  {name:40s} {value:16,.2f}")
    if JSON.value:
        target = Path(JSON.value)
        aside = target.with_name(target.name + ".tmp")
        aside.write_text(json.dumps(figures, indent=2) + "\n")
        aside.replace(target)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main)
