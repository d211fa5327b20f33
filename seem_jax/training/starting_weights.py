"""Parameters that a run starts from: those of another run, or of a converted official checkpoint."""

from __future__ import annotations

import jax
import numpy as np
from flax import traverse_util

from seem_jax.training.state import TrainState, merge

LISTED = 20  # paths in a message


def adopt(
    state: TrainState, found: dict, may_be_fresh: tuple[str, ...]
) -> tuple[TrainState, list[str]]:
    """The state with the parameters `found`, and the paths that keep their initial values.

    Those are parameters that `found` lacks or has in another shape; each must lie below a path of
    `may_be_fresh` ("decoder", "decoder/layer_0"), like each of `found` that the model lacks. Else
    raises ValueError with the paths, as for a path of may_be_fresh that the model does not have.
    Optimizer state and step stay as they are.
    """
    wanted = traverse_util.flatten_dict(merge(state), sep="/")
    given = traverse_util.flatten_dict(found, sep="/")
    if unknown := [part for part in may_be_fresh if not any(_below(p, part) for p in wanted)]:
        raise ValueError(
            f"config.may_be_fresh has {unknown}: no parameter of the model lies there; parts are "
            f"{sorted(merge(state))}."
        )
    problems = {
        path: f"not in the checkpoint, the model's is {leaf.shape}"
        if path not in given
        else f"{given[path].shape} in the checkpoint, {leaf.shape} in the model"
        for path, leaf in wanted.items()
        if path not in given or given[path].shape != leaf.shape
    }
    fresh = sorted(problems)
    problems |= {
        path: f"{given[path].shape} in the checkpoint, not in the model"
        for path in given.keys() - wanted.keys()
    }
    refused = [path for path in sorted(problems) if not any(_below(path, p) for p in may_be_fresh)]
    if refused:
        lines = [f"{path}: {problems[path]}" for path in refused[:LISTED]]
        lines += [f"and {len(refused) - LISTED} more"] if len(refused) > LISTED else []
        raise ValueError(
            f"the weights of config.start_from do not fit, in {len(refused)} parameters:\n  "
            + "\n  ".join(lines)
            + "\nTake the configuration of that checkpoint, or name in config.may_be_fresh the parts "
            "that may begin with random values."
        )
    taken = {
        path: leaf if path in problems else _placed(given[path], leaf)
        for path, leaf in wanted.items()
    }
    params = traverse_util.unflatten_dict(taken, sep="/")
    return (
        state.replace(
            trainable={name: params[name] for name in state.trainable},
            frozen={name: params[name] for name in state.frozen},
        ),
        fresh,
    )


def _below(path: str, part: str) -> bool:
    return path == part or path.startswith(part + "/")


def _placed(value: jax.Array, like: jax.Array) -> jax.Array:
    """The value where `like` lies, on one process or many, in its type."""
    whole = np.asarray(value, like.dtype)
    return jax.make_array_from_callback(like.shape, like.sharding, lambda index: whole[index])
