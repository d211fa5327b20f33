"""The SEEM decoder without any rewrite: the definition that `seem_jax.models.decoder` is tested against.

Full-resolution mask logits resized to each level, keys and values projected in every layer, drawn
points read from projected maps, visual tokens carried as slots. Plain functions over the parameter
tree; float32. Order of slots as in the official release: object, text_query, visual_query,
text_token, visual_token, memory.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from seem_jax.nn.positions import sine_positions


def dense(p, x):
    return x @ p["kernel"] + p["bias"][(None,) * (x.ndim - 1)]


def norm(p, x):
    mean = x.mean(-1, keepdims=True)
    var = jnp.square(x - mean).mean(-1, keepdims=True)
    axes = (None,) * (x.ndim - 1)
    return (x - mean) / jnp.sqrt(var + 1e-5) * p["scale"][axes] + p["bias"][axes]


def mlp(p, x):
    for i in range(len(p)):
        x = dense(p[f"dense_{i}"], x)
        x = jax.nn.relu(x) if i + 1 < len(p) else x
    return x


def attention(p, queries, keys, values, blocked, heads):
    """torch MultiheadAttention with a boolean mask; a fully blocked row gives zero weights."""

    def split(x):
        return x.reshape(*x.shape[:2], heads, -1)

    q, k, v = (
        split(dense(p[n], x)) for n, x in zip(("query", "key", "value"), (queries, keys, values))
    )
    scores = jnp.einsum("bqae,bkae->baqk", q, k) / np.sqrt(q.shape[-1]).astype(np.float32)
    scores = jnp.where(blocked[:, None], -jnp.inf, scores)
    weights = jnp.nan_to_num(jax.nn.softmax(scores, axis=-1))
    out = jnp.einsum("baqk,bkae->bqae", weights, v)
    return dense(p["out"], out.reshape(*out.shape[:2], -1))


def grid_sample(maps, points):
    """[B, h, w, D] at points [B, K, 2] in [0, 1], aligned corners."""
    h, w = maps.shape[1:3]
    x, y = points[..., 0] * (w - 1), points[..., 1] * (h - 1)
    x0, y0 = jnp.clip(jnp.floor(x), 0, w - 1), jnp.clip(jnp.floor(y), 0, h - 1)
    out = 0.0
    for dy in (0, 1):
        for dx in (0, 1):
            xi = jnp.clip(x0 + dx, 0, w - 1).astype(jnp.int32)
            yi = jnp.clip(y0 + dy, 0, h - 1).astype(jnp.int32)
            weight = (1 - jnp.abs(x - (x0 + dx))) * (1 - jnp.abs(y - (y0 + dy)))
            value = jnp.stack([maps[b, yi[b], xi[b]] for b in range(maps.shape[0])])
            out = out + weight[..., None] * value
    return out


def plain_decode(
    params,
    config,
    mask,
    levels,
    *,
    text=None,
    prompts=None,
    num_prompts=0,
    previous=None,
    query_index=None,
    memory_index=None,
    objects=True,
):
    """Every intermediate of a forward pass, as lists over layers.

    params: the "decoder" tree. mask [B, h, w, D]; levels coarse to fine. text: types.TextTokens.
    prompts: types.VisualPrompts. previous: mask logits [B, P, h, w] of the last round.
    Gives dict(mask_embedding, class_embedding, mask_logits, attn_mask, sizes, pooled).
    """
    heads = config.num_heads
    batch, h4, w4, d = mask.shape
    sources, sines = [], []
    for i, level in enumerate(levels):
        level = level + params["level_embedding"][i][None, None, None]
        sources.append(level)
        sines.append(
            jnp.asarray(sine_positions(*level.shape[1:3], d), jnp.float32).reshape(1, -1, d)
        )

    def repeat(x):
        return jnp.broadcast_to(x, (batch, *x.shape))

    slots, positions = {}, {}
    shared = config.rules == "shared"  # the object queries answer every prompt
    wanted = {"object": objects or shared, "text_query": text is not None and not shared}
    for name in [name for name, present in wanted.items() if present]:
        slots[name] = repeat(params["query_features"])
        positions[name] = repeat(params["query_positions"])
    per = config.queries_per_prompt
    pooled = None
    if prompts is not None:
        if not shared:
            slots["visual_query"] = params["query_features"][query_index]
            positions["visual_query"] = params["query_positions"][query_index]
        at_points = grid_sample(mask, prompts.points)
        pooled = []
        for b in range(batch):
            rows = []
            for n in range(num_prompts):
                member = prompts.valid[b] & prompts.positive[b] & (prompts.prompt[b] == n)
                some = at_points[b][np.asarray(member)]
                rows.append(some.mean(0) if len(some) else jnp.full(d, config.empty_pooled))
            pooled.append(jnp.stack(rows))
        pooled = jnp.stack(pooled)
    if previous is not None:
        slots["memory"] = repeat(params["memory_features"])
        positions["memory"] = repeat(params["memory_positions"])
    tokens = {}
    if text is not None:
        tokens["text_token"] = text.tokens
        positions["text_token"] = text.tokens

    def predict(x):
        x = norm(params["norm"], x)
        embedding = mlp(params["mask_mlp"], x)
        return (
            embedding,
            x @ params["class_embedding"],
            jnp.einsum("bnd,bhwd->bnhw", embedding, mask),
        )

    def blocked_at(logits, size):
        small = jax.image.resize(logits, (*logits.shape[:2], *size), "bilinear", antialias=False)
        return (jax.nn.sigmoid(small) < 0.5).reshape(*logits.shape[:2], -1)

    def cat(parts):
        return jnp.concatenate(list(parts.values()), axis=1)

    looking = list(slots)
    out = {k: [] for k in ("mask_embedding", "class_embedding", "mask_logits", "attn_mask")}

    def record(next_layer):
        embedding, classes, logits = predict(cat({n: slots[n] for n in looking}))
        out["mask_embedding"].append(embedding)
        out["class_embedding"].append(classes)
        out["mask_logits"].append(logits)
        out["attn_mask"].append(blocked_at(logits, sources[next_layer % 3].shape[1:3]))

    record(0)
    for i in range(config.num_layers):
        p, level = params[f"layer_{i}"], i % 3
        blocked = out["attn_mask"][-1]
        if previous is not None:
            size = sources[level].shape[1:3]
            remembered = blocked_at(previous, size)
            owner = memory_index[i]
            chosen = jnp.take_along_axis(remembered, owner[:, :, None], axis=1)
            blocked = jnp.concatenate([blocked[:, : -chosen.shape[1]], chosen], axis=1)
        blocked = blocked & ~blocked.all(-1, keepdims=True)
        x = cat({n: slots[n] for n in looking})
        place = cat({n: positions[n] for n in looking})
        pixels = sources[level].reshape(batch, -1, d)
        x = norm(
            p["cross_norm"],
            x
            + attention(
                p["cross_attention"], x + place, pixels + sines[level], pixels, blocked, heads
            ),
        )
        start = 0
        for name in looking:
            n = slots[name].shape[1]
            slots[name] = x[:, start : start + n]
            start += n

        if prompts is not None:
            projected = sources[level] @ params[f"point_projection_{level}"]
            sign = params["sign_embedding"][jnp.where(prompts.positive, 0, 1)]
            sign = jnp.where(prompts.valid[..., None], sign, 0.0)
            tokens["visual_token"] = grid_sample(projected, prompts.points) + sign
            positions["visual_token"] = tokens["visual_token"]
        everything = {n: slots[n] for n in looking if n != "memory"} | tokens
        if "memory" in slots:
            everything["memory"] = slots["memory"]
        x, place = cat(everything), cat({n: positions[n] for n in everything})
        reads = _reads(
            everything, text, prompts, per, memory_index[i] if previous is not None else None
        )
        x = norm(
            p["self_norm"],
            x + attention(p["self_attention"], x + place, x + place, x, ~reads, heads),
        )
        x = norm(p["feed_forward_norm"], x + mlp(p["feed_forward"], x))
        start = 0
        for name, value in everything.items():
            n = value.shape[1]
            (slots if name in slots else tokens)[name] = x[:, start : start + n]
            start += n
        record(i + 1)
    out["pooled"] = pooled
    out["sizes"] = {n: slots[n].shape[1] for n in looking}
    return out


def _reads(everything, text, prompts, per, owner):
    """The official table, written out pair by pair. bool [B, N, N]."""
    names = {n: i for i, n in enumerate(everything)}
    starts = np.cumsum([0] + [v.shape[1] for v in everything.values()])
    batch = next(iter(everything.values())).shape[0]
    reads = np.zeros((batch, starts[-1], starts[-1]), bool)

    def put(row, column, value):
        r, c = names[row], names[column]
        reads[:, starts[r] : starts[r + 1], starts[c] : starts[c + 1]] = value

    if "object" in names:
        put("object", "object", True)
    shared = "object" in names and not {"text_query", "visual_query"} & set(names)
    if text is not None:
        valid = np.asarray(text.valid)
        queries = "object" if shared else "text_query"
        put(queries, queries, True)
        put(queries, "text_token", valid[:, None, :])
        put("text_token", queries, valid[:, :, None])
        put("text_token", "text_token", valid[:, :, None] & valid[:, None, :])
    if prompts is not None and shared:
        valid = np.asarray(prompts.valid)
        put("object", "visual_token", valid[:, None, :])
        token = np.where(valid, np.asarray(prompts.prompt), -1)
        put("visual_token", "visual_token", token[:, :, None] == token[:, None, :])
    if prompts is not None and not shared:
        count = everything["visual_query"].shape[1]
        query = np.repeat(np.arange(count // per), per)[None].repeat(batch, 0)
        token = np.where(np.asarray(prompts.valid), np.asarray(prompts.prompt), -1)
        put("visual_query", "visual_query", query[:, :, None] == query[:, None, :])
        put("visual_query", "visual_token", query[:, :, None] == token[:, None, :])
        put("visual_token", "visual_token", token[:, :, None] == token[:, None, :])
        if owner is not None:
            owner = np.asarray(owner)
            put("visual_query", "memory", query[:, :, None] == owner[:, None, :])
            put("memory", "memory", owner[:, :, None] == owner[:, None, :])
    return jnp.asarray(reads)
