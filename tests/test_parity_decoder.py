"""Focal-T v1 decoder against the numbers of the official release (../shared/parity): seg, grounding,
spatial and iterative, each output of each layer, with weights from the recipe."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from seem_jax.config import load_config
from seem_jax.interaction import next_clicks
from seem_jax.losses.text import phrase_logits
from seem_jax.models.seem import build, class_logits, initialise, mask_logits, remember
from seem_jax.types import TextTokens, VisualPrompts
from tests.parity_support import converted, golden, need_material, recipe
from tests.plain_decoder import plain_decode

TOLERANCE = 1e-3  # relative rms of decoder outputs (parity README)


@functools.cache
def focal_t():
    """(model, parameters) of Focal-T v1 with the weights of the recipe."""
    need_material()
    config = load_config(Path(__file__).parents[1] / "configs" / "focalt.py").model
    config.decoder.rules = "official"
    model = build(config)
    shapes = nn.unbox(jax.eval_shape(lambda key: initialise(model, key), jax.random.key(0)))
    return model, jax.tree.map(jnp.asarray, converted(shapes))


@pytest.fixture(scope="module")
def model_and_features():
    model, params = focal_t()
    images = recipe().make_batch(2023, 2, 256, 320).transpose(0, 2, 3, 1)
    with jax.default_matmul_precision("highest"):
        encode = jax.jit(lambda p, x: model.apply({"params": p}, x, method="encode_normalised"))
        return model, params, encode(params, images)


def check(stored, name, array, tolerance=TOLERANCE):
    report = recipe().compare(stored, name, np.asarray(array))
    assert report["rel_rms"] < tolerance, (name, report)


def check_attention_bits(stored, margins, blocked):
    """Our attention masks have the official bits, except where the official logit lay within 1e-3
    of zero (`attn_margin`). Returns the number of layers before the first bit that differs: later
    outputs of that run follow another mask, as the release's own do in float64."""
    same = len(blocked)
    for i, bits in enumerate(blocked):
        report = recipe().compare(stored, f"attn_mask/{i}", np.asarray(bits))
        differing = report["mismatch"] * report["elements"]
        if differing and same == len(blocked):
            assert differing <= margins[i][2], (i, report)
            same = i
    return same


def prompts_from_masks(positive, negative):
    """VisualPrompts of boolean masks per image ([objects, H, W] each), in the official order."""
    rows = []
    for pos, neg in zip(positive, negative):
        parts = [(np.argwhere(pos), True), (np.argwhere(neg), False)]
        index = np.concatenate([p for p, _ in parts])
        sign = np.concatenate([np.full(len(p), s) for p, s in parts])
        rows.append((index, sign))
    height, width = positive[0].shape[1:]
    count = max(len(index) for index, _ in rows)
    points = np.zeros((len(rows), count, 2), np.float32)
    prompt = np.zeros((len(rows), count), np.int32)
    sign = np.zeros((len(rows), count), bool)
    valid = np.zeros((len(rows), count), bool)
    for b, (index, positive_) in enumerate(rows):
        n = len(index)
        points[b, :n] = (index[:, :0:-1] / np.array([width, height])).astype(np.float32)
        prompt[b, :n], sign[b, :n], valid[b, :n] = index[:, 0], positive_, True
    return VisualPrompts(*(jnp.asarray(x) for x in (points, prompt, sign, valid)))


def decode(model, params, features, **inputs):
    static = {k: inputs.pop(k) for k in ("objects", "every_layer") if k in inputs}
    with jax.default_matmul_precision("highest"):
        return jax.jit(
            lambda p, f, inputs: model.apply({"params": p}, f, method="decode", **inputs, **static)
        )(params, features, inputs)


def class_table():
    stored = golden("text")
    rows = int(stored["classes/embeddings/shape"][0])
    model, params = focal_t()
    ids, valid = stored["classes/ids"], stored["classes/mask"].astype(bool)
    with jax.default_matmul_precision("highest"):
        _, sentence = jax.jit(
            lambda p, i, v: model.apply({"params": p}, i, v, method="encode_text")
        )(params, jnp.asarray(ids, jnp.int32), jnp.asarray(valid))
    assert sentence.shape[0] == rows
    return sentence / (jnp.linalg.norm(sentence, axis=-1, keepdims=True) + 1e-7)


def check_layers(stored, prefix, values, count=None):
    """values [L, ...]: prediction k is stored as <prefix>/k, the last as <prefix>/final. Only the
    first `count` of them are compared."""
    last = len(values) - 1
    for k, value in enumerate(values[:count]):
        check(stored, f"{prefix}/{k if k < last else 'final'}", value)


NAMES = {  # group -> official names of its masks and class embeddings
    "object": ("pred_masks", "pred_captions"),
    "text": ("pred_gmasks", "pred_gtexts"),
    "visual": ("pred_smasks", "pred_stexts"),
}


def check_predictions(stored, params, features, masks, texts, group, table, count=None):
    """Mask logits [L, B, N, h, w], class embeddings [L, B, N, V] and class logits of a group."""
    names = NAMES[group]
    check_layers(stored, names[0], masks, count)
    if f"{names[1]}/final/shape" in stored:
        check_layers(stored, names[1], texts, count)
    if group == "object":
        with jax.default_matmul_precision("highest"):
            logits = class_logits(texts, table, params["logit_scale"])
        check_layers(stored, "pred_logits", logits, count)


def check_decoder(stored, model, params, features, groups, **inputs):
    """The plain decoder layer by layer with the official attention bits, then the product's decoder
    as far as its own bits agree with them."""
    table = class_table()
    levels = [
        level - params["decoder"]["level_embedding"][i][None, None, None]
        for i, level in enumerate(features.levels)
    ]
    layers = model.config.decoder.num_layers
    bits = [jnp.asarray(recipe().unpack_bits(stored, f"attn_mask/{i}")) for i in range(layers)]
    with jax.default_matmul_precision("highest"):
        plain = plain_decode(
            params["decoder"],
            model.config.decoder,
            features.mask,
            levels,
            attention_bits=bits,
            **inputs,
        )
    for kind in ("cross", "self", "ffn"):
        for i, hidden in enumerate(plain[kind]):
            check(stored, f"hidden/{kind}/{i}", hidden.transpose(1, 0, 2))
    start = 0
    for group, size in zip(groups, plain["sizes"].values()):
        part = slice(start, start + size)
        masks = jnp.stack([m[:, part] for m in plain["mask_logits"]])
        texts = jnp.stack([c[:, part] for c in plain["class_embedding"]])
        check_predictions(stored, params, features, masks, texts, group, table)
        start += size

    if "prompts" in inputs:
        prompts, number = inputs.pop("prompts"), inputs.pop("num_prompts")
        with jax.default_matmul_precision("highest"):
            inputs["visual"] = model.apply(
                {"params": params}, features, prompts, number, method="encode_prompts"
            )
    outputs = decode(model, params, features, every_layer=True, **inputs)
    slots = [getattr(outputs, group) for group in groups]
    with jax.default_matmul_precision("highest"):
        embeddings = jnp.concatenate([s.mask_embedding for s in slots], axis=2)
        logits = mask_logits(embeddings, features)
    blocked = []
    for i in range(layers + 1):
        size = features.levels[i % 3].shape[1:3]
        small = jax.image.resize(
            logits[i], (*logits.shape[1:3], *size), "bilinear", antialias=False
        )
        blocked.append(small.reshape(*small.shape[:2], -1) < 0)
    count = check_attention_bits(stored, stored["attn_margin"], blocked) + 1
    start = 0
    for group, slot in zip(groups, slots):
        size = slot.mask_embedding.shape[2]
        masks = logits[:, :, start : start + size]
        check_predictions(
            stored, params, features, masks, slot.class_embedding, group, table, count
        )
        start += size
    return outputs, inputs.get("visual"), count > layers


def test_objects(model_and_features):
    model, params, features = model_and_features
    check_decoder(golden("seg"), model, params, features, ["object"])


def encode_phrases(model, params, ids):
    ids = jnp.asarray(ids, jnp.int32)
    with jax.default_matmul_precision("highest"):
        return model.apply({"params": params}, ids, jnp.ones(ids.shape, bool), method="encode_text")


def packed_text(model, params, ids_and_masks):
    """TextTokens in the official packing: valid tokens of all phrases in a row, padding after."""
    rows = []
    for ids, mask in ids_and_masks:
        tokens, _ = encode_phrases(model, params, ids)
        rows.append(np.asarray(tokens)[mask.astype(bool)])
    length = max(len(r) for r in rows)
    tokens = np.zeros((len(rows), length, rows[0].shape[-1]), np.float32)
    valid = np.zeros((len(rows), length), bool)
    for b, row in enumerate(rows):
        tokens[b, : len(row)], valid[b, : len(row)] = row, True
    prompt = jnp.full(valid.shape, -1, jnp.int32)
    return TextTokens(jnp.asarray(tokens), jnp.asarray(valid), prompt)


def test_phrases(model_and_features):
    model, params, features = model_and_features
    stored = golden("grounding")
    phrases = [(stored[f"tokens/{b}/ids"], stored[f"tokens/{b}/mask"]) for b in range(2)]
    text = packed_text(model, params, phrases)
    check(stored, "grounding_tokens", text.tokens.transpose(1, 0, 2), 1e-4)
    np.testing.assert_array_equal(
        recipe().unpack_bits(stored, "grounding_nonzero_mask"), ~text.valid
    )
    outputs, _, _ = check_decoder(stored, model, params, features, ["object", "text"], text=text)
    for b, (ids, mask) in enumerate(phrases):
        tokens, _ = encode_phrases(model, params, ids)
        sentence = jnp.asarray(tokens)[np.arange(len(ids)), mask.astype(int).sum(-1) - 1]
        with jax.default_matmul_precision("highest"):
            logits = phrase_logits(
                outputs.text.class_embedding[-1, b],
                outputs.text.mask_embedding[-1, b],
                sentence,
                jnp.full(len(ids), -1, jnp.int32),
                None,
                params["logit_scale"],
            )
        np.testing.assert_array_equal(logits.argmax(0), stored[f"match/{b}/query"])


def test_drawn_prompts(model_and_features):
    model, params, features = model_and_features
    stored = golden("spatial")
    masks = [
        [recipe().unpack_bits(stored, f"{s}_mask/{b}") for b in range(2)] for s in ("pos", "neg")
    ]
    outputs, visual, agrees = check_decoder(
        stored,
        model,
        params,
        features,
        ["object", "visual"],
        prompts=prompts_from_masks(*masks),
        num_prompts=3,
        query_index=jnp.asarray(np.tile(stored["query_index"], (2, 1)), jnp.int32),
    )
    check(stored, "pred_pspatials/final", visual.pooled)
    if agrees:
        check_layers(stored, "pred_smaskembs", outputs.visual.mask_embedding)
        check(stored, "prev_mask", mask_logits(remember(outputs, visual).mask_embedding, features))


def test_three_rounds_with_memory(model_and_features):
    model, params, features = model_and_features
    stored = golden("iterative")
    counts = (2, 3)
    truth = np.zeros((2, 3, 256, 320), bool)
    for b, n in enumerate(counts):
        truth[b, :n] = recipe().unpack_bits(stored, f"gt_mask/{b}")
    memory = None
    for number in range(3):
        pos, neg = (
            [recipe().unpack_bits(stored, f"round{number}/{s}_mask/{b}") for b in range(2)]
            for s in ("pos", "neg")
        )
        prompts = prompts_from_masks(pos, neg)
        options = {
            "query_index": jnp.asarray(
                np.tile(stored[f"round{number}/query_index"], (2, 1)), jnp.int32
            )
        }
        if memory is not None:
            owner = stored[f"round{number}/memory_index"][:, None].repeat(2, 1)
            options |= {"memory": memory, "memory_index": jnp.asarray(owner, jnp.int32)}
        with jax.default_matmul_precision("highest"):
            visual = model.apply({"params": params}, features, prompts, 3, method="encode_prompts")
        if memory is not None:  # officially padded prompts are remembered like real ones
            options["memory"] = memory.replace(valid=jnp.ones_like(memory.valid))
        outputs = decode(model, params, features, visual=visual, objects=False, **options)
        memory = remember(outputs, visual)
        previous = mask_logits(memory.mask_embedding, features)
        check(stored, f"round{number}/prev_mask", previous)

        prompted = np.zeros(truth.shape, np.uint8)
        for b, n in enumerate(counts):
            prompted[b, :n] = 1 * pos[b] + 2 * neg[b]
        points, positive, valid, _ = next_clicks(
            previous, jnp.asarray(truth), jnp.asarray(prompted)
        )
        for b, n in enumerate(counts):
            for p in range(n):
                for sign, start in ((True, pos[b][p]), (False, neg[b][p])):
                    want = recipe().unpack_bits(
                        stored, f"round{number + 1}/{'pos' if sign else 'neg'}_mask/{b}"
                    )[p]
                    got = start.copy()
                    if bool(positive[b, p]) == sign:
                        xy = np.asarray(points[b, p])[np.asarray(valid[b, p])]
                        column = np.rint(xy[:, 0] * 320).astype(int)
                        row = np.rint(xy[:, 1] * 256).astype(int)
                        got[row, column] = True
                    np.testing.assert_array_equal(
                        got, want, err_msg=f"round {number} {b} {p} {sign}"
                    )
