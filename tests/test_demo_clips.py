"""The video tab without the web: orders on frames, what comes out, what is refused."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
from PIL import Image

from seem_jax.demo.clips import Order, follow, look_at, marks_at, open_clip, ordered
from seem_jax.demo.studio import Limits, Sample, Studio, mark
from seem_jax.video import VideoPredictor, read_frames, write_video
from tests.predictor_support import picture, tiny_predictor

pytest.importorskip("av", reason="pip install -r requirements-video.txt")

SIZE = (64, 96)
CLICK, NO = mark("click", [[0.5, 0.5]]), mark("click", [[0.1, 0.9]], positive=False)


@pytest.fixture(scope="module")
def studio():
    return Studio(tiny_predictor(), Limits(megapixels=1.0, video_megabytes=0.5))


@pytest.fixture
def file(tmp_path):
    """A clip of five frames."""
    frames = [np.roll(picture(*SIZE), 4 * number, axis=1) for number in range(5)]
    write_video(tmp_path / "clip.mp4", frames, fps=10)
    return tmp_path / "clip.mp4"


def test_a_clip_shows_any_of_its_frames_and_the_marks_on_it(studio, file):
    clip = open_clip(studio, file)
    assert (clip.count, clip.fps, clip.cut, clip.frame) == (5, 10.0, False, 0)
    clip = ordered(clip, Order(0, 1, gesture=CLICK))
    later = look_at(clip, 3)
    np.testing.assert_array_equal(later.picture, list(read_frames(file))[3])
    assert (marks_at(clip), marks_at(later)) == ([CLICK], [])
    with pytest.raises(ValueError, match="frames 0 to 4"):
        look_at(clip, 5)


def test_following_obeys_the_orders_of_each_frame_and_writes_both_files(studio, file, tmp_path):
    clip = open_clip(studio, file)
    reference = studio.reference(Sample(picture(seed=2), [CLICK]))
    for order in (
        Order(2, 3, reference=reference),
        Order(0, 1, gesture=NO),  # two marks of one frame are one question
        Order(0, 1, gesture=CLICK),
        Order(1, 2, text="the disc"),
        Order(3, 1),
    ):
        clip = ordered(clip, order)
    out = tmp_path / "out"
    out.mkdir()
    found = list(follow(studio, clip, out))
    assert [one.object_ids for one in found] == [(1,), (1, 2), (1, 2, 3), (2, 3), (2, 3)]

    tracker = VideoPredictor(studio.predictor)
    tracker.add(1, points=[[48, 32], [9, 57]], point_labels=[1, 0])
    first = tracker.push(clip.picture)
    with zipfile.ZipFile(out / "masks.zip") as archive:
        assert archive.namelist() == [f"masks/{number:05d}.png" for number in range(5)]
        labels = np.array(Image.open(archive.open("masks/00000.png")))
    np.testing.assert_array_equal(labels, first.label_map())
    with read_frames(out / "clip.mp4") as frames:
        assert len(list(frames)) == 5
    assert sorted(path.name for path in out.iterdir()) == ["clip.mp4", "masks.zip"]


def test_orders_that_mean_nothing_are_refused(studio, file, tmp_path):
    clip = open_clip(studio, file)
    for order, reason in (
        (Order(0, 0, gesture=CLICK), "object = 0"),
        (Order(0, 21, text="x"), "object = 21"),
        (Order(0, 1, text=" "), "blank"),
        (Order(1, 1), "not there yet"),
        (Order(0, 1, gesture=mark("box", [[0.5, 0.5]])), "two corners"),
    ):
        with pytest.raises(ValueError, match=reason):
            ordered(clip, order)
    with pytest.raises(ValueError, match="mark an object"):
        next(follow(studio, clip, tmp_path))


def test_a_hostile_clip_is_refused_without_a_word_of_where_it_lies(studio, file, tmp_path):
    whole = file.read_bytes()
    write_video(tmp_path / "wide.mp4", [np.zeros((1000, 1002, 3), np.uint8)])
    cases = {
        "empty.mp4": b"",
        "text.mp4": b"this is no video",
        "list.mp4": b"ffconcat version 1.0\nfile /etc/passwd\n",
        "torn.mp4": whole[:200],
        "large.mp4": bytes(600_000),
        "wide.mp4": (tmp_path / "wide.mp4").read_bytes(),
    }
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError) as error:
            open_clip(studio, tmp_path / name)
        assert str(tmp_path) not in str(error.value), name
    gone = open_clip(studio, file)
    file.unlink()
    with pytest.raises(ValueError, match="the video") as error:
        look_at(gone, 1)
    assert str(tmp_path) not in str(error.value)
