"""What the backward pass keeps of the forward pass, and what it computes again: memory against time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from seem_jax.config import ModelConfig
from seem_jax.models.seem import SEEM

POLICIES: dict[str, Callable | None] = {
    # Keeps the results of products with weights; norms, activations and attention weights come again.
    "products": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    # Keeps what goes into a part (image encoder, text encoder, decoder); all of it comes again.
    "parts": jax.checkpoint_policies.nothing_saveable,
}


class Rematerialised:
    """A model whose parts forget what the policy says; the same results."""

    def __init__(self, model: SEEM, policy: Callable):
        self._model, self._policy = model, policy

    @property
    def config(self) -> ModelConfig:
        return self._model.config

    def apply(self, variables: dict, *arguments: Any, **options: Any) -> Any:
        """`SEEM.apply`. Numbers, names and None among the arguments stay static."""
        given = {f"{i}": value for i, value in enumerate(arguments)} | options
        fixed = {name: value for name, value in given.items() if _static(value)}

        def run(variables: dict, arrays: dict) -> Any:
            values = fixed | arrays
            ordered = (values[f"{i}"] for i in range(len(arguments)))
            return self._model.apply(
                variables, *ordered, **{name: values[name] for name in options}
            )

        arrays = {name: value for name, value in given.items() if name not in fixed}
        return jax.checkpoint(run, policy=self._policy)(variables, arrays)


def rematerialised(model: SEEM, name: str) -> SEEM | Rematerialised:
    """The model under the policy of config.rematerialise; "" keeps everything."""
    return Rematerialised(model, POLICIES[name]) if name else model


def _static(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))
