"""One training step: simulated rounds without gradient, one supervised pass, losses, update.

The recipe of forward_seg in the official seem_model_v1.py, as one pure function of static shapes.
All randomness comes from the seed of the configuration and the number of the step.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from seem_jax import interaction, sharding
from seem_jax.config import Config, DecoderConfig
from seem_jax.kernels import mask_planes
from seem_jax.losses import total_loss, weighted
from seem_jax.losses.regions import region_terms
from seem_jax.losses.text import normalise
from seem_jax.models.prompts.text import different_texts
from seem_jax.models.seem import SEEM, mask_logits, remember, text_tokens
from seem_jax.training import optimizer
from seem_jax.training.accumulation import accumulated
from seem_jax.training.rematerialisation import rematerialised
from seem_jax.training.state import TrainState
from seem_jax.types import (
    Array,
    Batch,
    Features,
    Memory,
    Outputs,
    TextTokens,
    VisualPrompts,
    VisualTokens,
)


@struct.dataclass
class Vocabulary:
    """The class names of a data set in every sentence template; the last class is "no object"."""

    token_ids: Array  # int32 [C, templates, J]
    token_valid: Array  # bool [C, templates, J]
    sentences: Array | None  # float32 [C, templates, V], computed once where text is frozen


def vocabulary(
    model: SEEM, params: dict, config: Config, token_ids: Array, token_valid: Array
) -> Vocabulary:
    """The vocabulary that steps take; with a frozen text encoder its sentences are encoded here."""
    token_ids, token_valid = jnp.asarray(token_ids), jnp.asarray(token_valid)
    sentences = None
    if "text" in config.optimizer.frozen:
        encode = jax.jit(lambda params, *text: _encode_text(model, params, *text)[1])
        sentences = encode(params, token_ids, token_valid)
    return Vocabulary(token_ids=token_ids, token_valid=token_valid, sentences=sentences)


def make_train_step(
    model: SEEM, config: Config, like: TrainState, *, decoder: bool = True
) -> Callable[[TrainState, Batch, Vocabulary], tuple[TrainState, dict[str, Array]]]:
    """step(state, batch, vocabulary) -> (state, metrics), jitted; the state given is used up.

    like is a state, or its shapes with their shardings. Without the decoder, the encoders and the heads
    alone learn: one of the first config.encoder_steps. Lower or call it inside `sharding.use(mesh)`. metrics are float32 scalars: "loss", one per loss
    term, "grad_norm", "update_norm", "learning_rate", "num_rounds", counts. A step whose loss, gradient
    or update is not finite changes nothing but the step number, so the next one draws other random
    numbers, and has metrics["finite"] == 0. The schedule counts the steps that changed something.
    """
    tx = optimizer.make(config.optimizer, config.num_steps)
    rate = optimizer.schedule(config.optimizer, config.num_steps)
    shardings = jax.tree.map(lambda x: x.sharding, like)
    mesh = like.step.sharding.mesh
    learner = model.clone(scan_layers=True) if config.scan_layers else model
    learner = rematerialised(learner, config.rematerialise)

    def step(state: TrainState, batch: Batch, names: Vocabulary):
        """(state after the step, metrics); see above."""
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)

        def loss(trainable: dict, batch: Batch, key: Array):
            params = sharding.gather(
                {**trainable, **state.frozen}, {**shardings.trainable, **shardings.frozen}
            )
            return loss_and_metrics(
                learner, config, mesh, params, batch, names, key, decoder=decoder
            )

        (value, metrics), grads = accumulated(
            jax.value_and_grad(loss, has_aux=True),
            state.trainable,
            batch,
            key,
            parts=config.accumulate,
            mesh=mesh,
        )
        # Left alone, XLA chooses other shardings for gradients than those of the parameters.
        grads = jax.lax.with_sharding_constraint(grads, shardings.trainable)
        updates, opt_state = tx.update(grads, state.opt_state, state.trainable)
        norm = optax.tree.norm(grads)
        change = optax.tree.norm(updates)  # not finite where moments of the optimizer are not
        finite = jnp.isfinite(value) & jnp.isfinite(norm) & jnp.isfinite(change)
        after = (optax.apply_updates(state.trainable, updates), opt_state)
        before = (state.trainable, state.opt_state)
        trainable, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old), after, before
        )
        after = TrainState(
            step=state.step + 1, trainable=trainable, frozen=state.frozen, opt_state=opt_state
        )
        applied = optax.tree.get_all_with_path(before[1], "count")[0][1]
        metrics |= {
            "loss": value,
            "grad_norm": norm,
            "update_norm": change,
            "learning_rate": jnp.asarray(rate(applied), jnp.float32),
            "finite": finite.astype(jnp.float32),
        }
        return after, metrics

    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, sharding.replicated(mesh)))


def loss_and_metrics(
    model: SEEM,
    config: Config,
    mesh: Mesh | None,
    params: dict,
    batch: Batch,
    names: Vocabulary,
    key: Array,
    *,
    decoder: bool = True,
) -> tuple[Array, dict[str, Array]]:
    """(loss, metrics) of a batch; pure, so tests may differentiate it.

    The official recipe and the auxiliary losses of true segments; the latter alone without the decoder,
    whose terms are not among the metrics then.
    """
    keys = jax.random.split(key, 6)
    batch = jax.tree.map(jnp.asarray, batch)
    features = model.apply({"params": params}, batch.image, keys[0], method="encode_image")
    table = class_table(model, params, names, keys[1])
    if not config.loss.names_train_text:
        table = jax.lax.stop_gradient(table)
    text, phrase_embedding = encode_phrases(model, params, batch, config.data.max_texts)
    loss, metrics = jnp.float32(0), {}
    if decoder:
        outputs, visual, num_rounds = _answers(
            model, params, features, text, batch, config, keys[2], keys[3]
        )
        loss, metrics = total_loss(
            outputs,
            visual,
            features,
            batch,
            table,
            phrase_embedding,
            params["logit_scale"],
            config.loss,
            keys[4],
            mesh=mesh,
        )
        metrics = {**metrics, "num_rounds": num_rounds.astype(jnp.float32)}
    regions = region_terms(
        lambda slots: model.apply({"params": params}, slots, method="answer"),
        features,
        batch,
        table,
        phrase_embedding,
        params["logit_scale"],
        config.loss,
        keys[5],
        positions=config.model.decoder.explicit_positions,
    )
    metrics |= {name: value.mean() for name, value in regions.items()}
    return loss + weighted(regions, config.loss), metrics


def _answers(
    model: SEEM,
    params: dict,
    features: Features,
    text: TextTokens,
    batch: Batch,
    config: Config,
    for_rounds: Array,
    for_slots: Array,
) -> tuple[Outputs, VisualTokens, Array]:
    """(outputs of all layers, visual tokens, number of rounds): the rounds, then the last pass."""
    variables, num_prompts = {"params": params}, batch.prompt_masks.valid.shape[1]
    located = _draw_located(jax.random.fold_in(for_slots, 1), batch, config)
    prompts, memory, num_rounds = simulate_rounds(
        model, params, features, batch, config, for_rounds, located
    )
    visual = model.apply(
        variables, features, prompts, num_prompts, located, method="encode_prompts"
    )
    query_index, memory_index = draw_slots(for_slots, memory.valid, config.model.decoder)
    outputs = model.apply(
        variables,
        features,
        text,
        visual,
        memory,
        every_layer=True,
        query_index=query_index,
        memory_index=memory_index,
        method="decode",
    )
    return outputs, visual, num_rounds


def _draw_located(key: Array, batch: Batch, config: Config) -> Array | None:
    """bool [B, P], which drawn prompts say where they are; None where all do, or none can."""
    if not config.model.decoder.explicit_positions or config.location_dropout == 0:
        return None
    return jax.random.uniform(key, batch.prompt_masks.valid.shape) >= config.location_dropout


def class_table(model: SEEM, params: dict, names: Vocabulary, key: Array) -> Array:
    """float32 [C, V], normalised: each class name in one template, drawn at random per class."""
    classes, templates, _ = names.token_ids.shape
    chosen = jax.random.randint(key, (classes,), 0, templates)
    row = jnp.arange(classes)
    if names.sentences is not None:
        return normalise(names.sentences[row, chosen])
    ids, valid = names.token_ids[row, chosen], names.token_valid[row, chosen]
    return normalise(_encode_text(model, params, ids, valid)[1])


def encode_phrases(
    model: SEEM, params: dict, batch: Batch, max_texts: int
) -> tuple[TextTokens, Array]:
    """(the different texts as decoder tokens, the embeddings of all phrases float32 [B, G, V]).

    Phrases of equal text are encoded and read once, as officially (seem_model_v1.py, prepare_targets).
    """
    phrases = batch.phrases
    rows, valid, text_of = different_texts(phrases.group, phrases.masks.valid, max_texts)
    ids, token_valid = (
        jnp.take_along_axis(x, rows[:, :, None], axis=1)
        for x in (phrases.token_ids, phrases.token_valid)
    )
    tokens, sentence = _encode_text(model, params, ids, token_valid)
    prompt = jnp.take_along_axis(phrases.prompt, rows, axis=1)
    return (
        text_tokens(tokens, token_valid, valid, prompt),
        jnp.take_along_axis(sentence, text_of[:, :, None], axis=1),
    )


def simulate_rounds(
    model: SEEM,
    params: dict,
    features: Features,
    batch: Batch,
    config: Config,
    key: Array,
    located: Array | None = None,
) -> tuple[VisualPrompts, Memory, Array]:
    """The drawings after 0 to max_rounds corrected answers, the last answer, and how many rounds.

    A round decodes the visual prompts and clicks where each answer is most wrong. No gradient flows
    back. The number of rounds is one for the whole batch, uniform, as officially; without any, the
    memory is not valid. located as for `SEEM.encode_prompts`.
    """
    params, features = jax.lax.stop_gradient((params, features))
    variables = {"params": params}
    size, num_prompts = batch.image.shape[1:3], batch.prompt_masks.valid.shape[1]
    truth = mask_planes.dense(batch.planes, batch.prompt_masks)  # [B, P, H, W]
    first_row = batch.strokes.valid.shape[1]
    rows_per_round = num_prompts * interaction.POINTS_PER_CLICK
    nothing = Memory(
        mask_embedding=jnp.zeros(
            (*truth.shape[:2], config.model.decoder.width), features.mask.dtype
        ),
        valid=jnp.zeros(truth.shape[:2], bool),
    )
    if config.max_rounds == 0:
        return batch.strokes, nothing, jnp.int32(0)

    def one_round(number: Array, carry: tuple[VisualPrompts, Array, Memory]):
        """(prompts, what they marked, memory) after one more answer and the click that corrects it."""
        prompts, prompted, memory = carry
        visual = model.apply(
            variables, features, prompts, num_prompts, located, method="encode_prompts"
        )
        query_index, memory_index = draw_slots(
            jax.random.fold_in(key, number), memory.valid, config.model.decoder
        )
        outputs = model.apply(
            variables,
            features,
            None,
            visual,
            memory,
            objects=False,
            query_index=query_index,
            memory_index=memory_index,
            method="decode",
        )
        memory = remember(outputs, visual)
        logits = mask_logits(memory.mask_embedding, features)  # [B, P, h, w]
        points, positive, valid, prompted = interaction.next_clicks(
            logits, truth, prompted, config.round_stop_iou
        )
        offset = first_row + number * rows_per_round
        prompts = interaction.append_points(prompts, points, positive, valid, offset)
        return prompts, prompted, memory

    for_count, key = jax.random.split(key)
    num_rounds = jax.random.randint(for_count, (), 0, config.max_rounds + 1)
    prompted = interaction.prompted_mask(batch.strokes, num_prompts, *size)
    prompts = interaction.reserve(batch.strokes, config.max_rounds, num_prompts)
    prompts, _, memory = jax.lax.fori_loop(0, num_rounds, one_round, (prompts, prompted, nothing))
    return prompts, memory, num_rounds


def draw_slots(key: Array, prompt_valid: Array, config: DecoderConfig) -> tuple[Array, Array]:
    """Random (query_index, memory_index) for `SEEM.decode`, as the official release draws them.

    Visual slots copy any object queries, the same in all images; in each layer the memory slots are
    shared out among the valid prompts of an image by chance, in prompt order.
    """
    batch, num_prompts = prompt_valid.shape
    for_queries, for_memory = jax.random.split(key)
    count = num_prompts * config.queries_per_prompt
    query_index = jax.random.randint(for_queries, (count,), 0, config.num_object_queries)
    logits = jnp.where(prompt_valid, 0.0, -1e9).astype(jnp.float32)  # finite: all may be invalid
    drawn = jax.random.categorical(
        for_memory,
        logits[None, :, None, :],
        shape=(config.num_layers, batch, config.num_memory),
    )
    return jnp.broadcast_to(query_index, (batch, count)), jnp.sort(drawn, axis=-1).astype(jnp.int32)


def _encode_text(
    model: SEEM, params: dict, token_ids: Array, token_valid: Array
) -> tuple[Array, Array]:
    """(tokens [..., J, V], sentence [..., V]) of ids [..., J]."""
    *outer, length = token_ids.shape
    tokens, sentence = model.apply(
        {"params": params},
        token_ids.reshape(-1, length),
        token_valid.reshape(-1, length),
        method="encode_text",
    )
    return tokens.reshape(*outer, length, -1), sentence.reshape(*outer, -1)
