"""Videos read and written: what comes back, and what is refused or counted."""

from __future__ import annotations

import struct
import sys

import numpy as np
import pytest
from PIL import Image

from seem_jax.video import (
    VideoFrame,
    VideoWriter,
    read_frames,
    reading,
    save_davis,
    write_davis,
    write_video,
)
from seem_jax.video.writing import palette
from tests.predictor_support import picture

av = pytest.importorskip("av", reason="needs PyAV: pip install -r requirements-video.txt")


def grey(level: int, size=(48, 64)) -> np.ndarray:
    return np.full((*size, 3), level, np.uint8)


def clip(path, count=12, size=(48, 64), **options):
    write_video(path, (grey(20 * k, size) for k in range(count)), **options)
    return path


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.mkv", "a.MOV"])
def test_what_is_written_comes_back(tmp_path, name):
    frames = read_frames(clip(tmp_path / "deep" / name, fps=12.5))
    assert frames.fps == pytest.approx(12.5, rel=0.01)
    levels = [frame.mean() for frame in frames]
    np.testing.assert_allclose(levels, 20 * np.arange(12), atol=3)
    assert frames.skipped == 0
    assert [path.name for path in (tmp_path / "deep").iterdir()] == [name]


def test_odd_sizes_get_a_copy_of_their_last_row_and_column(tmp_path):
    write_video(tmp_path / "a.mp4", [picture(33, 47)] * 2)
    frame = next(read_frames(tmp_path / "a.mp4"))
    assert frame.shape == (34, 48, 3)
    assert np.abs(frame[33].astype(int) - frame[32]).mean() < 6


def test_a_folder_is_read_by_the_numbers_in_its_names(tmp_path):
    for number in (10, 9, 100):
        Image.fromarray(grey(number)).save(tmp_path / f"frame_{number}.png")
    (tmp_path / "notes.txt").write_text("no frame")
    frames = read_frames(tmp_path)
    assert frames.total == 3 and frames.fps == 0
    assert [frame[0, 0, 0] for frame in frames] == [9, 10, 100]
    (tmp_path / "frame_11.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"frame_11\.png"):
        list(read_frames(tmp_path))


def test_a_phone_video_is_turned_upright(tmp_path):
    path = clip(tmp_path / "a.mp4", size=(48, 64))
    data = path.read_bytes()
    upright = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    turned = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 48 << 16, 0, 1 << 30)
    track = data.index(b"tkhd")
    place = data.index(upright, track)
    path.write_bytes(data[:place] + turned + data[place + len(upright) :])
    assert next(read_frames(path)).shape == (64, 48, 3)


def test_frames_of_changing_length_all_come(tmp_path):
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for time in (0, 1, 5, 6, 40, 41):
            frame = av.VideoFrame.from_ndarray(grey(5 * time), format="rgb24")
            frame.pts = time
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert len(list(read_frames(tmp_path / "a.mkv"))) == 6


PNG = b"\x89PNG\r\n\x1a\n"


def pictures_in_a_video(path, count=20, damage=(), size=None):
    """A video whose packets are PNG files, some of them damaged, or claiming another size."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb24"
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(picture(48, 64, number), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    data = bytearray(path.read_bytes())
    starts = [n for n in range(len(data)) if data[n : n + 8] == PNG]
    for number in damage:
        data[starts[number] : starts[number] + 30] = bytes(30)
    for start in starts if size else ():
        data[start + 16 : start + 24] = struct.pack(">2I", *size)
    path.write_bytes(bytes(data))
    return path


def test_damaged_packets_are_counted_and_the_rest_is_read(tmp_path):
    frames = read_frames(pictures_in_a_video(tmp_path / "a.mov", damage=(4, 5, 6)))
    found = list(frames)
    assert (len(found), frames.skipped) == (17, 3)
    np.testing.assert_array_equal(found[4], picture(48, 64, 7))


def test_a_cut_video_is_read_as_far_as_it_goes(tmp_path):
    path = tmp_path / "a.mkv"
    write_video(path, (picture(48, 64, n) for n in range(60)))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert 0 < len(list(read_frames(path))) < 60


def boxed(kind: bytes, content: bytes, size: int | None = None) -> bytes:
    return struct.pack(">I", 8 + len(content) if size is None else size) + kind + content


def sound(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def lying_mp4(path, kind: bytes, offset: int, value: bytes):
    """A sound video in which some bytes after the name of a box say something else."""
    data = bytearray(clip(path).read_bytes())
    start = data.index(kind) + offset
    data[start : start + len(value)] = value
    path.write_bytes(bytes(data))


HLS = b"#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:1,\n%s\n#EXT-X-ENDLIST\n"


def broken(name: str, folder):
    """A video that is none, or not what it says."""
    path = folder / "bad.mp4"
    good = folder / "good.mp4"
    if name == "no bytes":
        path.write_bytes(b"")
    elif name == "text":
        path.write_text("hello" * 1000)
    elif name == "html":
        path.write_text("<!doctype html><video src='good.mp4'></video>")
    elif name == "picture bytes":
        Image.fromarray(grey(3)).save(path, format="PNG")
    elif name == "header alone":
        path.write_bytes(boxed(b"ftyp", b"isom\0\0\2\0isomiso2"))
    elif name == "no index":
        path.write_bytes(clip(good).read_bytes()[:600])
    elif name == "sound alone":
        sound(path)
    elif name == "four gigabytes":
        path.write_bytes(boxed(b"ftyp", b"isom\0\0\2\0isom") + boxed(b"moov", b"", 2**32 - 1))
    elif name == "exabytes":
        path.write_bytes(boxed(b"ftyp", b"isom\0\0\2\0isom") + boxed(b"mdat", b"\x7f" * 8, 1))
    elif name == "no packets":
        data = bytearray(clip(good).read_bytes())
        start = data.index(b"mdat")
        data[start + 4 :] = bytes(len(data) - start - 4)
        path.write_bytes(bytes(data))
    elif name == "huge frames":
        pictures_in_a_video(folder / "bad.mov", size=(65000, 65000)).rename(path)
    elif name in ("play list", "concat list", "address list"):
        target = {"play list": b"good.mp4", "address list": b"http://127.0.0.1:9/x.mp4"}
        clip(good)
        text = HLS % target.get(name, b"good.mp4")
        path.write_bytes(b"ffconcat version 1.0\nfile good.mp4\n" if "concat" in name else text)
    else:
        raise AssertionError(name)
    return path


BROKEN = [
    "no bytes",
    "text",
    "html",
    "picture bytes",
    "header alone",
    "no index",
    "sound alone",
    "four gigabytes",
    "exabytes",
    "no packets",
    "huge frames",
    "play list",
    "concat list",
    "address list",
]


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_video_is_refused_by_name(tmp_path, name):
    path = broken(name, tmp_path)
    with pytest.raises(ValueError, match=r"bad\.mp4"):
        list(read_frames(path))


def test_headers_that_lie_about_length_change_nothing(tmp_path):
    path = tmp_path / "a.mp4"
    hours = struct.pack(">I", 36_000_000)
    for kind, offset in ((b"mvhd", 20), (b"tkhd", 24), (b"mdhd", 20)):
        lying_mp4(path, kind, offset, hours)
        assert len(list(read_frames(path))) == 12, kind


@pytest.mark.parametrize(
    "path",
    [
        "missing.mp4", "", "..", "a\0.mp4", "x" * 5000, "http://127.0.0.1:9/a.mp4", "file:a.mp4",
        "concat:a.mp4|b.mp4", "pipe:0", "-", "/dev/zero", "/dev/stdin", "data:text/plain,hello",
        "$(touch x).mp4", "a.mp4; touch x", "`touch x`", "|touch x", "\\\\host\\share\\a.mp4",
        "%2e%2e/a.mp4", "a\n.mp4", "subfile,,start,1,end,9,,:a.mp4", None, 5, b"a.mp4",
    ],
)  # fmt: skip
def test_paths_are_names_of_files_and_nothing_else(tmp_path, monkeypatch, path):
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    with pytest.raises(ValueError, match="path"):
        read_frames(path)
    assert list((tmp_path / "inside").iterdir()) == []


def test_a_failure_leaves_no_file_and_no_old_one_is_lost(tmp_path):
    path = clip(tmp_path / "a.mp4")
    before = path.read_bytes()

    def frames():
        yield grey(1)
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write_video(path, frames())
    with pytest.raises(ValueError, match="no frame"):
        write_video(path, [])
    with pytest.raises(ValueError, match="a video has one size"):
        write_video(path, [grey(1), grey(1, (48, 66))])
    with pytest.raises(ValueError, match=r"^frame "):
        write_video(path, [np.zeros((4, 4))])
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
def test_bad_rates_and_endings_are_refused(tmp_path, fps):
    with pytest.raises(ValueError, match="fps"):
        VideoWriter(tmp_path / "a.mp4", fps)
    with pytest.raises(ValueError, match="path"):
        VideoWriter(tmp_path / "a.txt")
    assert list(tmp_path.iterdir()) == []


def answer(ids=(1, 7), index=0) -> VideoFrame:
    masks = np.zeros((len(ids), 20, 30), bool)
    for number in range(len(ids)):
        masks[number, 4 * number : 4 * number + 3] = True
    scores = np.ones(len(ids), np.float32)
    return VideoFrame(index, ids, masks, scores, scores, (None,) * len(ids))


def test_davis_maps_hold_the_ids_and_the_palette(tmp_path):
    found = [answer(index=0), answer((254,), index=1), answer((), index=2)]
    assert write_davis(tmp_path / "maps", found) == 3
    names = sorted(path.name for path in (tmp_path / "maps").iterdir())
    assert names == ["00000.png", "00001.png", "00002.png"]
    for each, name in zip(found, names, strict=True):
        with Image.open(tmp_path / "maps" / name) as image:
            assert image.mode == "P" and image.getpalette() == palette()
            np.testing.assert_array_equal(np.asarray(image), each.label_map())
    with pytest.raises(ValueError, match="object id 255"):
        save_davis(tmp_path, answer((255,)))


def test_the_palette_is_that_of_voc():
    first = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0, 0, 0, 128]
    assert palette()[:15] == first
    assert len(palette()) == 768 and palette()[-3:] == [224, 224, 192]


def test_without_pyav_folders_work_and_files_say_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    Image.fromarray(grey(3)).save(tmp_path / "0.png")
    assert len(list(reading.read_frames(tmp_path))) == 1
    (tmp_path / "a.mp4").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"requirements-video\.txt"):
        reading.read_frames(tmp_path / "a.mp4")
