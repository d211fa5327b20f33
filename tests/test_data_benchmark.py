import dataclasses

import numpy as np
import pytest

from seem_jax.benchmark import data as benchmark_data
from seem_jax.config import Config
from seem_jax.data.schema import run_pixels


def test_the_split_adds_up_and_the_rates_belong_together(monkeypatch):
    monkeypatch.setattr(benchmark_data, "SECONDS", 0.2)
    monkeypatch.setattr(benchmark_data, "NUM_RECORDS", 4)
    monkeypatch.setattr(benchmark_data, "NUM_READ", 20)
    config = Config()
    config.data = dataclasses.replace(config.data, image_size=128, max_phrase_tokens=12)
    figures = benchmark_data.run(config)
    assert all(name.startswith("data/") for name in figures)
    milliseconds = [v for name, v in figures.items() if name.startswith("data/milliseconds/")]
    per_second = figures["data/images_per_second_per_core"]
    assert sum(milliseconds) == pytest.approx(1000 / per_second)
    share = per_second / figures["data/plain_images_per_second_per_core"]
    assert figures["data/share_of_plain"] == pytest.approx(share)
    planes = 128 * 128 * (3 + config.data.num_planes)
    assert planes < figures["data/bytes_per_image"] < planes + 50_000
    assert figures["data/records_read_per_second"] > 1000


def test_the_drawn_records_are_sound():
    record = benchmark_data.draw_record(1, np.random.default_rng(0))
    assert {run_pixels(code) for code in record.object_rle} == {record.height * record.width}
    assert 100_000 < len(record.image) < 250_000
