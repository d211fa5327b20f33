"""How much faster sessions run many at once on the device than one by one with a loop on the host.

    python -m pytest -m slow -s tests/test_interactive_speed.py

Model and sizes of configs/shapes.py. The users are the same in both: those of sessions.py.
"""

from __future__ import annotations

import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from configs import shapes
from seem_jax import interaction, postprocess
from seem_jax.data.schema import Record
from seem_jax.evaluation import sessions, truth
from seem_jax.evaluation.tasks import base
from seem_jax.evaluation.tasks.base import encode_image
from seem_jax.evaluation.tasks.clicks import Interactive
from seem_jax.models.seem import build, initialise, mask_logits, remember
from tests.test_evaluator import FakeSplit, FakeTokenizer, record

IMAGES, CLICKS = 16, 10


@pytest.fixture
def setting(monkeypatch):
    """(task, params) on scenes of six objects with the untrained model of configs/shapes.py."""
    records = [dataclasses.replace(record(k, 96, 96, 12), file_name=str(k)) for k in range(IMAGES)]
    monkeypatch.setattr(base.catalog, "open_split", lambda root, name: FakeSplit(records))
    monkeypatch.setattr(base, "Tokenizer", FakeTokenizer)
    config = shapes.get_config()
    config.evaluation.max_clicks = CLICKS
    model = build(config.model)
    params = nn.unbox(jax.jit(functools.partial(initialise, model))(jax.random.key(0)))
    task = Interactive(base.Context(model, config), "fake:val")
    return task, task.context.place(params)


def one_by_one(task: Interactive, params, count: int) -> int:
    """Plays `count` sessions of one object each: a call a click, masks judged on the host."""
    model, user, side = task.context.model, sessions.SeemUser(), task.context.size
    encode = jax.jit(functools.partial(encode_image, model))
    first, following = jax.jit(interaction.first_clicks), jax.jit(interaction.next_clicks)

    @jax.jit
    def answer(params, features, prompts, plan):
        variables = {"params": params}
        visual = model.apply(variables, features, prompts, 1, method="encode_prompts")
        outputs = model.apply(variables, features, None, visual, objects=False, method="decode")
        logits = mask_logits(remember(outputs, visual).mask_embedding, features)
        return logits, postprocess.resize(logits, plan) > user.threshold

    reserve = jax.jit(functools.partial(interaction.reserve, num_clicks=CLICKS - 1, num_prompts=1))
    append = jax.jit(interaction.append_points)
    played = 0
    for _, batch, records in task.context.batches(task.data, [[k] for k in range(IMAGES)]):
        for b, own in enumerate(records):
            features = encode(params, batch.image[b : b + 1])
            size = batch.image_size[b : b + 1]
            plan = postprocess.plan_resize(
                size, [(own.height, own.width)], (side // 4, side // 4), (side, side)
            )
            played += _sessions(
                own, features, plan, params, first, following, answer, reserve, append
            )
            if played >= count:
                return played
    return played


def _sessions(
    own: Record, features, plan, params, first, following, answer, reserve, append
) -> int:
    ids = truth.segment_map(own)
    number = 0
    for segment in truth.segments(own):
        if segment.category >= 3:
            continue
        mask = (ids == segment.id)[None, None]
        points, positive, valid, marks = first(mask)
        prompts = reserve(interaction.as_prompts(points, positive, valid))
        for click in range(CLICKS):
            logits, found = answer(params, features, prompts, plan)
            found = np.asarray(found)
            iou = (found & mask).sum() / (found | mask).sum()
            if iou > sessions.GOOD_ENOUGH or click == CLICKS - 1:
                break
            points, positive, valid, marks = following(logits, mask, marks)
            prompts = append(prompts, points, positive, valid, jnp.int32((click + 1) * 9))
        number += 1
    return number


@pytest.mark.slow
def test_sessions_at_once_are_five_times_faster_than_one_by_one(setting):
    task, params = setting
    units = task.units(0)
    seconds = {}
    for _ in range(2):  # the first time compiles
        begin = time.perf_counter()
        many = sum(len(a.result["curves"]) for batch in task.answers(params, units) for a in batch)
        seconds["at once"] = (time.perf_counter() - begin) / many
    for count in (1, 8):
        begin = time.perf_counter()
        few = one_by_one(task, params, count)
        seconds["one by one"] = (time.perf_counter() - begin) / few
    faster = seconds["one by one"] / seconds["at once"]
    each = {name: f"{1000 * value:.0f} ms" for name, value in seconds.items()}
    print(f"\nan object's session of up to {CLICKS} clicks: {each}, {faster:.1f} times faster")
    assert faster >= 5
