"""Records that cannot be read are named; as many as allowed are replaced by others and counted."""

import dataclasses

import jax
import pytest

from seem_jax.data import pipeline
from tests.pipeline_support import (
    CONFIG,
    RECORDS,
    TEMPLATES,
    FakeRecords,
    FakeTokenizer,
    assert_equal,
    batches_of,
    record,
)


def test_a_bad_record_is_named_with_its_data_set_even_from_a_worker():
    damaged = record(3)
    damaged.image = damaged.image[:100]
    for workers in (0, 1):
        config = dataclasses.replace(CONFIG, num_workers=workers, batch_size=1)
        with pytest.raises(ValueError, match=r"fake:train, record 0: .*3\.png"):
            batches_of(config, 1, splits=(FakeRecords([damaged]),))


class DamagedRecords(FakeRecords):
    """Some cannot be read, others have an image that cannot be decoded."""

    def __init__(self, unreadable=(), undecodable=()):
        super().__init__(RECORDS)
        self.unreadable = unreadable
        for number in undecodable:
            self[number] = dataclasses.replace(RECORDS[number], image=b"junk")

    def __getitem__(self, item):
        if item in self.unreadable:
            raise ValueError(f"checksum of {item}")
        return super().__getitem__(item)


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_records_are_replaced_by_the_next_one_counted_and_named(caplog, workers):
    """The others are as they were, and the replaced ones are what they would be by themselves."""
    config = dataclasses.replace(CONFIG, max_bad_records=3, num_workers=workers)
    records = DamagedRecords(unreadable=(2, 3), undecodable=(9,))
    batches = pipeline.train_batches(config, FakeTokenizer(), templates=TEMPLATES, splits=[records])
    got = [next(batches) for _ in range(8)]
    batches.close()
    whole = batches_of(count=8)
    instead = {2: 4, 3: 4, 9: 0}
    replaced = 0
    for one, other in zip(got, whole, strict=True):
        for row in range(CONFIG.batch_size):
            number = int(other.sample_id[row])
            assert one.sample_id[row] == instead.get(number, number)
            replaced += {2: 2, 3: 1, 9: 1}.get(number, 0)
            if number not in instead:
                assert_equal(*(jax.tree.map(lambda x, r=row: x[r], b) for b in (one, other)))
    assert batches.dropped["bad_records"] == replaced > 3
    places = [f"fake:train, record {number}" for number in (2, 3, 9)]
    assert sorted(batches.bad_records) == places
    assert "checksum of 2" in batches.bad_records[places[0]]
    for place in places:
        assert sum(place in line for line in caplog.messages) == 1  # at the first meeting only


def test_bad_records_do_not_depend_on_resuming():
    config = dataclasses.replace(CONFIG, max_bad_records=2)
    options = {"splits": (DamagedRecords(unreadable=(2,), undecodable=(7,)),)}
    whole = batches_of(config, 8, **options)
    for got, want in zip(batches_of(config, 3, step=5, **options), whole[5:], strict=True):
        assert_equal(got, want)


@pytest.mark.parametrize("allowed", [0, 1, 2])
def test_more_bad_records_than_allowed_end_the_training(allowed):
    config = dataclasses.replace(CONFIG, max_bad_records=allowed)
    records = DamagedRecords(unreadable=(2,), undecodable=(5, 8))
    with pytest.raises(ValueError, match=f"max_bad_records = {allowed} allowed") as error:
        batches_of(config, 8, splits=(records,))
    assert str(error.value).count("fake:train, record") == allowed + 1
    assert "or raise that number" in str(error.value)


def test_a_bad_record_in_a_row_of_bad_ones_ends_the_training():
    records = DamagedRecords(unreadable=range(10))
    with pytest.raises(ValueError, match=r"3 bad records(.|\n)*checksum"):
        batches_of(dataclasses.replace(CONFIG, max_bad_records=2), 1, splits=(records,))
