"""The training mix of converted data sets on disk: the same batches however it is read."""

import dataclasses

import numpy as np
import pytest

from data_prep import custom, writer
from seem_jax.config import DataConfig
from seem_jax.data import pipeline, sources
from tests.pipeline_support import FakeTokenizer, assert_equal
from tests.test_converters_custom import write_picture, write_text

TEMPLATES = ("{}", "the {}")
CONFIG = DataConfig(
    train=("custom_a:train", "custom_b:train"),
    weights=(0.75, 0.25),
    image_size=64,
    max_objects=5,
    num_planes=2,
    max_phrases=2,
    max_phrase_tokens=6,
    max_prompts=3,
    max_points=32,
    batch_size=8,
    num_threads=1,
    prefetch=2,
)


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> DataConfig:
    """Two sets of 7 and 5 records with the same classes, the second with overlapping objects."""
    root = tmp_path_factory.mktemp("mix")
    for name, count in (("a", 7), ("b", 5)):
        for number in range(count):
            write_picture(root / name / "images" / f"{number}.png", number)
            second = ".3 .3 .9 .3 .9 .8" if name == "b" else ".6 .6 .9 .6 .9 .9"
            lines = f"0 .1 .1 .5 .1 .5 .5 .1 .5\n1 {second}\n"
            write_text(root / name / "labels" / f"{number}.txt", lines)
        write_text(root / name / "classes.txt", "bolt\nnut\n")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(writer, "RECORDS_PER_SHARD", 3)  # shards of 2, 2 and 3, and of 2 and 3
            custom.convert(root / name, root / "records", f"custom_{name}", val_share=0)
    return dataclasses.replace(CONFIG, root=str(root / "records"))


def start(config: DataConfig, **options):
    return pipeline.train_batches(config, FakeTokenizer(), templates=TEMPLATES, **options)


def read(config: DataConfig, count: int, **options) -> list:
    batches = start(config, **options)
    out = [next(batches) for _ in range(count)]
    batches.close()
    return out


def test_workers_and_hosts_read_the_same_mix(config):
    whole = read(config, 3)
    assert_equal(read(dataclasses.replace(config, num_workers=2), 3), whole)
    for hosts in (2, 4):
        parts = [read(config, 3, process_index=host, process_count=hosts) for host in range(hosts)]
        for step, batch in enumerate(whole):
            rows = np.concatenate([part[step].image for part in parts])
            np.testing.assert_array_equal(rows, batch.image)
            points = np.concatenate([part[step].strokes.points for part in parts])
            np.testing.assert_array_equal(points, batch.strokes.points)


def test_resuming_at_each_of_twenty_steps_repeats_the_next_three_batches(config):
    whole = read(config, 23)
    for step in range(1, 21):
        fresh = start(config)
        fresh.set_state({"step": step})
        assert_equal([next(fresh) for _ in range(3)], whole[step : step + 3])
        fresh.close()


def test_sets_are_mixed_by_weight_and_each_record_comes_once_an_epoch(config):
    splits = sources.open_training(config)
    assert [[len(index) for index in split.source.index] for split in splits] == [[2, 2, 3], [2, 3]]
    mixed = sources.endless(splits, config.weights, config.seed)
    seen: dict[str, list[int]] = {"custom_a": [], "custom_b": []}
    for place in range(28):
        seen[mixed[place].records.name].append(mixed[place].index)
    first, second = seen.values()
    assert len(first) == 21 and len(second) == 7
    for epoch in range(3):
        assert sorted(first[7 * epoch : 7 * epoch + 7]) == list(range(7))
    assert sorted(second[:5]) == list(range(5))
    batch = read(dataclasses.replace(config, batch_size=28), 1)[0]
    assert batch.sample_id.tolist() == [mixed[place].index for place in range(28)]
