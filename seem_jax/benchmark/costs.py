"""Operations and bytes of a program by the compiler's analysis, with every turn of its loops."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax


@dataclasses.dataclass(frozen=True)
class Cost:
    flop: float  # 2 per multiply-add
    temp_bytes: int  # of temporaries while it runs, arguments and results not counted
    moved_bytes: float  # read and written; the body of a loop counts once
    lines: int  # of the program before it is compiled (StableHLO)


def measure(function: Callable, *arguments) -> Cost:
    """Compiles a function for abstract arguments and runs nothing."""
    return compiled(function, *arguments)[1]


def compiled(function: Callable, *arguments) -> tuple[Callable, Cost]:
    """(the program of a function for arguments of these shapes, its cost).

    The analysis counts the body of a loop once: the matrix products and convolutions of every further
    turn of a loop of known length are added here, from the traced program.
    """
    jitted = function if hasattr(function, "lower") else jax.jit(function)
    traced = jitted.trace(*arguments)
    lowered = traced.lower()
    program = lowered.compile()
    analysis = program.cost_analysis()
    cost = Cost(
        flop=analysis["flops"] + loop_flop(traced.jaxpr.jaxpr),
        temp_bytes=program.memory_analysis().temp_size_in_bytes,
        moved_bytes=analysis.get("bytes accessed", 0.0),
        lines=lowered.as_text().count("\n"),
    )
    return program, cost


def loop_flop(jaxpr) -> float:
    """Operations of matrix products and convolutions in all turns of loops but the first."""
    return product_flop(jaxpr, every_turn=True) - product_flop(jaxpr, every_turn=False)


def product_flop(jaxpr, *, every_turn: bool = True) -> float:
    """Operations of the matrix products and convolutions of a traced program.

    A loop of unknown length (`while`) counts once; others once, or `every_turn`. Of what depends on
    the platform the part for the default device counts.
    """
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
        turns = equation.params["length"] if every_turn and name == "scan" else 1
        total += turns * sum(
            product_flop(inner, every_turn=every_turn) for inner in _inner(equation)
        )
    return total


def _inner(equation) -> list:
    """The programs inside an equation: bodies of loops, branches, calls."""
    if platforms := equation.params.get("branches_platforms"):
        own = [p is None or jax.default_backend() in p for p in platforms]  # None: any other
        return [equation.params["branches"][own.index(True)].jaxpr]
    found = []
    for value in equation.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            item = getattr(item, "jaxpr", item)
            if hasattr(item, "eqns"):
                found.append(item)
    return found
