"""The decoder with its rewrites equals the plain one, and no answer depends on what should not matter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from seem_jax.config import DecoderConfig
from seem_jax.models.decoder.decoder import Decoder
from seem_jax.types import Memory, TextTokens, VisualPrompts
from tests.plain_decoder import plain_decode

CONFIG = DecoderConfig(
    width=16, num_layers=4, num_heads=2, mlp_width=24, num_object_queries=7, num_memory=6
)
BATCH, WIDTH, PROMPTS, POINTS = 2, 16, 3, 20


def images(seed, batch=BATCH):
    rng = np.random.default_rng(seed)

    def draw(size):
        return jnp.asarray(rng.normal(size=(batch, size, 3 * size // 2, WIDTH)), jnp.float32)

    return draw(16), [draw(2), draw(4), draw(8)]


def draw_prompts(seed, batch=BATCH):
    rng = np.random.default_rng(seed)
    prompt = rng.integers(0, PROMPTS, (batch, POINTS))
    prompt[:, :PROMPTS] = np.arange(PROMPTS)  # each prompt has a positive point
    positive = rng.random((batch, POINTS)) < 0.7
    positive[:, :PROMPTS] = True
    return VisualPrompts(
        points=jnp.asarray(rng.random((batch, POINTS, 2)), jnp.float32),
        prompt=jnp.asarray(prompt, jnp.int32),
        positive=jnp.asarray(positive),
        valid=jnp.asarray(np.arange(POINTS)[None] < np.array([[15], [POINTS]])[:batch]),
    )


def draw_text(seed, batch=BATCH):
    rng = np.random.default_rng(seed)
    return TextTokens(
        tokens=jnp.asarray(rng.normal(size=(batch, 9, WIDTH)), jnp.float32),
        valid=jnp.asarray(np.arange(9)[None] < np.array([[6], [9]])[:batch]),
        prompt=jnp.full((batch, 9), -1, jnp.int32),
    )


def make(config=CONFIG):
    decoder = Decoder(config, WIDTH)
    mask, levels = images(0)

    def touch(module, mask, levels, prompts, text):
        features = module.prepare(mask, levels)
        visual = module.read_points(features, prompts, PROMPTS)
        return module(features, text, visual, Memory(visual.pooled, visual.prompt_valid))

    params = decoder.init(
        jax.random.key(0), mask, levels, draw_prompts(1), draw_text(2), method=touch
    )["params"]
    params = nn.unbox(params)
    # Fresh norms and biases are 1 and 0; noise makes their use visible.
    keys = iter(jax.random.split(jax.random.key(1), 1000))
    params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(next(keys), p.shape), params)
    return decoder, params


def run(decoder, params, mask, levels, text=None, prompts=None, memory=None, **options):
    variables = {"params": params}
    features = decoder.apply(variables, mask, levels, method="prepare")
    visual = None
    if prompts is not None:
        visual = decoder.apply(variables, features, prompts, PROMPTS, method="read_points")
    return features, visual, decoder.apply(variables, features, text, visual, memory, **options)


@pytest.fixture(scope="module")
def made():
    return make()


def indices(seed):
    rng = np.random.default_rng(seed)
    query = rng.integers(0, CONFIG.num_object_queries, (BATCH, PROMPTS * 3)).astype(np.int32)
    memory = np.sort(rng.integers(0, PROMPTS, (CONFIG.num_layers, BATCH, CONFIG.num_memory)), -1)
    return jnp.asarray(query), jnp.asarray(memory, jnp.int32)


def test_rewrites_change_nothing(made):
    decoder, params = made
    mask, levels = images(3)
    prompts, text = draw_prompts(4), draw_text(5)
    query, owner = indices(6)
    said = jnp.asarray(np.random.default_rng(7).normal(size=(BATCH, PROMPTS, WIDTH)), jnp.float32)
    memory = Memory(said, jnp.ones((BATCH, PROMPTS), bool))
    with jax.default_matmul_precision("highest"):
        _, visual, got = run(
            decoder,
            params,
            mask,
            levels,
            text,
            prompts,
            memory,
            every_layer=True,
            query_index=query,
            memory_index=owner,
        )
        want = plain_decode(
            params,
            CONFIG,
            mask,
            levels,
            text=text,
            prompts=prompts,
            num_prompts=PROMPTS,
            previous=jnp.einsum("bpd,bhwd->bphw", said, mask),
            query_index=query,
            memory_index=owner,
        )
    np.testing.assert_allclose(visual.pooled, want["pooled"], rtol=1e-4, atol=1e-5)
    start = 0
    for group, size in (("object", 7), ("text", 7), ("visual", 9)):
        for name in ("mask_embedding", "class_embedding"):
            expected = jnp.stack(want[name])[:, :, start : start + size]
            np.testing.assert_allclose(
                getattr(getattr(got, group), name), expected, rtol=1e-3, atol=1e-4
            )
        start += size


def test_rounds_need_only_visual_queries_and_memory(made):
    decoder, params = made
    mask, levels = images(3)
    prompts, text = draw_prompts(4), draw_text(5)
    _, visual, everything = run(decoder, params, mask, levels, text, prompts)
    _, _, lean = run(decoder, params, mask, levels, None, prompts, objects=False)
    assert lean.object is None and lean.text is None
    np.testing.assert_allclose(
        lean.visual.mask_embedding, everything.visual.mask_embedding, atol=1e-5
    )
    np.testing.assert_array_equal(lean.visual_choice, everything.visual_choice)


def test_kept_tokens_answer_as_tokens_read_anew(made):
    """Also for a prompt without a valid point and one without a positive one."""
    decoder, params = made
    mask, levels = images(3)
    drawn = draw_prompts(4)
    first = slice(PROMPTS * 6)
    prompts = VisualPrompts(
        points=drawn.points[:, first],
        prompt=jnp.broadcast_to(jnp.repeat(jnp.arange(PROMPTS), 6)[None], (BATCH, PROMPTS * 6)),
        positive=drawn.positive[:, first].at[0, 6:12].set(False),
        valid=drawn.valid[:, first].at[1, 12:].set(False),
    )
    variables = {"params": params}
    features = decoder.apply(variables, mask, levels, method="prepare")
    kept = decoder.apply(variables, features, prompts, PROMPTS, method="keep_points")
    memory = Memory(kept.pooled, jnp.array([[True, True, True], [True, False, False]]))
    _, visual, want = run(decoder, params, mask, levels, None, prompts, memory)
    got = decoder.apply(variables, features, None, kept, memory)
    for group in ("object", "visual"):
        for name in ("mask_embedding", "class_embedding"):
            arrays = (getattr(getattr(o, group), name) for o in (got, want))
            np.testing.assert_allclose(*arrays, atol=1e-5)
    np.testing.assert_array_equal(got.visual_choice, want.visual_choice)
    np.testing.assert_array_equal(kept.prompt_valid, visual.prompt_valid)
    with pytest.raises(ValueError, match="their own prompt; text"):
        decoder.apply(variables, features, draw_text(5), kept)


def test_batch_mates_change_nothing(made):
    decoder, params = made
    mask, levels = images(3)
    prompts, text = draw_prompts(4), draw_text(5)
    _, _, both = run(decoder, params, mask, levels, text, prompts)
    first = jax.tree.map(lambda x: x[:1], (mask, levels, text, prompts))
    _, _, alone = run(decoder, params, first[0], first[1], first[2], first[3])
    for group in ("object", "text", "visual"):
        np.testing.assert_allclose(
            getattr(both, group).mask_embedding[:, :1],
            getattr(alone, group).mask_embedding,
            atol=1e-5,
        )


def test_padding_points_and_tokens_change_nothing(made):
    decoder, params = made
    mask, levels = images(3)
    prompts, text = draw_prompts(4), draw_text(5)
    _, _, want = run(decoder, params, mask, levels, text, prompts)

    def pad(x, value):
        widths = [(0, 0), (0, 5)] + [(0, 0)] * (x.ndim - 2)
        return jnp.pad(x, widths, constant_values=value)

    wider = VisualPrompts(
        points=pad(prompts.points, 0.3),
        prompt=pad(prompts.prompt, 1),
        positive=pad(prompts.positive, True),
        valid=pad(prompts.valid, False),
    )
    longer = TextTokens(pad(text.tokens, 3.0), pad(text.valid, False), pad(text.prompt, 0))
    _, _, got = run(decoder, params, mask, levels, longer, wider)
    for group in ("object", "text", "visual"):
        np.testing.assert_allclose(
            getattr(got, group).mask_embedding,
            getattr(want, group).mask_embedding,
            atol=1e-5,
        )


def test_memory_that_is_not_valid_is_as_none(made):
    decoder, params = made
    mask, levels = images(3)
    prompts = draw_prompts(4)
    _, visual, want = run(decoder, params, mask, levels, None, prompts)
    memory = Memory(visual.pooled, jnp.zeros((BATCH, PROMPTS), bool))
    _, _, got = run(decoder, params, mask, levels, None, prompts, memory)
    np.testing.assert_allclose(got.visual.mask_embedding, want.visual.mask_embedding, atol=1e-5)


def test_points_reach_their_phrase_only_by_the_composed_table():
    mask, levels = images(3)
    prompts, text = draw_prompts(4), draw_text(5)
    linked = text.replace(prompt=jnp.zeros_like(text.prompt))
    for rules, helps in (("official", False), ("composed", True)):
        decoder, params = make(DecoderConfig(**{**vars(CONFIG), "rules": rules}))
        _, _, without = run(decoder, params, mask, levels, text, prompts)
        _, _, given = run(decoder, params, mask, levels, linked, prompts)
        same = np.allclose(without.text.mask_embedding, given.text.mask_embedding, atol=1e-5)
        assert same != helps
        np.testing.assert_allclose(
            without.visual.mask_embedding, given.visual.mask_embedding, atol=1e-5
        )


def test_nothing_asked_for_is_an_error(made):
    decoder, params = made
    mask, levels = images(3)
    with pytest.raises(ValueError, match="nothing to do"):
        run(decoder, params, mask, levels, objects=False)
