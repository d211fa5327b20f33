"""The training forward and every loss of Focal-T v1 against the release (../shared/parity, losses):
values of each layer, matching, the points used, and gradient norms, with the release's own draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seem_jax import losses
from seem_jax.config import LossConfig
from seem_jax.models.seem import mask_logits, remember, text_tokens
from seem_jax.types import Batch, MaskRefs, Objects, Phrases
from tests.parity_support import golden, recipe
from tests.test_parity_decoder import (
    check,
    class_table,
    model_and_features,  # noqa: F401 - a fixture
    prompts_from_masks,
)

LAYERS, OBJECTS, PHRASES, PROMPTS, POINTS = 10, 4, 4, 3, 512
SEED = 2023
OFFICIAL = {"object": "mask", "text": "grounding", "visual": "spatial"}
MATCH = {"object": "default", "text": "grounding", "visual": "spatial"}
DRAWN = {"object": "masks", "text": "groundings", "visual": "spatials"}
TARGETS = {"object": OBJECTS, "text": PHRASES, "visual": PROMPTS}


def bits(stored, name):
    return recipe().unpack_bits(stored, name)


def targets(stored):
    """The official targets as a Batch: overlapping masks are bits, one plane per kind."""
    planes = np.zeros((2, 3, 256, 320), np.uint8)
    counts = np.zeros((3, 2), int)
    for plane, kind in enumerate(("masks", "grounding_masks", "spatial_masks")):
        for b in range(2):
            masks = bits(stored, f"target/{b}/{kind}")
            counts[plane, b] = len(masks)
            for number, mask in enumerate(masks):
                planes[b, plane] |= mask.astype(np.uint8) << number

    def refs(plane, size):
        bit = np.tile((1 << np.arange(size)).astype(np.uint8), (2, 1))
        valid = np.arange(size)[None] < counts[plane][:, None]
        return MaskRefs(np.full((2, size), plane, np.int32), bit, bit, valid)

    def padded(name, size):
        out = np.zeros((2, size, *stored[f"target/0/{name}"].shape[1:]), np.int64)
        for b in range(2):
            values = stored[f"target/{b}/{name}"]
            out[b, : len(values)] = values
        return out

    mode = [str(stored[f"target/{b}/grounding_mode"]) == "class" for b in range(2)]
    phrases = Phrases(
        token_ids=padded("grounding_ids", PHRASES).astype(np.int32),
        token_valid=padded("grounding_mask", PHRASES).astype(bool),
        masks=refs(1, PHRASES),
        group=padded("grounding_hash", PHRASES).astype(np.int32),
        is_class=np.array(mode),
        prompt=np.full((2, PHRASES), -1, np.int32),
    )
    strokes = prompts_from_masks(
        *([bits(stored, f"{sign}_mask/{b}") for b in range(2)] for sign in ("pos", "neg"))
    )
    batch = Batch(
        sample_id=np.arange(2, dtype=np.int32),
        image=np.zeros((2, 256, 320, 3), np.uint8),
        image_size=np.full((2, 2), (256, 320), np.int32),
        planes=planes,
        objects=Objects(refs(0, OBJECTS), padded("labels", OBJECTS).astype(np.int32)),
        phrases=phrases,
        strokes=strokes,
        prompt_masks=refs(2, PROMPTS),
    )
    return jax.tree.map(jnp.asarray, batch)


def official_draws(stored):
    """The release's random points; its rows are in the order of matched queries, ours of targets."""
    fields = {}
    for branch in OFFICIAL:
        size = TARGETS[branch]
        shared = np.zeros((LAYERS, 2, POINTS, 2), np.float32)
        candidates = np.zeros((LAYERS, 2, size, 3 * POINTS, 2), np.float32)
        rest = np.zeros((LAYERS, 2, size, POINTS // 4, 2), np.float32)
        for ours in range(LAYERS):
            layer = LAYERS - 1 - ours
            key = f"points/layer{layer}/"
            matches = [stored[f"n512/layer{layer}/match_{MATCH[branch]}/{b}"] for b in range(2)]
            number = sum(m.shape[1] for m in matches)
            drawn = [
                recipe().uniform(SEED, f"{key}{DRAWN[branch]}/{i}", (number, n, 2))
                for i, n in enumerate((3 * POINTS, POINTS // 4))
            ]
            row = 0
            for b, match in enumerate(matches):
                name = f"{key}match_{MATCH[branch]}/{b}"
                shared[ours, b] = recipe().uniform(SEED, name, (1, POINTS, 2))[0]
                for target in match[1]:
                    candidates[ours, b, target], rest[ours, b, target] = (
                        drawn[0][row],
                        drawn[1][row],
                    )
                    row += 1
        fields |= {
            f"match_{branch}": jnp.asarray(shared),
            f"candidates_{branch}": jnp.asarray(candidates),
            f"rest_{branch}": jnp.asarray(rest),
        }
    return losses.PointDraws(**fields)


@pytest.fixture(scope="module")
def result(model_and_features):  # noqa: F811
    """(terms, weighted loss, gradients of the decoder) with the official draws."""
    model, params, features = model_and_features
    stored = golden("losses")
    batch, draws, table = targets(stored), official_draws(stored), class_table()
    config = LossConfig(num_points=POINTS)

    def index(name):
        return jnp.asarray(np.tile(stored[name], (2, 1)), jnp.int32)

    owner = jnp.asarray(stored["memory_index"][:, None].repeat(2, 1), jnp.int32)

    def forward(decoder):
        tree = {**params, "decoder": decoder}
        variables = {"params": tree}
        ids, valid = batch.phrases.token_ids, batch.phrases.token_valid
        j = ids.shape[-1]
        tokens, sentence = model.apply(
            {"params": params}, ids.reshape(-1, j), valid.reshape(-1, j), method="encode_text"
        )
        tokens = tokens.reshape(2, PHRASES, j, -1)
        text = text_tokens(
            tokens, valid, batch.phrases.masks.valid, batch.phrases.prompt, batch.phrases.group
        )
        maps = [
            level - params["decoder"]["level_embedding"][i][None, None, None]
            for i, level in enumerate(features.levels)
        ]
        image = model.bind(variables).decoder.prepare(features.mask, maps)
        visual = model.apply(variables, image, batch.strokes, PROMPTS, method="encode_prompts")
        frozen = {"params": params}
        before = model.apply(
            frozen,
            features,
            None,
            model.apply(frozen, features, batch.strokes, PROMPTS, method="encode_prompts"),
            objects=False,
            query_index=index("round0/query_index"),
            method="decode",
        )
        memory = remember(before, visual)
        memory = jax.lax.stop_gradient(memory.replace(valid=jnp.ones_like(memory.valid)))
        outputs = model.apply(
            variables,
            image,
            text,
            visual,
            memory,
            every_layer=True,
            query_index=index("query_index"),
            memory_index=owner,
            method="decode",
        )
        everyone = visual.replace(prompt_valid=jnp.ones_like(visual.prompt_valid))
        sentence = sentence.reshape(2, PHRASES, -1)
        args = (outputs, everyone, image, batch, table, sentence, params["logit_scale"], config)
        terms = losses.terms(*args, jax.random.key(0), draws)
        loss, _ = losses.total_loss(*args, jax.random.key(0), draws)
        previous = mask_logits(memory.mask_embedding, features)
        final = mask_logits(outputs.object.mask_embedding[-1], image)
        return loss, (terms, previous, final)

    with jax.default_matmul_precision("highest"):
        (loss, seen), grads = jax.jit(jax.value_and_grad(forward, has_aux=True))(params["decoder"])
    return stored, loss, seen, grads


def test_forward(result):
    stored, _, (_, previous, final), _ = result
    check(stored, "prev_mask", previous)
    check(stored, "out/pred_masks/final", final)


@pytest.mark.parametrize("branch", sorted(OFFICIAL))
def test_matching_is_the_official_one(result, branch):
    stored, _, (terms, _, _), _ = result
    for ours in range(LAYERS):
        for b in range(2):
            query, target = stored[f"n512/layer{LAYERS - 1 - ours}/match_{MATCH[branch]}/{b}"]
            np.testing.assert_array_equal(terms.matched[branch][ours, b][target], query)


def test_losses_of_every_layer(result):
    stored, loss, (terms, _, _), _ = result
    values = dict(zip(stored["n512/names"], stored["n512/values"]))
    kinds = {"class": "ce", "bce": "bce", "dice": "dice"}
    for name, got in terms.values.items():
        branch, kind = name.split("/")
        want = [
            values[f"loss_{OFFICIAL[branch]}_{kinds[kind]}_{LAYERS - 1 - i}"] for i in range(LAYERS)
        ]
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5, err_msg=name)
    assert len(terms.values) * LAYERS == len(values)
    np.testing.assert_allclose(loss, stored["n512/total"], rtol=1e-3)


def test_gradient_norms(result):
    stored, _, _, grads = result
    from seem_jax.convert.rules import official_state

    ours = official_state({"decoder": jax.device_get(grads)})
    prefix = "sem_seg_head.predictor."
    for name, norm in zip(stored["n512/grad_names"], stored["n512/grad_norms"]):
        if norm < 0:
            continue  # the release gives these no gradient
        got = np.linalg.norm(ours[prefix + str(name)])
        np.testing.assert_allclose(got, norm, rtol=2e-3, atol=1e-4, err_msg=str(name))
