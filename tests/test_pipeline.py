"""Batches are the same whoever makes them, resume exactly, and say what the records say."""

import collections
import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from seem_jax.config import DataConfig
from seem_jax.data import collate, pipeline, questions, sources, strokes
from seem_jax.data.schema import Record
from seem_jax.types import Batch, MaskRefs

SIZE = 48
COLOURS = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0), (0, 250, 250), (250, 0, 250)]
CLASSES = ["ball", "box", "tree-merged", "sky-other-merged"]
BALLS = 3

CONFIG = DataConfig(
    train=("fake:train",),
    image_size=SIZE,
    min_scale=0.7,
    max_scale=1.5,
    max_objects=8,
    max_phrases=3,
    max_phrase_tokens=12,
    max_prompts=4,
    max_points=32,
    phrase_prompt_probability=0.5,
    batch_size=4,
    num_threads=2,
    prefetch=2,
)


class FakeRecords(list):
    """Records that need no files."""

    name, split, class_names = "fake", "train", CLASSES


class FakeTokenizer:
    """Letters of the words as ids, so that a test can read the text back."""

    def encode(self, texts, length):
        ids = np.zeros((len(texts), length), np.int32)
        for row, text in enumerate(texts):
            tokens = [ord(letter) for letter in text][:length]
            ids[row, : len(tokens)] = tokens
        return ids, ids > 0


def text_of(ids: np.ndarray) -> str:
    return "".join(chr(letter) for letter in ids if letter)


def record(number: int, *, phrases: bool = True, height: int = SIZE, width: int = SIZE) -> Record:
    """Sky above trees, three balls and a box, each segment in a colour of its own.

    Sentences name the balls by number; the last ball also stands as an object that is no segment:
    its upper half.
    """
    rng = np.random.default_rng([number, 5])
    index = np.full((height, width), 2, np.uint8)
    index[: height // 2] = 1
    for ball in range(BALLS):
        centre = (int(width * (ball + 0.5) / BALLS), int(rng.integers(10, height - 10)))
        cv2.circle(index, centre, int(rng.integers(5, 8)), 3 + ball, -1)
    index[-6:, -6:] = 6
    image = np.zeros((height, width, 3), np.uint8)
    for segment, colour in enumerate(COLOURS):
        image[index == segment + 1] = colour
    masks = [index == 3 + ball for ball in range(BALLS)]
    masks[-1] = masks[-1] & (np.arange(height) < np.nonzero(masks[-1])[0].mean())[:, None]
    rles = [coco_mask.encode(np.asfortranarray(m.astype(np.uint8)))["counts"] for m in masks]
    words = [(f"{kind} {ball}", ball) for ball in range(BALLS) for kind in ("Ball", "Left")]
    return Record(
        image_id=number,
        file_name=f"{number}.png",
        image=cv2.imencode(".png", image[:, :, ::-1])[1].tobytes(),
        height=height,
        width=width,
        segment_map=cv2.imencode(".png", index)[1].tobytes(),
        segment_id=[10, 11, 12, 13, 14, 15],
        segment_category=[3, 2, 0, 0, 0, 1],
        segment_crowd=[False] * 6,
        object_rle=rles,
        object_category=[0] * BALLS,
        phrase_text=[text for text, _ in words] if phrases else [],
        phrase_object=[ball for _, ball in words] if phrases else [],
    )


TEMPLATES = ("{}", "the {}", "a {}")
RECORDS = FakeRecords(record(number) for number in range(10))
CLASS_RECORDS = FakeRecords(record(number, phrases=False) for number in range(10))


def batches_of(config: DataConfig = CONFIG, count: int = 4, splits=(RECORDS,), **options):
    batches = pipeline.train_batches(
        config, FakeTokenizer(), templates=TEMPLATES, splits=list(splits), **options
    )
    out = [next(batches) for _ in range(count)]
    batches.close()
    return out


def assert_equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def masks_of(planes: np.ndarray, refs: MaskRefs) -> np.ndarray:
    """bool [B, M, H, W] by the definition in types.MaskRefs."""
    out = np.zeros((*refs.valid.shape, *planes.shape[2:]), bool)
    for row, m in np.argwhere(refs.valid):
        plane = planes[row, refs.plane[row, m]]
        out[row, m] = (plane & refs.select[row, m]) == refs.value[row, m]
    return out


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


def test_shapes_and_types_never_change():
    small = FakeRecords([record(0, height=30, width=90), record(1, phrases=False), _empty()])
    said = collate.batch_shapes(CONFIG, CONFIG.batch_size)
    for batch in batches_of(count=6, splits=(small,)):
        assert isinstance(batch, Batch)
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), batch)
        assert shapes == said
    batch = batches_of(count=1)[0]
    assert batch.image.shape == (4, SIZE, SIZE, 3)
    assert batch.image.dtype == np.uint8
    assert batch.planes.shape == (4, 2, SIZE, SIZE)
    assert batch.planes.dtype == np.uint8
    assert batch.sample_id.dtype == batch.image_size.dtype == np.int32
    assert batch.objects.masks.select.dtype == batch.objects.masks.value.dtype == np.uint8
    assert batch.objects.masks.plane.dtype == batch.objects.label.dtype == np.int32
    assert batch.phrases.token_ids.shape == (4, 3, 12)
    assert batch.phrases.is_class.shape == (4,)
    assert batch.phrases.is_class.dtype == bool
    assert batch.strokes.points.shape == (4, 32, 2)
    assert batch.strokes.points.dtype == np.float32
    assert batch.prompt_masks.valid.shape == (4, 4)


def _empty() -> Record:
    """An image without any truth."""
    blank = cv2.imencode(".png", np.zeros((SIZE, SIZE, 3), np.uint8))[1].tobytes()
    return Record(99, "blank.png", blank, SIZE, SIZE)


def test_segments_show_their_own_colour_and_class_largest_first():
    labels = dict(zip(COLOURS, [3, 2, 0, 0, 0, 1], strict=True))
    for batch in batches_of(count=5):
        masks = masks_of(batch.planes, batch.objects.masks)
        for row in range(4):
            areas = masks[row].sum(axis=(1, 2))
            valid = batch.objects.masks.valid[row]
            assert (areas[valid] > 0).all()
            assert (np.diff(areas) <= 0).all()
            assert masks[row].sum(axis=0).max() <= 1
            height, width = batch.image_size[row]
            assert masks[row, :, :height, :width].any(axis=0).all()
            assert not masks[row, :, height:].any()
            for m in np.flatnonzero(valid):
                colour = np.median(batch.image[row][masks[row, m]].astype(int), axis=0)
                if areas[m] > 40:
                    nearest = min(COLOURS, key=lambda c: np.abs(np.array(c) - colour).sum())
                    assert batch.objects.label[row, m] == labels[nearest]


def test_sentences_point_at_their_object_once_each_and_follow_the_flip():
    seen = collections.Counter()
    for batch in batches_of(count=20):
        masks = masks_of(batch.planes, batch.phrases.masks)
        assert not batch.phrases.is_class.any()
        for row in range(4):
            valid = batch.phrases.masks.valid[row]
            texts = [text_of(ids) for ids in batch.phrases.token_ids[row][valid]]
            balls = [int(text[-1]) for text in texts]
            assert len(set(balls)) == len(balls) >= 1
            assert len(set(batch.phrases.group[row][valid].tolist())) == len(texts)
            seen.update(text[:-2] for text in texts)
            seen[len(texts)] += 1
            for g, ball in enumerate(balls):
                colour = np.median(batch.image[row][masks[row, g]], axis=0)
                if masks[row, g].sum() > 25:
                    assert np.abs(colour - COLOURS[2 + ball]).max() < 60
                in_plane = batch.phrases.masks.plane[row, g]
                assert in_plane == (1 if ball == BALLS - 1 else 0)  # half a ball is no segment
    assert set(seen) == {"ball", "left", "right", 1, 2, 3}
    assert 0.2 < seen["right"] / (seen["left"] + seen["right"]) < 0.8


def test_class_names_bring_all_their_segments_as_one_group():
    spoken = set()
    for batch in batches_of(count=20, splits=(CLASS_RECORDS,)):
        assert batch.phrases.is_class.all()
        for row in range(4):
            valid = batch.phrases.masks.valid[row]
            assert 1 <= valid.sum() <= CONFIG.max_phrases
            groups = collections.defaultdict(list)
            for g in np.flatnonzero(valid):
                value = batch.phrases.masks.value[row, g]
                groups[batch.phrases.group[row, g]].append(batch.objects.label[row, value - 1])
                spoken.add(text_of(batch.phrases.token_ids[row, g]))
            for labels in groups.values():
                assert len(set(labels)) == 1
            labels = [found[0] for found in groups.values()]
            assert len(set(labels)) == len(labels)
            if valid.sum() < CONFIG.max_phrases:  # nothing was cut off
                for found in groups.values():
                    in_sight = batch.objects.label[row][batch.objects.masks.valid[row]]
                    assert len(found) == (in_sight == found[0]).sum()
    names = {"ball", "box", "tree", "sky"}
    assert spoken == {template.format(name) for name in names for template in TEMPLATES}


def test_prompts_lie_on_the_object_they_ask_for():
    linked = unlinked = 0
    for batch in batches_of(count=20):
        prompts = masks_of(batch.planes, batch.prompt_masks)
        phrases = masks_of(batch.planes, batch.phrases.masks)
        points = np.round(batch.strokes.points * SIZE).astype(int)
        assert (batch.strokes.points >= 0).all()
        assert (batch.strokes.points < 1).all()
        np.testing.assert_array_equal(batch.strokes.positive, batch.strokes.valid)
        for row in range(4):
            owners = batch.strokes.prompt[row][batch.strokes.valid[row]]
            drawn = np.flatnonzero(batch.prompt_masks.valid[row])
            assert sorted(set(owners)) == drawn.tolist()  # each prompt has points
            assert len(drawn) >= 1
            assert (prompts[row, drawn].sum(axis=(1, 2)) >= strokes.MIN_AREA).all()
            for p in drawn:
                x, y = points[row][batch.strokes.valid[row]][owners == p].T
                columns = np.flatnonzero(prompts[row, p].any(axis=0))
                rows = np.flatnonzero(prompts[row, p].any(axis=1))
                assert columns[0] <= x.min() <= x.max() <= columns[-1]
                assert rows[0] <= y.min() <= y.max() <= rows[-1]
            links = batch.phrases.prompt[row]
            linked += (links >= 0).sum()
            unlinked += (links[batch.phrases.masks.valid[row]] < 0).sum()
            for g in np.flatnonzero(links >= 0):
                np.testing.assert_array_equal(phrases[row, g], prompts[row, links[g]])
    assert 0.35 < linked / (linked + unlinked) < 0.6


def test_no_prompt_comes_with_a_phrase_unless_asked_for():
    config = dataclasses.replace(CONFIG, phrase_prompt_probability=0.0)
    for batch in batches_of(config):
        assert (batch.phrases.prompt == -1).all()
        assert batch.prompt_masks.valid.any(axis=1).all()


def test_crowds_and_void_are_nobody():
    crowded = record(0)
    crowded.segment_crowd = [False, True, False, False, False, False]
    for batch in batches_of(count=3, splits=(FakeRecords([crowded]),)):
        assert not (batch.objects.label == 2)[batch.objects.masks.valid].any()
        trees = np.abs(batch.image.astype(int) - COLOURS[1]).max(axis=3) < 10
        assert not batch.planes[:, 0][trees].any()


def test_what_does_not_fit_is_dropped_smallest_first_and_counted():
    config = dataclasses.replace(
        CONFIG, max_objects=2, max_phrase_tokens=4, min_scale=1.0, max_scale=1.0, num_threads=0
    )
    batches = pipeline.train_batches(config, FakeTokenizer(), templates=TEMPLATES, splits=[RECORDS])
    for _ in range(3):
        batch = next(batches)
        assert set(batch.objects.label.ravel()) == {2, 3}  # sky and trees
    assert batches.dropped["objects"] == 3 * 4 * 4
    assert batches.dropped["long_phrases"] >= 3 * 4
    assert batches.dropped["class_phrases"] == batches.dropped["hidden_objects"] == 0


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


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("height", SIZE + 1, r"3\.png is \(48, 48\).*\(49, 48\)"),
        ("segment_id", [1, 2, 3], "holds segment 6, its table only 3"),
        ("segment_map", b"junk", r"segments of 3\.png"),
    ],
)
def test_truth_that_does_not_fit_its_image_is_refused(field, value, message):
    broken = dataclasses.replace(record(3), **{field: value})
    with pytest.raises(ValueError, match=message):
        batches_of(count=1, splits=(FakeRecords([broken]),))


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


def test_overlapping_masks_beyond_the_planes_are_refused():
    many = record(0)
    corner = [
        coco_mask.encode(np.asfortranarray(np.eye(SIZE, k=k, dtype=np.uint8))) for k in range(9)
    ]
    many.object_rle = [rle["counts"] for rle in corner]
    many.object_category = [0] * 9
    many.phrase_text = [f"line {k}" for k in range(9)]
    many.phrase_object = list(range(9))
    config = dataclasses.replace(CONFIG, max_phrases=9, max_texts=9)
    with pytest.raises(ValueError, match="expected at least 3"):
        batches_of(config)
    config = dataclasses.replace(config, min_scale=1.0, max_scale=1.0)

    def example(seed: int, num_planes: int) -> Batch:
        own = dataclasses.replace(config, num_planes=num_planes)
        rng = np.random.default_rng(seed)
        return collate.training_example(many, 0, CLASSES, TEMPLATES, own, FakeTokenizer(), rng)[0]

    counts = set()
    for seed in range(20):  # 1 to 9 of the lines are asked for
        masks = example(seed, 3).phrases.masks
        count = int(masks.valid.sum())
        assert masks.plane[:count].tolist() == ([1] * 8 + [2])[:count]
        if count == 9:
            with pytest.raises(ValueError, match="num_planes = 2 holds 8 overlapping masks"):
                example(seed, 2)
        else:
            assert example(seed, 2).phrases.masks.valid.sum() == count
        counts.add(count)
    assert {8, 9} < counts


def test_sides_change_places_in_mirrored_sentences_only_as_whole_words():
    assert questions.mirror("the leftmost star left of the right bright one") == (
        "the rightmost star right of the left bright one"
    )


def test_data_sets_with_other_classes_cannot_be_mixed(monkeypatch):
    other = FakeRecords(RECORDS)
    other.class_names = ["cat"]
    splits = {"a:train": RECORDS, "b:train": other}
    monkeypatch.setattr(sources.catalog, "open_split", lambda root, spec: splits[spec])
    config = dataclasses.replace(CONFIG, train=("a:train", "b:train"), weights=(1.0, 1.0))
    with pytest.raises(ValueError, match="b:train has other classes than a:train"):
        sources.open_training(config)


ORPHAN = """
import dataclasses, time
from tests import test_pipeline as t
if __name__ == "__main__":
    config = dataclasses.replace(t.CONFIG, num_workers=1)
    batches = t.pipeline.train_batches(config, t.FakeTokenizer(), templates=t.TEMPLATES, splits=[t.RECORDS])
    next(batches)
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks at processes in /proc")
@pytest.mark.parametrize(
    "trial", [0, *(pytest.param(trial, marks=pytest.mark.slow) for trial in range(1, 20))]
)
def test_workers_do_not_outlive_a_killed_parent(tmp_path, trial):
    script = tmp_path / "parent.py"
    script.write_text(ORPHAN)
    root = str(Path(__file__).parents[1])
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": root},
        cwd=root,
    )
    assert parent.stdout.readline() == b"ready\n"
    children = [
        int(child)
        for task in Path(f"/proc/{parent.pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]
    assert children
    time.sleep(float(np.random.default_rng(trial).uniform(0, 1)) * (trial > 0))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 5
    while any(_alive(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [child for child in children if _alive(child)]
    parent.stdout.close()


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
