"""Record files: what is written is read back, by others too, and no damage goes unnoticed."""

import errno
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grain
import numpy as np
import pytest
from tensorflow_datasets.proto import tf_example_pb2

from seem_jax.data import schema
from seem_jax.data.catalog import open_split
from seem_jax.data.tfrecord import (
    TFRecordSource,
    index_path,
    masked_crc,
    read_index,
    shard_paths,
    write_shard,
)


def some_payloads(count: int = 10, seed: int = 0) -> list[bytes]:
    rng = np.random.default_rng(seed)
    return [rng.bytes(int(size)) for size in rng.integers(0, 60, count)]


def some_record() -> schema.Record:
    return schema.Record(
        image_id=7,
        file_name="é.jpg",
        image=b"\xff\xd8 picture",
        height=4,
        width=5,
        segment_map=b"\x89PNG",
        segment_id=[3, 2**24 - 1],
        segment_category=[0, 5],
        segment_crowd=[True, False],
        object_rle=[b"01", b"`2"],
        object_category=[1, 0],
        phrase_text=["the red star", "ünlike"],
        phrase_object=[1, 1],
        sequence="dog",
        frame=3,
    )


@pytest.fixture
def shard(tmp_path) -> Path:
    path = tmp_path / "set-train.tfrecord-00000-of-00001"
    write_shard(path, some_payloads())
    return path


def read_all(path: Path) -> list[bytes]:
    source = TFRecordSource([path])
    return [source[item] for item in range(len(source))]


def test_records_come_back_in_order_over_several_shards(tmp_path):
    payloads = some_payloads(12)
    paths = []
    for number, (start, stop) in enumerate(((0, 5), (5, 5), (5, 12))):
        paths.append(tmp_path / f"s-{number}")
        write_shard(paths[-1], payloads[start:stop])
    source = TFRecordSource(paths)
    assert [source[item] for item in range(len(source))] == payloads
    assert source.locate(4) == (0, 4)
    assert source.locate(5) == (2, 0)
    for item in (-1, 12):
        with pytest.raises(IndexError):
            source[item]


def test_the_checksum_is_that_of_the_tfrecord_format():
    crc = 0xE3069283  # the published CRC32C of "123456789"
    assert masked_crc(b"123456789") == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def test_another_reader_reads_the_shards(shard):
    other = grain.experimental.TFRecordIterDataset(str(shard))
    assert [bytes(payload) for payload in other] == some_payloads()


def test_tfds_parses_the_records_with_our_feature_description():
    import tensorflow_datasets as tfds

    features = schema.features()
    parser = tfds.core.example_parser.ExampleParserNp(features.get_serialized_info())
    record = some_record()
    parsed = parser.parse_example(schema.encode(record))
    assert int(parsed["image_id"]) == record.image_id
    assert list(parsed["segment_id"]) == record.segment_id
    assert list(parsed["segment_crowd"]) == record.segment_crowd
    assert list(parsed["object_rle"]) == record.object_rle
    assert [text.decode() for text in parsed["phrase_text"]] == record.phrase_text
    assert sorted(parsed) == sorted(schema.STORAGE)


def test_a_record_survives_encoding():
    full = some_record()
    plain = schema.Record(image_id=1, file_name="a", image=b"x", height=1, width=1)
    for record in (full, plain):
        assert schema.decode(schema.encode(record)) == record


def test_a_record_whose_lists_disagree_is_refused():
    record = some_record()
    record.phrase_object = [1, 2]
    with pytest.raises(ValueError, match="phrase_object = 2"):
        schema.encode(record)
    record.phrase_object = [1]
    with pytest.raises(ValueError, match="phrase_object has 1 entries, phrase_text has 2"):
        schema.encode(record)


def test_fields_that_few_sets_have_may_be_absent():
    record = some_record()
    record.segment_object, record.caption, record.ignore_rle = [1, -1], ["a street"], [b"04"]
    assert schema.decode(schema.encode(record)) == record
    example = tf_example_pb2.Example.FromString(schema.encode(some_record()))
    for name in schema.MAY_LACK:
        del example.features.feature[name]
    assert schema.decode(example.SerializeToString()) == some_record()
    record.segment_object = [2, -1]
    with pytest.raises(ValueError, match="segment_object = 2, but there are 2 objects"):
        schema.encode(record)
    record.segment_object = [1]
    with pytest.raises(ValueError, match="segment_object has 1 entries, segment_id has 2"):
        schema.encode(record)


def test_a_record_without_a_field_names_it():
    with pytest.raises(ValueError, match="lacks the field 'image_id'"):
        schema.decode(b"")
    with pytest.raises(ValueError, match=r"no tf\.train\.Example"):
        schema.decode(b"\xff\xff\xff")


@pytest.mark.parametrize("with_index", [True, False])
def test_no_flipped_bit_goes_unnoticed(shard, with_index):
    good = shard.read_bytes()
    index = read_index(shard)
    rng = np.random.default_rng(1)
    for _ in range(200):
        place = int(rng.integers(len(good)))
        bad = bytearray(good)
        bad[place] ^= 1 << int(rng.integers(8))
        shard.write_bytes(bad)
        if with_index:
            np.save(index_path(shard), index)
        else:
            index_path(shard).unlink(missing_ok=True)
        hurt = int((index[:, 0] - 12 <= place).sum()) - 1
        with pytest.raises(ValueError, match=f"record {hurt} of ") as error:
            read_all(shard)
        assert str(shard) in str(error.value)


def test_no_truncation_goes_unnoticed(shard):
    good = shard.read_bytes()
    ends = read_index(shard).sum(axis=1) + 4
    index = index_path(shard).read_bytes()
    lengths = np.random.default_rng(2).integers(0, len(good), 60).tolist()
    for length in [*lengths, 0, *ends[:-1].tolist()]:  # also between two records
        shard.write_bytes(good[:length])
        index_path(shard).write_bytes(index)
        hurt = int((ends <= length).sum())
        with pytest.raises(ValueError, match=f"record {hurt} of .* cut off") as error:
            read_all(shard)
        assert str(shard) in str(error.value)
        index_path(shard).unlink()
        if length in (0, *ends):  # a shorter shard; open_split compares the counts
            assert len(read_all(shard)) == hurt
            continue
        with pytest.raises(ValueError, match=f"record {hurt} of .* cut off"):
            read_all(shard)


def test_a_missing_or_damaged_index_is_rebuilt(shard):
    good = index_path(shard).read_bytes()
    rng = np.random.default_rng(3)
    for _ in range(100):
        bad = bytearray(good)
        bad[int(rng.integers(len(bad)))] ^= 1 << int(rng.integers(8))
        index_path(shard).write_bytes(bad)
        assert read_all(shard) == some_payloads()
    index_path(shard).write_bytes(good[:-9])
    assert read_all(shard) == some_payloads()
    assert index_path(shard).read_bytes() == good
    index_path(shard).unlink()
    assert read_all(shard) == some_payloads()


def test_a_shard_that_is_a_copy_of_another_is_refused(tmp_path):
    paths = [tmp_path / f"s-{number}" for number in range(2)]
    for number, path in enumerate(paths):
        write_shard(path, some_payloads(seed=number))
    assert len(TFRecordSource(paths)) == 20
    shutil.copy(paths[0], paths[1])
    with pytest.raises(ValueError, match=r"s-1 is a copy of .*s-0"):
        TFRecordSource(paths)


def test_shards_must_be_complete_and_of_one_numbering(tmp_path):
    for number in (0, 2):
        write_shard(tmp_path / f"a-train.tfrecord-{number:05d}-of-00003", some_payloads())
    with pytest.raises(ValueError, match=r"2 of 3 shards of a-train; missing: \[1\]"):
        shard_paths(tmp_path, "a", "train")
    write_shard(tmp_path / "a-train.tfrecord-00000-of-00001", some_payloads())
    with pytest.raises(ValueError, match=r"several numberings, of \[1, 3\]"):
        shard_paths(tmp_path, "a", "train")
    with pytest.raises(ValueError, match="s-9 is missing"):
        TFRecordSource([tmp_path / "s-9"])
    with pytest.raises(ValueError, match="at least one shard"):
        TFRecordSource([])


def test_a_writer_that_fails_leaves_no_shard(tmp_path):
    def payloads():
        yield b"one"
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device, while writing.*s-0"):
        write_shard(tmp_path / "s-0", payloads())
    assert list(tmp_path.iterdir()) == []


def test_a_source_works_pickled_and_in_threads(shard):
    source = TFRecordSource([shard])
    assert source[0] == some_payloads()[0]
    copy = pickle.loads(pickle.dumps(source))
    assert repr(copy) == repr(source)
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(copy.__getitem__, list(range(10)) * 20))
    assert got == some_payloads() * 20


def test_a_missing_data_set_names_the_command_that_makes_it(tmp_path):
    for spec, command in (
        ("shapes_panoptic:train", r"python -m data_prep\.shapes --output data/shapes"),
        ("coco_panoptic:val", r"python -m data_prep\.coco"),
        ("refcocog:val", r"python -m data_prep\.refcoco"),
        ("davis:val", r"python -m data_prep\.davis"),
    ):
        with pytest.raises(ValueError, match=command):
            open_split(tmp_path, spec)
    with pytest.raises(ValueError, match="expected 'name:split'"):
        open_split(tmp_path, "shapes_panoptic")
