"""Focal-T v1 against every stored number of the official release (../shared/parity), stage by stage,
and the decoder with its rewrites against the plain one in every run that those files ask for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity import decoding, following, losses, stages
from tests.parity.report import load
from tests.parity.subject import PRECISION
from tests.parity_support import ROOT, check_stage, need_material, subject
from tests.plain_decoder import plain_decode


@pytest.mark.parametrize("stage", ["seg", "grounding", "spatial"])
def test_the_decoder_is_the_official_one(stage):
    check_stage(stage)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["iterative", "postprocess"])
def test_rounds_and_results_are_the_official_ones(stage):
    check_stage(stage)


@pytest.mark.parametrize(
    "stage",
    [
        "grounding",
        "spatial",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("seg", "iterative", "losses")),
    ],
)
def test_the_fast_decoder_is_the_plain_one(stage, monkeypatch):
    """1e-4 relative after every layer, the same class for every slot, the same answer to prompts."""
    need_material()
    runs = []

    def follow(subject, stored, inputs, num_prompts=0, prefix="", **options):
        run, claims = following.follow(subject, stored, inputs, num_prompts, prefix, **options)
        compare_with_plain(run, inputs, num_prompts)
        runs.append(prefix)
        return run, claims

    monkeypatch.setattr(stages, "follow", follow)
    monkeypatch.setattr(losses, "follow", follow)
    stages.STAGES[stage](subject(), load(ROOT / "goldens" / f"focalt_v1_{stage}.npz"))
    assert len(runs) == {"iterative": 3, "losses": 2}.get(stage, 1)


def compare_with_plain(run, inputs, num_prompts):
    """Both decoders on the same features; the fast one sees the pixels that the plain one sees."""
    decoder, features = run.subject.config.decoder, run.features
    params = run.subject.params["decoder"]
    memory = inputs.memory
    with jax.default_matmul_precision(PRECISION):
        levels = [
            level - params["level_embedding"][i][None, None, None]
            for i, level in enumerate(features.levels)
        ]
        previous = None
        if memory is not None:
            previous = jnp.einsum("bpd,bhwd->bphw", memory.mask_embedding, features.mask)
        plain = plain_decode(
            params,
            decoder,
            features.mask,
            levels,
            text=inputs.text,
            prompts=inputs.prompts,
            num_prompts=num_prompts,
            previous=previous,
            query_index=inputs.query_index,
            memory_index=inputs.memory_index,
        )
    looking = sum(n for name, n in plain["sizes"].items() if name != "memory")
    blocked = [mask[:, :looking] for mask in plain["attn_mask"][: decoder.num_layers]]
    trace = decoding.run_decoder(run.subject, features, inputs, num_prompts, blocked)
    fast, start = dataclasses.replace(run, trace=trace), 0
    for group, name in (("object", "object"), ("text", "text_query"), ("visual", "visual_query")):
        slots = getattr(trace.outputs, group)
        if slots is None:
            continue
        part = slice(start, start + plain["sizes"][name])
        start = part.stop
        for kind in ("mask_embedding", "class_embedding"):
            for got, want in zip(getattr(slots, kind), plain[kind], strict=True):
                want = want[:, part]
                assert jnp.linalg.norm(got - want) < 1e-4 * jnp.linalg.norm(want)
        got, want = slots.class_embedding[-1], plain["class_embedding"][-1][:, part]
        np.testing.assert_array_equal(
            fast.classes(got).argmax(-1), fast.classes(want).argmax(-1), err_msg=group
        )
        if group == "visual":
            own = plain["mask_embedding"][-1][:, part]
            own = own.reshape(own.shape[0], num_prompts, decoder.queries_per_prompt, -1)
            best = jnp.einsum("bpqd,bpd->bpq", own, plain["pooled"]).argmax(-1)
            first = jnp.arange(num_prompts)[None] * decoder.queries_per_prompt
            np.testing.assert_array_equal(trace.outputs.visual_choice, first + best)
