"""The SEEM decoder: slots look at the image and read each other, layer by layer.

Zou et al. 2023 (arXiv 2304.06718), section 3; numbers as modeling/interface/seem_v1.py of the
official release, with the exact rewrites of the design: attention masks from mask features resized
once to each level, image keys and values projected once per image, visual tokens as keys and values
only, and only the groups that were asked for. `tests/plain_decoder.py` is the definition without
them.

The layers are called one by one, or (scan_layers) by a loop whose body is a turn over the levels, so
that XLA compiles a third of the layers of the official decoder. The parameters lie by layer in both.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from seem_jax.config import NUM_LEVELS, DecoderConfig
from seem_jax.kernels.resize import shrink
from seem_jax.models.decoder.layer import DecoderLayer, LayerInputs
from seem_jax.models.decoder.rules import TABLES, Group, self_attention_reads
from seem_jax.models.decoder.slots import default_query_index, offsets, spread_memory
from seem_jax.models.prompts.visual import read_points
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


class Decoder(nn.Module):
    """Parameters and steps of the decoder. `text_width` is the width V of the text space.

    With scan_layers, what is kept of each layer (`Features.keys` and `.values`, those of `KeptTokens`) has
    an entry for each level instead, with the turns as its first axis.
    """

    config: DecoderConfig
    text_width: int
    attention: str = ""
    dtype: jnp.dtype = jnp.float32
    scan_layers: bool = False

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

    def _of_layers(self, function):
        """[function(layer, its level) of each layer]; or of each level, for all turns at once."""
        if not self._scans():
            return [function(layer, i % NUM_LEVELS) for i, layer in enumerate(self.layers)]
        return [
            jax.vmap(lambda params, level=level: function(self._layer(params), level))(params)
            for level, params in enumerate(self._turns())
        ]

    def _layer(self, params):
        """A layer of its own, which a transformation of JAX may call."""
        layer = DecoderLayer(self.config, self.attention, self.dtype, parent=None)
        return layer.bind({"params": params})

    def _turns(self):
        """Of each level the parameters of its layers, with the turns as first axis."""
        params = self.variables["params"]
        layers = [params[f"layer_{i}"] for i in range(self.config.num_layers)]
        return [
            jax.tree.map(lambda *turns: jnp.stack(turns), *layers[level::NUM_LEVELS])
            for level in range(NUM_LEVELS)
        ]

    def _scans(self):
        return self.scan_layers and not self.is_initializing()  # parameters are made by name

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
        keys_values = self._of_layers(
            lambda layer, level: layer.image_keys_values(
                flat[level], positions[level], marks[level]
            )
        )
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

        def keys_values(layer, level):
            k, v = layer.token_keys_values(tokens.levels[level].astype(self.dtype))
            return by_prompt(k, 2), by_prompt(v, 2)

        kept = self._of_layers(keys_values)
        valid = by_prompt(prompts.valid, 1)
        positive = valid & by_prompt(prompts.positive, 1)
        return KeptTokens(
            keys=tuple(k for k, _ in kept),
            values=tuple(v for _, v in kept),
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

        def advance(decoder, layer, level, x, mask_embedding, own: LayerInputs):
            """(x after a layer, what the answering slots then say)."""
            owner = own.memory_owner
            last = _level_logits(mask_embedding, features.mask_levels[level], memory, owner)
            looked = layer.look(
                x[:, :num_looking], x_positions[:, :num_looking], own.keys, own.values, last
            )
            x = jnp.concatenate([looked, x[:, num_looking:]], axis=1)
            present = dict(groups)
            if memory is not None:
                known = jnp.take_along_axis(memory.valid, owner, axis=1)
                present["memory"] = Group(prompt=owner, valid=known)
            if isinstance(visual, KeptTokens):
                reads = self_attention_reads(present, present, config.rules)
                kept = own.kept_keys, own.kept_values, visual.valid
                x = layer.read_kept(x, x_positions, reads, lookers["visual_query"], kept)
            else:
                tokens = None if visual is None else visual.levels[level].astype(x.dtype)
                columns = _columns(x, x_positions, present, tokens, visual)
                reads = self_attention_reads(present, columns[2], config.rules)
                x = layer.read(x, x_positions, *columns[:2], reads)
            return x, decoder.predict(x[:, :num_answering])

        first = self.predict(x[:, :num_answering])
        inputs = self._inputs(features, visual, memory_index)
        through = self._in_turns if self._scans() else self._one_by_one
        answers = through(advance, x, first, inputs)
        if not every_layer:
            answers = jax.tree.map(lambda part: part[-1:], answers)
        return _organise(*answers, lookers, visual, config)

    def _inputs(self, features, visual, memory_index) -> list[LayerInputs]:
        """Of each layer; or of each level, with the turns as first axis."""
        nothing = [None] * len(features.keys)
        kept = isinstance(visual, KeptTokens)
        if memory_index is None:
            owners = nothing
        elif self._scans():
            owners = [memory_index[level::NUM_LEVELS] for level in range(NUM_LEVELS)]
        else:
            owners = list(memory_index)
        parts = zip(
            features.keys,
            features.values,
            owners,
            visual.keys if kept else nothing,
            visual.values if kept else nothing,
            strict=True,
        )
        return [LayerInputs(*part) for part in parts]

    def _one_by_one(self, advance, x, first, inputs):
        """The predictions before the first and after each layer, with a first axis for them."""
        answers = [first]
        for i, layer in enumerate(self.layers):
            x, answer = advance(self, layer, i % NUM_LEVELS, x, answers[-1][0], inputs[i])
            answers.append(answer)
        return jax.tree.map(lambda *parts: jnp.stack(parts), *answers)

    def _in_turns(self, advance, x, first, inputs):
        """The same by a loop, each turn of which passes one layer of every level."""
        empty, variables = self.unbind()  # no module of outside may be called inside the loop

        def turn(carry, given):
            x, mask_embedding = carry
            decoder, answers = empty.bind(variables), []
            for level, (params, own) in enumerate(given):
                layer = decoder._layer(params)
                x, answer = advance(decoder, layer, level, x, mask_embedding, own)
                answers.append(answer)
                mask_embedding = answer[0]
            return (x, mask_embedding), jax.tree.map(lambda *parts: jnp.stack(parts), *answers)

        given = list(zip(self._turns(), inputs, strict=True))
        _, answers = jax.lax.scan(turn, (x, first[0]), given)
        return jax.tree.map(
            lambda start, later: jnp.concatenate([start[None], later.reshape(-1, *start.shape)]),
            first,
            answers,
        )

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


def _columns(x, positions, groups, tokens, visual):
    """(columns [B, C, D], their positions, their groups) of self-attention: the slots, then drawn tokens."""
    if tokens is None:
        return x, positions, groups
    return (
        jnp.concatenate([x, tokens], axis=1),
        jnp.concatenate([positions, jax.lax.stop_gradient(tokens)], axis=1),
        {**groups, "visual_token": Group(prompt=visual.prompt, valid=visual.valid)},
    )


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


def _organise(masks, classes, lookers, visual, config) -> Outputs:
    """masks [L, B, N, D] and classes [L, B, N, V] of all answering slots, by group."""

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
