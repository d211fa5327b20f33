"""Focal-T v1 decoder against the numbers of the official release (../shared/parity): seg, grounding,
spatial and iterative, each output of each layer, with weights from the recipe."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seem_jax.interaction import next_clicks
from seem_jax.models.seem import mask_logits, remember, text_tokens
from seem_jax.types import TextTokens, VisualPrompts
from tests.parity_support import focal_t, golden, recipe
from tests.plain_decoder import plain_decode

TOLERANCE = 1e-3  # relative rms of decoder outputs (parity README)


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


def check_attention_bits(stored, name, margin, blocked):
    """Equal bits, except where the official logit lay within 1e-3 of zero."""
    report = recipe().compare(stored, name, np.asarray(blocked))
    assert report["mismatch"] * report["elements"] <= margin[2], (name, report)


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


def check_layers(stored, prefix, values):
    """values [L, ...]: prediction k is stored as <prefix>/k, the last as <prefix>/final."""
    last = len(values) - 1
    for k, value in enumerate(values):
        check(stored, f"{prefix}/{k if k < last else 'final'}", value)


def class_logits_of(params, embedding, table):
    from seem_jax.models.seem import class_logits

    with jax.default_matmul_precision("highest"):
        return class_logits(embedding, table, params["logit_scale"])


def check_slots(stored, outputs, params, features, groups, table):
    names = {
        "object": ("pred_masks", "pred_captions"),
        "text": ("pred_gmasks", "pred_gtexts"),
        "visual": ("pred_smasks", "pred_stexts"),
    }
    with jax.default_matmul_precision("highest"):
        for group in groups:
            part = getattr(outputs, group)
            masks, texts = names[group]
            check_layers(stored, masks, mask_logits(part.mask_embedding, features))
            if f"{texts}/final/shape" in stored:
                check_layers(stored, texts, part.class_embedding)
    if outputs.object is not None:
        logits = class_logits_of(params, outputs.object.class_embedding, table)
        check_layers(stored, "pred_logits", logits)


def check_plain(stored, params, features, **inputs):
    """The plain decoder: hidden states of every block, and every attention mask."""
    levels = [
        level - params["decoder"]["level_embedding"][i][None, None, None]
        for i, level in enumerate(features.levels)
    ]
    with jax.default_matmul_precision("highest"):
        out = plain_decode(
            params["decoder"], focal_t()[0].config.decoder, features.mask, levels, **inputs
        )
    for kind in ("cross", "self", "ffn"):
        for i, hidden in enumerate(out[kind]):
            check(stored, f"hidden/{kind}/{i}", hidden.transpose(1, 0, 2))
    for i, blocked in enumerate(out["attn_mask"]):
        check_attention_bits(stored, f"attn_mask/{i}", stored["attn_margin"][i], blocked)
    return out


def test_objects(model_and_features):
    model, params, features = model_and_features
    stored = golden("seg")
    outputs = decode(model, params, features, every_layer=True)
    check_slots(stored, outputs, params, features, ["object"], class_table())
    check_plain(stored, params, features)


def grounding_text(stored):
    tokens = recipe_array(stored, "grounding_tokens")
    padding = recipe().unpack_bits(stored, "grounding_nonzero_mask")
    return tokens, padding


def recipe_array(stored, name):
    shape = tuple(stored[name + "/shape"])
    assert stored[name + "/values"].size == np.prod(shape), f"{name} is stored only in part"
    return stored[name + "/values"].reshape(shape)


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
    outputs = decode(model, params, features, text=text, every_layer=True)
    check_slots(stored, outputs, params, features, ["object", "text"], class_table())
    check_plain(stored, params, features, text=text)
    for b, (ids, mask) in enumerate(phrases):
        tokens, _ = encode_phrases(model, params, ids)
        last = mask.astype(int).sum(-1) - 1
        sentence = np.asarray(tokens)[np.arange(len(ids)), last]
        embedding = np.asarray(outputs.text.class_embedding[-1, b])

        def unit(x):
            return x / (np.linalg.norm(x, axis=-1, keepdims=True) + 1e-7)

        similarity = np.exp(1.0) * unit(embedding) @ unit(sentence).T
        check(stored, f"match/{b}/similarity", similarity)
        np.testing.assert_array_equal(similarity.argmax(0), stored[f"match/{b}/query"])


def test_drawn_prompts(model_and_features):
    model, params, features = model_and_features
    stored = golden("spatial")
    masks = [
        [recipe().unpack_bits(stored, f"{s}_mask/{b}") for b in range(2)] for s in ("pos", "neg")
    ]
    prompts = prompts_from_masks(*masks)
    query_index = jnp.asarray(np.tile(stored["query_index"], (2, 1)), jnp.int32)
    with jax.default_matmul_precision("highest"):
        visual = model.apply({"params": params}, features, prompts, 3, method="encode_prompts")
    outputs = decode(
        model, params, features, visual=visual, every_layer=True, query_index=query_index
    )
    check_slots(stored, outputs, params, features, ["object", "visual"], class_table())
    check_layers(stored, "pred_smaskembs", outputs.visual.mask_embedding)
    check(stored, "pred_pspatials/final", visual.pooled)
    previous = mask_logits(remember(outputs, visual).mask_embedding, features)
    check(stored, "prev_mask", previous)
    check_plain(stored, params, features, prompts=prompts, num_prompts=3, query_index=query_index)


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

        prompted = np.zeros_like(truth)
        for b, n in enumerate(counts):
            prompted[b, :n] = pos[b] | neg[b]
        points, positive, valid, after = next_clicks(
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
