"""Sessions at once on the device are those of a loop at batch 1, and faster.

The figure: python -m seem_jax.benchmark --suite=interactive --config=configs/shapes.py
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from configs import shapes
from seem_jax.benchmark import interactive as benchmark_interactive
from seem_jax.evaluation.tasks import base
from seem_jax.evaluation.tasks.base import Context
from seem_jax.evaluation.tasks.clicks import Interactive
from tests.evaluation_support import FakeSplit, FakeTokenizer, only, record, untrained
from tests.fakes import tiny_config


@pytest.fixture
def scenes(monkeypatch):
    """A split of five images, two of them of another shape, one with more than five things."""
    sizes = [(64, 64), (32, 64), (64, 64), (64, 32), (64, 64)]
    records = [
        dataclasses.replace(record(k, *size, 8), file_name=str(k)) for k, size in enumerate(sizes)
    ]
    monkeypatch.setattr(base.catalog, "open_split", lambda root, name: FakeSplit(records))
    monkeypatch.setattr(base, "Tokenizer", FakeTokenizer)


@pytest.mark.parametrize("kind", ["point", pytest.param("scribble", marks=pytest.mark.slow)])
def test_sessions_at_once_have_the_curves_of_a_loop_at_batch_one(scenes, kind):
    """Whose clicks are those of the device, or of users in NumPy and SciPy."""
    config = only(tiny_config(), "interactive", max_clicks=3, max_images=0)
    model, params = untrained(config)
    task = Interactive(Context(model, config), "fake:val", kind)
    samples = range(task.count())
    got = benchmark_interactive.at_once(task, params, samples)
    alone = Interactive(Context(model, only(config, "interactive", batch_size=1)), "fake:val", kind)
    users = [benchmark_interactive.DeviceUser(alone)]
    if kind == "point":
        distances = benchmark_interactive.chamfered, benchmark_interactive.peeled
        users += map(benchmark_interactive.HostUser, distances)
    plain = benchmark_interactive.PlainSessions(alone, params)
    for user in users:
        want = plain.play(samples, user)
        assert len(want) > 20
        # Float32 sums in another order: a pixel at the threshold may flip, and IoUs differ by 1 / area.
        np.testing.assert_allclose(got, want, atol=2e-3)
        assert np.ptp(want) > 0.1


@pytest.mark.slow
def test_sessions_at_once_are_five_times_faster_than_the_official_loop(scenes):
    """Against the loop whose distance transform is computed as officially; docs/speed.md has the rest."""
    config = shapes.get_config()
    config.evaluation.max_clicks = 10
    figures = benchmark_interactive.run(config)
    print(figures)
    assert figures["interactive/times_faster_than/loop/official_clicks"] >= 5
    assert figures["interactive/times_faster_than/loop/host_clicks"] > 1
