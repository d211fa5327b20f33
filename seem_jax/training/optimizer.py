"""AdamW as the official recipe has it: schedule, multipliers, what decays, clipping, frozen parts.

Source: trainer/xdecoder_trainer.py and the SOLVER section of focalt_unicl_lang_v1.yaml. Norms and
embedding tables do not decay; biases, projections and layer scales do.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from seem_jax.config import OptimizerConfig

# Top-level entries of the parameter tree that the configuration's part names stand for. The official
# code keeps the text projection and the logit scale inside its language encoder.
PARTS = {
    "backbone": ("backbone",),
    "pixel_decoder": ("pixel_decoder",),
    "text": ("text", "text_projection", "logit_scale"),
    "decoder": ("decoder",),
}
# torch.nn.Embedding in the official release; its other learned tables are plain parameters.
EMBEDDINGS = frozenset(
    {
        "query_features",
        "query_positions",
        "level_embedding",
        "memory_features",
        "memory_positions",
        "sign_embedding",
        "token_embedding",
    }
)


def split(params: dict, frozen: tuple[str, ...]) -> tuple[dict, dict]:
    """(trainable, frozen) entries of the parameter tree. ValueError for a part that does not exist."""
    unknown = sorted(set(frozen) - set(PARTS))
    if unknown:
        raise ValueError(
            f"config.optimizer.frozen has {unknown}: expected names of {sorted(PARTS)}."
        )
    keys = {key for part in frozen for key in PARTS[part]}
    if keys >= set(params):
        raise ValueError(f"config.optimizer.frozen = {frozen}: nothing is left to train.")
    return (
        {key: value for key, value in params.items() if key not in keys},
        {key: value for key, value in params.items() if key in keys},
    )


def schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up to `learning_rate`, then steps or a cosine.

    "multistep" multiplies by decay_factor at the shares decay_at of the run; "cosine" falls to
    final_share of the peak. Step 0 already learns: it has 1 / warmup_steps of the peak.
    """
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(
            config.learning_rate, max(num_steps - config.warmup_steps, 1), config.final_share
        )
    else:
        places = {
            int(share * num_steps) - config.warmup_steps: config.decay_factor
            for share in config.decay_at
        }
        after = optax.piecewise_constant_schedule(config.learning_rate, places)
    if config.warmup_steps == 0:
        return _loose(after)
    warmup = optax.linear_schedule(
        config.learning_rate / config.warmup_steps, config.learning_rate, config.warmup_steps - 1
    )
    return _loose(optax.join_schedules([warmup, after], [config.warmup_steps]))


def decays(params: dict) -> dict:
    """bool tree like `params`: True where weight decay applies. A norm is what has a "scale"."""

    def mark(tree: dict, inside_norm: bool) -> dict:
        return {
            key: mark(value, "scale" in value)
            if isinstance(value, dict)
            else not inside_norm and key not in EMBEDDINGS
            for key, value in tree.items()
        }

    return mark(params, False)


def multipliers(params: dict, config: OptimizerConfig) -> dict:
    """float tree like `params`: the share of the learning rate of each part."""
    share = {"backbone": config.backbone_multiplier, "text": config.text_multiplier}
    by_key = {key: share.get(part, 1.0) for part, keys in PARTS.items() for key in keys}
    return {
        key: jax.tree.map(lambda _, key=key: by_key[key], value) for key, value in params.items()
    }


def make(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    """The optimizer of the trainable parameters: clip, Adam, decay, multiply, schedule.

    The update is -lr * multiplier * (adam + decay * parameter), as in torch.optim.AdamW with
    parameter groups. `clip_norm` 0 does not clip.
    """
    clip = optax.stateless(clip_by(config.clip_norm)) if config.clip_norm else optax.identity()

    def multiply(updates: Any, params: Any) -> Any:
        return jax.tree.map(
            lambda update, share: update * jnp.float32(share), updates, multipliers(params, config)
        )

    chain = optax.chain(
        clip,
        optax.scale_by_adam(b2=config.beta2),
        optax.add_decayed_weights(config.weight_decay, mask=decays),
        optax.stateless(multiply),
        optax.scale_by_learning_rate(schedule(config, num_steps)),
    )
    return optax.GradientTransformation(chain.init, _loose(chain.update))


def clip_by(norm: float) -> Callable[[Any, Any], Any]:
    """optax.clip_by_global_norm as one factor for all arrays, which fuses into what follows.

    The norm is that of `optax.tree.norm`, so a step that also reports it computes it once: on
    CPU this is a tenth of the programs that a training step consists of.
    """

    def clip(updates: Any, params: Any) -> Any:
        factor = jnp.minimum(1.0, norm / jnp.maximum(optax.tree.norm(updates), 1e-30))
        return jax.tree.map(lambda update: update * factor.astype(update.dtype), updates)

    return clip


def _loose(function: Callable) -> Callable:
    """Optax itself mixes integers and floats, which strict promotion forbids."""

    @functools.wraps(function)
    def run(*args):
        with jax.numpy_dtype_promotion("standard"):
            return function(*args)

    return run
