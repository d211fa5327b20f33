"""Batches are the same whoever makes them, and resume exactly."""

import dataclasses

import jax
import numpy as np
import pytest

from seem_jax.config import DataConfig
from seem_jax.data import pipeline, sources
from tests.pipeline_support import (
    CLASS_RECORDS,
    CONFIG,
    RECORDS,
    TEMPLATES,
    FakeRecords,
    FakeTokenizer,
    assert_equal,
    batches_of,
)


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_make_the_batches_of_threads_and_resume_like_them(workers):
    whole = batches_of(count=8)
    config = dataclasses.replace(CONFIG, num_workers=workers)
    batches = pipeline.train_batches(config, FakeTokenizer(), templates=TEMPLATES, splits=[RECORDS])
    assert_equal([next(batches) for _ in range(3)], whole[:3])
    assert batches.get_state() == {"step": 3}
    batches.set_state({"step": 5})
    assert_equal([next(batches) for _ in range(3)], whole[5:])
    batches.close()


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_the_global_batch_of_one_host_in_order(hosts):
    whole = batches_of()
    parts = [batches_of(process_index=host, process_count=hosts) for host in range(hosts)]
    for step, batch in enumerate(whole):
        rows = [part[step] for part in parts]
        assert_equal(batch, jax.tree.map(lambda *leaves: np.concatenate(leaves), *rows))


@pytest.mark.parametrize("steps", [6, pytest.param(20, marks=pytest.mark.slow)])
def test_resuming_at_any_step_gives_the_next_three_batches_bit_for_bit(steps):
    whole = batches_of(count=steps + 3)
    batches = pipeline.train_batches(CONFIG, FakeTokenizer(), templates=TEMPLATES, splits=[RECORDS])
    for step in range(1, steps + 1):
        next(batches)
        state = batches.get_state()
        assert state == {"step": step}
        fresh = pipeline.train_batches(
            CONFIG, FakeTokenizer(), templates=TEMPLATES, splits=[RECORDS]
        )
        fresh.set_state(state)
        assert_equal([next(fresh) for _ in range(3)], whole[step : step + 3])
        fresh.close()
    batches.close()
    no_threads = dataclasses.replace(CONFIG, num_threads=0)
    assert_equal(batches_of(no_threads, count=3, step=5), whole[5:8])


def test_another_seed_gives_another_order_and_other_drawings():
    one, other = batches_of(count=1)[0], batches_of(count=1, seed=1)[0]
    assert not np.array_equal(one.sample_id, other.sample_id)
    assert not np.array_equal(one.strokes.points, other.strokes.points)


def test_every_epoch_has_each_record_once_in_a_new_order():
    config = dataclasses.replace(CONFIG, batch_size=5)
    epochs = [
        np.concatenate([b.sample_id for b in epoch])
        for epoch in np.array_split(np.array(batches_of(config, 6), object), 3)
    ]
    for epoch in epochs:
        assert sorted(epoch) == list(range(10))
    assert not np.array_equal(epochs[0], epochs[1])
    first, again = batches_of(config, 2), batches_of(config, 4)[2:]
    placed = [
        {int(i): im for b in e for i, im in zip(b.sample_id, b.image)} for e in (first, again)
    ]
    assert any(not np.array_equal(placed[0][i], placed[1][i]) for i in range(10))


def test_data_sets_are_mixed_by_weight():
    config = dataclasses.replace(CONFIG, train=("a:train", "b:train"), weights=(3.0, 1.0))
    batches = batches_of(config, 10, splits=(RECORDS, CLASS_RECORDS))
    classes = np.concatenate([b.phrases.is_class for b in batches])
    assert classes.sum() == 10  # of 40: the records of the second one have no sentences


def test_configurations_that_cannot_work_are_refused(tmp_path):
    with pytest.raises(ValueError, match="num_planes = 1: expected at least 2"):
        batches_of(dataclasses.replace(CONFIG, num_planes=1))
    with pytest.raises(ValueError, match=r"batch_size = 4: .* processes, 3"):
        batches_of(process_count=3)
    with pytest.raises(ValueError, match=r"shapes_panoptic.*data_prep"):
        pipeline.train_batches(DataConfig(root=str(tmp_path)), FakeTokenizer(), templates=TEMPLATES)
    with pytest.raises(ValueError, match="saved by another version"):
        pipeline.train_batches(
            CONFIG, FakeTokenizer(), templates=TEMPLATES, splits=[RECORDS]
        ).set_state({"next": 1})


def test_data_sets_with_other_classes_cannot_be_mixed(monkeypatch):
    other = FakeRecords(RECORDS)
    other.class_names = ["cat"]
    splits = {"a:train": RECORDS, "b:train": other}
    monkeypatch.setattr(sources.catalog, "open_split", lambda root, spec: splits[spec])
    config = dataclasses.replace(CONFIG, train=("a:train", "b:train"), weights=(1.0, 1.0))
    with pytest.raises(ValueError, match="b:train has other classes than a:train"):
        sources.open_training(config)
