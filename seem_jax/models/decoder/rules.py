"""Which decoder slot may read which, in the self-attention of the decoder.

Groups: `object`, `text_query` and `visual_query` are queries that also look at the image, `memory`
too; `text_token` and `visual_token` are the prompts themselves. Official source: SELF_ATTENTION in
configs/seem/focalt_unicl_lang_{v1,v0,demo}.yaml and attention_data_struct_seem{v1,v0,demo}.py.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

_OFFICIAL = {
    "object": ("object",),
    "text_query": ("text_query", "text_token"),
    "visual_query": ("visual_query", "visual_token", "memory"),
    "memory": ("memory",),
    "text_token": ("text_query", "text_token"),
    "visual_token": ("visual_token",),
}

TABLES = {
    "official": _OFFICIAL,
    # The official demo model: one group of queries, and every prompt speaks to it, all at once.
    "shared": {
        "object": ("object", "text_token", "visual_token"),
        "text_token": ("object", "text_token"),
        "visual_token": ("visual_token",),
    },
    # A click can help a phrase: its tokens and the text queries read the points drawn with it.
    "composed": {
        **_OFFICIAL,
        "text_query": ("text_query", "text_token", "visual_token"),
        "text_token": ("text_query", "text_token", "visual_token"),
    },
}

# Pairs of groups in which a slot reads only slots of its own prompt.
SAME_PROMPT = {
    ("visual_query", "visual_query"),
    ("visual_query", "visual_token"),
    ("visual_query", "memory"),
    ("memory", "memory"),
    ("visual_token", "visual_token"),
    ("text_token", "visual_token"),
}


@dataclasses.dataclass(frozen=True)
class Group:
    """The slots of one group: the prompt each belongs to (-1: none), and which are not padding."""

    prompt: Any  # int32 [B, n]
    valid: Any  # bool [B, n]


def self_attention_reads(rows: dict[str, Group], columns: dict[str, Group], table: str):
    """bool [B, N_rows, N_columns], True where the row may read the column; groups in dict order.

    Nobody reads padding. A text query reads the points of those prompts that were given with one
    of the phrases, in tables that let it read points at all.
    """
    if table not in TABLES:
        raise ValueError(f"unknown rule table {table!r}; choose from {sorted(TABLES)}.")
    return jnp.concatenate(
        [
            jnp.concatenate(
                [_block(name, row, other, columns, table) for other in columns], axis=-1
            )
            for name, row in rows.items()
        ],
        axis=-2,
    )


def _block(name, row, other, columns, table):
    column = columns[other]
    shape = (row.prompt.shape[0], row.prompt.shape[1], column.prompt.shape[1])
    if other not in TABLES[table][name]:
        return jnp.zeros(shape, bool)
    reads = jnp.broadcast_to(column.valid[:, None, :], shape)
    if (name, other) in SAME_PROMPT:
        reads = reads & (row.prompt[:, :, None] == column.prompt[:, None, :])
    if (name, other) == ("text_query", "visual_token"):
        text = columns["text_token"]
        given = (column.prompt[:, :, None] == text.prompt[:, None, :]) & text.valid[:, None, :]
        reads = reads & given.any(-1)[:, None, :]
    if name == "text_token":  # a padded sentence position reads nothing, as officially
        reads = reads & row.valid[:, :, None]
    return reads
