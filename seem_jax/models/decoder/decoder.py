"""The SEEM decoder: slots look at the image and read each other, layer by layer.

Zou et al. 2023 (arXiv 2304.06718), section 3; numbers as modeling/interface/seem_v1.py of the
official release, with the exact rewrites of the design: attention masks from mask features resized
once to each level, image keys and values projected once per image, visual tokens as keys and values
only, and only the groups that were asked for. `tests/plain_decoder.py` is the definition without
them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from seem_jax.config import DecoderConfig
from seem_jax.kernels.resize import shrink
from seem_jax.models.decoder.rules import TABLES, Group, self_attention_reads
from seem_jax.models.decoder.slots import default_query_index, offsets, spread_memory
from seem_jax.models.prompts.visual import read_points
from seem_jax.nn.attention import Attention
from seem_jax.nn.blocks import MLP, LayerNorm, fan_in_normal
from seem_jax.nn.positions import sine_positions
from seem_jax.types import (
    Features,
    KeptTokens,
    Memory,
    Outputs,
    SlotOutputs,
    TextTokens,
    VisualPrompts,
    VisualTokens,
)

NUM_LEVELS = 3


class DecoderLayer(nn.Module):
    """Slots look at pixels, read each other, then pass a feed-forward; norms after the residuals."""

    config: DecoderConfig
    attention: str
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        width, heads = self.config.width, self.config.num_heads
        self.cross_attention = Attention(width, heads, self.dtype)
        self.self_attention = Attention(width, heads, self.dtype)
        self.feed_forward = MLP((self.config.mlp_width, width), dtype=self.dtype)
        self.cross_norm = LayerNorm(dtype=self.dtype)
        self.self_norm = LayerNorm(dtype=self.dtype)
        self.feed_forward_norm = LayerNorm(dtype=self.dtype)

    def image_keys_values(self, pixels, positions, mark):
        """What this layer needs of an image, [B, A, S, E] twice; the same in every round.

        mark [D] is the embedding of the level, which the pixels [B, S, D] do not hold yet.
        """
        return self.cross_attention.keys_values(pixels + positions, pixels, mark)

    def look(self, slots, positions, keys, values, mask_logits):
        """Slots [B, N, D] after looking at the pixels of their last mask (logits [B, N, S])."""
        update = self.cross_attention.look(
            slots + positions, keys, values, mask_logits, self.attention or None
        )
        return self.cross_norm(slots + update)

    def read(self, slots, positions, columns, column_positions, reads):
        """Slots [B, N, D] after reading columns [B, C, D] and the feed-forward."""
        update = self.self_attention(slots + positions, columns + column_positions, columns, reads)
        return self._pass_on(slots, update)

    def read_kept(self, slots, positions, reads, span, kept):
        """`read`, where the columns are the slots and the rows of `span` also read kept tokens."""
        given = slots + positions
        return self._pass_on(
            slots, self.self_attention.with_kept(given, given, slots, reads, span, kept)
        )

    def token_keys_values(self, tokens):
        """The keys and values [B, A, K, E] of drawn tokens [B, K, D], which are their own positions."""
        return self.self_attention.keys_values(tokens + tokens, tokens)

    def _pass_on(self, slots, update):
        slots = self.self_norm(slots + update)
        return self.feed_forward_norm(slots + self.feed_forward(slots))


class Decoder(nn.Module):
    """Parameters and steps of the decoder. `text_width` is the width V of the text space."""

    config: DecoderConfig
    text_width: int
    attention: str = ""
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        config, width = self.config, self.config.width

        def table(name, rows):
            init = nn.with_logical_partitioning(nn.initializers.normal(1.0), (None, "embed"))
            return self.param(name, init, (rows, width))

        self.query_features = table("query_features", config.num_object_queries)
        self.query_positions = table("query_positions", config.num_object_queries)
        self.level_embedding = table("level_embedding", NUM_LEVELS)
        self.memory_features = table("memory_features", config.num_memory)
        self.memory_positions = table("memory_positions", config.num_memory)
        self.sign_embedding = table("sign_embedding", 2)
        square = nn.with_logical_partitioning(fan_in_normal, ("embed", None))
        self.point_projections = [
            self.param(f"point_projection_{level}", square, (width, width))
            for level in range(NUM_LEVELS)
        ]
        self.class_embedding = self.param("class_embedding", square, (width, self.text_width))
        self.norm = LayerNorm(dtype=self.dtype)
        self.mask_mlp = MLP((width, width, width), dtype=self.dtype)
        for layer in range(config.num_layers):
            setattr(self, f"layer_{layer}", DecoderLayer(config, self.attention, self.dtype))

    @property
    def layers(self):
        return [getattr(self, f"layer_{layer}") for layer in range(self.config.num_layers)]

    def prepare(self, mask, levels) -> Features:
        """All that later calls need of an image: mask [B, h, w, D], levels coarse to fine."""
        b, _, _, d = mask.shape
        marked, flat, positions, mask_levels = [], [], [], []
        marks = self.level_embedding.astype(mask.dtype)
        if self.config.explicit_positions:
            mask = mask + jnp.asarray(sine_positions(*mask.shape[1:]), mask.dtype)[None]
        for index, level in enumerate(levels):
            h, w = level.shape[1:3]
            flat.append(level.reshape(b, h * w, d))
            marked.append(level + marks[index][None, None, None])
            sine = jnp.asarray(sine_positions(h, w, d), level.dtype)
            positions.append(sine.reshape(1, h * w, d))
            # Resizing is linear: resize(embedding . features) == embedding . resize(features).
            mask_levels.append(shrink(mask, mask.shape[1] // h).reshape(b, h * w, d))
        keys_values = [
            layer.image_keys_values(
                flat[i % NUM_LEVELS], positions[i % NUM_LEVELS], marks[i % NUM_LEVELS]
            )
            for i, layer in enumerate(self.layers)
        ]
        return Features(
            mask=mask,
            levels=tuple(marked),
            mask_levels=tuple(mask_levels),
            keys=tuple(k for k, _ in keys_values),
            values=tuple(v for _, v in keys_values),
        )

    def read_points(
        self, features: Features, prompts: VisualPrompts, num_prompts: int, located=None
    ) -> VisualTokens:
        """The tokens of drawn points; see `SEEM.encode_prompts`."""
        if not self.config.explicit_positions:
            located = None
        elif located is None:
            located = jnp.ones((features.mask.shape[0], num_prompts), bool)
        return read_points(
            features,
            prompts,
            num_prompts,
            self.point_projections,
            self.sign_embedding,
            self.config.empty_pooled,
            located,
            self.config.opposed_points,
        )

    def keep_points(
        self, features: Features, prompts: VisualPrompts, num_prompts: int
    ) -> KeptTokens:
        """The tokens of drawn points as every layer reads them; rows n p ... n p + n - 1 of the points
        [B, P n, 2] belong to prompt p."""
        tokens = self.read_points(features, prompts, num_prompts)

        def by_prompt(array, axis):
            shape = array.shape
            return array.reshape(*shape[:axis], num_prompts, -1, *shape[axis + 1 :])

        keys_values = [
            layer.token_keys_values(tokens.levels[i % NUM_LEVELS].astype(self.dtype))
            for i, layer in enumerate(self.layers)
        ]
        valid = by_prompt(prompts.valid, 1)
        positive = valid & by_prompt(prompts.positive, 1)
        return KeptTokens(
            keys=tuple(by_prompt(k, 2) for k, _ in keys_values),
            values=tuple(by_prompt(v, 2) for _, v in keys_values),
            valid=valid,
            pooled=tokens.pooled,
            count=positive.sum(-1, keepdims=True, dtype=jnp.int32).astype(jnp.float32),
            prompt_valid=tokens.prompt_valid,
        )

    def predict(self, slots):
        """(mask embedding [B, N, D], class embedding [B, N, V]) of slots [B, N, D]."""
        normed = self.norm(slots)
        return self.mask_mlp(normed), normed @ self.class_embedding.astype(normed.dtype)

    def __call__(
        self,
        features: Features,
        text: TextTokens | None = None,
        visual: VisualTokens | KeptTokens | None = None,
        memory: Memory | None = None,
        *,
        objects: bool = True,
        every_layer: bool = False,
        query_index=None,
        memory_index=None,
    ) -> Outputs:
        """The answers of the groups asked for; see `SEEM.decode`."""
        config = self.config
        batch = features.mask.shape[0]
        if memory is not None and visual is None:
            raise ValueError(
                "memory was given without visual prompts: memory answers belong to them."
            )
        if memory is not None and "memory" not in TABLES[config.rules]:
            raise ValueError(f"memory was given, but config.rules = {config.rules!r} has none.")
        alone = text is None and "visual_query" in TABLES[config.rules]
        if isinstance(visual, KeptTokens) and not alone:
            raise ValueError(
                "kept tokens are for the slots of their own prompt; text, and "
                f"config.rules = {config.rules!r} without visual queries, need all tokens: read_points."
            )
        slots, positions, groups = self._start(
            batch, text, visual, memory, objects=objects, query_index=query_index
        )
        if not slots:
            raise ValueError("decode was given nothing to do: objects=False, no text, no visual.")
        lookers = offsets({name: value.shape[1] for name, value in slots.items()})
        x = jnp.concatenate(list(slots.values()), axis=1)  # [B, N, D]
        x_positions = jnp.concatenate(list(positions.values()), axis=1)
        num_looking = x.shape[1]
        # Memory looks last, and what it would predict is never read.
        num_answering = num_looking if memory is None else lookers["memory"].start
        if text is not None:
            tokens = text.tokens.astype(x.dtype)
            x = jnp.concatenate([x, tokens], axis=1)
            x_positions = jnp.concatenate([x_positions, jax.lax.stop_gradient(tokens)], axis=1)
            groups["text_token"] = Group(prompt=text.prompt, valid=text.valid)
        if memory is not None and memory_index is None:
            spread = spread_memory(memory.valid, config.num_memory)
            memory_index = jnp.broadcast_to(spread, (config.num_layers, *spread.shape))

        answers = [self.predict(x[:, :num_answering])]
        for i, layer in enumerate(self.layers):
            level = i % NUM_LEVELS
            owner = None if memory is None else memory_index[i]
            last = _level_logits(answers[-1][0], features.mask_levels[level], memory, owner)
            looked = layer.look(
                x[:, :num_looking],
                x_positions[:, :num_looking],
                features.keys[i],
                features.values[i],
                last,
            )
            x = jnp.concatenate([looked, x[:, num_looking:]], axis=1)
            if memory is not None:
                known = jnp.take_along_axis(memory.valid, owner, axis=1)
                groups["memory"] = Group(prompt=owner, valid=known)
            x = self._read(i, x, x_positions, groups, visual, lookers)
            answers.append(self.predict(x[:, :num_answering]))
        return _organise(answers if every_layer else answers[-1:], lookers, visual, config)

    def _read(self, i, x, x_positions, groups, visual, lookers):
        """Slots [B, N, D] after layer i has read slots and drawn tokens."""
        layer, rules = self.layers[i], self.config.rules
        if isinstance(visual, KeptTokens):
            reads = self_attention_reads(groups, groups, rules)
            kept = visual.keys[i], visual.values[i], visual.valid
            return layer.read_kept(x, x_positions, reads, lookers["visual_query"], kept)
        columns, column_positions, column_groups = x, x_positions, dict(groups)
        if visual is not None:
            tokens = visual.levels[i % NUM_LEVELS].astype(x.dtype)
            columns = jnp.concatenate([columns, tokens], axis=1)
            column_positions = jnp.concatenate(
                [column_positions, jax.lax.stop_gradient(tokens)], axis=1
            )
            column_groups["visual_token"] = Group(prompt=visual.prompt, valid=visual.valid)
        reads = self_attention_reads(groups, column_groups, rules)
        return layer.read(x, x_positions, columns, column_positions, reads)

    def _start(self, batch, text, visual, memory, *, objects, query_index):
        """First features, positions and groups of the slots that look at the image."""

        def repeat(rows):
            rows = rows.astype(self.dtype)
            return jnp.broadcast_to(rows, (batch, *rows.shape))

        def group(count):
            prompt = jnp.full((batch, count), -1, jnp.int32)
            return Group(prompt=prompt, valid=jnp.ones((batch, count), bool))

        config = self.config
        slots, positions, groups = {}, {}, {}
        number, table = config.num_object_queries, TABLES[config.rules]
        wanted = [("object", objects), ("text_query", text is not None)]
        if "text_query" not in table:  # the object queries answer the prompts
            wanted = [("object", objects or text is not None or visual is not None)]
        for name in [name for name, present in wanted if present]:
            slots[name] = repeat(self.query_features)
            positions[name] = repeat(self.query_positions)
            groups[name] = group(number)
        if visual is not None and "visual_query" in table:
            per_prompt, num_prompts = config.queries_per_prompt, visual.pooled.shape[1]
            if query_index is None:
                query_index = default_query_index(num_prompts, per_prompt, number)
                query_index = jnp.broadcast_to(jnp.asarray(query_index), (batch, len(query_index)))
            slots["visual_query"] = self.query_features.astype(self.dtype)[query_index]
            positions["visual_query"] = self.query_positions.astype(self.dtype)[query_index]
            owner = jnp.repeat(jnp.arange(num_prompts, dtype=jnp.int32), per_prompt)
            owner = jnp.broadcast_to(owner, (batch, len(owner)))
            groups["visual_query"] = Group(prompt=owner, valid=jnp.ones(owner.shape, bool))
        if memory is not None:
            slots["memory"] = repeat(self.memory_features)
            positions["memory"] = repeat(self.memory_positions)
            groups["memory"] = group(config.num_memory)
        return slots, positions, groups


def _level_logits(mask_embedding, mask_level, memory, owner):
    """float32 [B, N, S]: the last predicted mask of each slot, at one level; no gradient.

    Memory slots, the last ones, have the mask that the last round gave to their prompt (`owner`,
    int32 [B, 32]).
    """

    def logits(embedding):
        embedding = embedding.astype(mask_embedding.dtype)
        given = jax.lax.stop_gradient((embedding, mask_level))
        return jnp.einsum("bnd,bsd->bns", *given, preferred_element_type=jnp.float32)

    if memory is None:
        return logits(mask_embedding)
    said = jnp.take_along_axis(logits(memory.mask_embedding), owner[:, :, None], axis=1)
    return jnp.concatenate([logits(mask_embedding), said], axis=1)


def _organise(answers, lookers, visual, config) -> Outputs:
    masks = jnp.stack([mask for mask, _ in answers])  # [L, B, N, D]
    classes = jnp.stack([embedding for _, embedding in answers])  # [L, B, N, V]

    def group(name):
        if name not in lookers:
            return None
        part = lookers[name]
        return SlotOutputs(mask_embedding=masks[:, :, part], class_embedding=classes[:, :, part])

    text, answers_prompts = group("text_query"), group("visual_query")
    if "visual_query" not in TABLES[config.rules]:
        text = answers_prompts = group("object")
    choice = None
    if visual is not None:
        choice = choose_visual(answers_prompts.mask_embedding[-1], visual.pooled, config)
    return Outputs(object=group("object"), text=text, visual=answers_prompts, visual_choice=choice)


def choose_visual(mask_embedding, pooled, config: DecoderConfig):
    """int32 [B, P]: for each prompt the one of its own slots most like the pooled prompt.

    Rules without visual queries let every prompt choose among all slots.
    """
    b, n, d = mask_embedding.shape
    if "visual_query" not in TABLES[config.rules]:
        similarity = jnp.einsum("bqd,bpd->bpq", mask_embedding.astype(jnp.float32), pooled)
        return jnp.argmax(similarity, axis=-1).astype(jnp.int32)
    own = mask_embedding.reshape(b, n // config.queries_per_prompt, config.queries_per_prompt, d)
    similarity = jnp.einsum("bpqd,bpd->bpq", own.astype(jnp.float32), pooled)
    start = jnp.arange(own.shape[1], dtype=jnp.int32)[None] * config.queries_per_prompt
    return start + jnp.argmax(similarity, axis=-1).astype(jnp.int32)
