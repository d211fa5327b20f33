"""Softmax attention over the pixels a slot sees. One door; "xla" is the definition."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def _xla(q, k, v, sees):
    scores = jnp.einsum("bane,base->bans", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(sees[:, None], scores * (q.shape[-1] ** -0.5), -1e30)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bans,base->bane", weights, v)


IMPLEMENTATIONS = {"xla": _xla}


def masked_attention(q, k, v, sees, *, implementation: str | None = None):
    """Attention of slots to pixels; float [B, A, N, E].

    q is float [B, A, N, E], k and v are float [B, A, S, E], sees is bool [B, N, S], the same for all
    heads. A slot that sees nothing attends everywhere (Mask2Former, Cheng et al. 2022). Softmax and
    scores are float32.
    """
    sees = sees | ~sees.any(-1, keepdims=True)
    name = implementation or "xla"
    if name not in IMPLEMENTATIONS:
        raise ValueError(
            f"unknown masked attention {name!r}; choose from {sorted(IMPLEMENTATIONS)}."
        )
    return IMPLEMENTATIONS[name](q, k, v, sees)
