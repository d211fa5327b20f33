"""The groups of decoder slots: how they start and where they lie.

Slots that look at the image come first, in the order object, text_query, visual_query, memory; the
text tokens follow. Visual tokens are no slots: nothing reads what they become, so they are only
keys and values (design, rewrite 2).
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np


def default_query_index(num_prompts: int, per_prompt: int, num_queries: int) -> np.ndarray:
    """int32 [P * per_prompt], which object queries the visual queries copy when nothing is drawn at
    random. The same for every prompt, so a prompt's answer depends on no other prompt."""
    spread = np.linspace(0, num_queries, per_prompt, endpoint=False).astype(np.int32)
    return np.tile(spread, num_prompts)


def spread_memory(valid, num_memory: int):
    """int32 [B, num_memory], the prompt of each memory slot: evenly over the valid prompts.

    valid is bool [B, P]. With n valid prompts slot j serves the (j * n // num_memory)-th of them, so
    padding changes nothing. Without any, all slots serve prompt 0, which nobody reads.
    """
    number = valid.sum(-1, dtype=jnp.int32)  # [B]
    rank = (jnp.arange(num_memory, dtype=jnp.int32)[None] * number[:, None]) // num_memory  # [B, m]
    order = jnp.cumsum(valid.astype(jnp.int32), axis=-1) - 1  # [B, P], rank of a valid prompt
    here = (order[:, None, :] == rank[:, :, None]) & valid[:, None, :]  # [B, m, P]
    return jnp.argmax(here, axis=-1).astype(jnp.int32)


def offsets(sizes: dict[str, int]) -> dict[str, slice]:
    """Where each group lies when the groups are concatenated in dict order."""
    out, start = {}, 0
    for name, size in sizes.items():
        out[name] = slice(start, start + size)
        start += size
    return out
