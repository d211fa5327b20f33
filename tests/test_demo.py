"""The web app without the web: what users do, what they see, what they take home."""

from __future__ import annotations

import io
import json
import socket
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from seem_jax.demo import __main__ as command
from seem_jax.demo import draw, label_studio, pictures
from seem_jax.demo.studio import Limits, Sample, Studio, mark, names
from tests.predictor_support import CLASSES, picture, same, tiny_predictor

CENTRE = [[0.5, 0.5]]


@pytest.fixture(scope="module")
def predictor():
    return tiny_predictor()


@pytest.fixture
def studio(predictor):
    return Studio(predictor, Limits(megabytes=0.5, megapixels=1.0, desks=3))


def png(image: np.ndarray, **options) -> bytes:
    data = io.BytesIO()
    Image.fromarray(image).save(data, format="PNG", **options)
    return data.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims this size and holds next to nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (bytes(600_000), "0.6 MB; this server takes 0.5"),
        (b"#!/bin/sh\necho hello\n", "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "not an image"),
        (png_header(50_000, 50_000), "image"),
        (png_header(1001, 1000), "1001 x 1000 pixels, more than the 1000000"),
        (png(picture())[:200], "cannot be decoded|not an image"),
    ],
    ids=["none", "large", "script", "svg", "torn", "bomb", "wide", "cut"],
)
def test_a_hostile_picture_is_refused_with_its_reason_and_leaves_no_desk(studio, data, reason):
    with pytest.raises(ValueError, match=reason):
        studio.open(data)
    assert studio.desks == ()


def test_a_photo_is_shown_upright(studio):
    image = picture(40, 60)
    data = io.BytesIO()
    exif = Image.Exif()
    exif[274] = 6  # the camera was turned
    Image.fromarray(image).save(data, format="PNG", exif=exif)
    np.testing.assert_array_equal(studio.read(data.getvalue()), np.rot90(image, -1))


def test_gestures_are_prompts_in_pixels_of_the_picture():
    size = (80, 120)
    click = mark("click", [[0.1, 0.1], [0.25, 0.5]], positive=False).prompts(size)
    np.testing.assert_array_equal(click.points, [[30, 40]])  # where the button was let go
    assert click.point_labels == [False]
    assert mark("click", [[2.0, -1.0]]).prompts(size).points.tolist() == [[119, 0]]
    assert mark("box", [[0.5, 0.75], [0.9, 0.1], [0.25, 0.25]]).prompts(size).box == [
        30,
        20,
        61,
        61,
    ]
    assert mark("box", [[0.0, 0.0], [1.0, 1.0]]).prompts(size).box == [0, 0, 120, 80]
    line = mark("scribble", [[0.0, 0.0], [1.0, 1.0]], positive=False).prompts(size)
    assert line.scribble[0].tolist() == [[0, 0], [119, 79]]
    assert line.scribble_labels == [False]
    around = mark("outline", [[0, 0], [0.5, 0], [0.5, 0.5]]).prompts(size).polygon
    assert around.tolist() == [[0, 0], [60, 0], [60, 40]]


@pytest.mark.parametrize(
    ("tool", "where", "positive", "reason"),
    [
        ("lasso", CENTRE, True, "tool"),
        ("click", [], True, "gesture"),
        ("click", [[0.1, float("nan")]], True, "gesture"),
        ("click", [[0.1, 0.2, 0.3]], True, "gesture"),
        ("click", "here", True, "gesture"),
        ("click", [[0.5, 0.5]] * 5000, True, "gesture"),
        ("box", CENTRE, True, "two corners"),
        ("box", [[0.1, 0.1], [0.5, 0.5]], False, "not meant"),
        ("outline", [[0.1, 0.1], [0.5, 0.5]], True, "around"),
        ("outline", [[0.1, 0.1], [0.5, 0.5], [0.5, 0]], False, "not meant"),
    ],
)
def test_a_gesture_that_means_nothing_is_refused(tool, where, positive, reason):
    with pytest.raises(ValueError, match=reason):
        mark(tool, where, positive).prompts((80, 120))


def test_the_answer_of_a_desk_is_that_of_the_predictor(studio, predictor):
    image = picture()
    desk = studio.open(png(image))
    studio.draw(desk, mark("click", CENTRE))
    studio.draw(desk, mark("box", [[0.1, 0.1], [0.6, 0.7]]))
    studio.draw(desk, mark("scribble", [[0.8, 0.1], [0.9, 0.2]], positive=False))
    studio.draw(desk, mark("outline", [[0.2, 0.2], [0.5, 0.2], [0.4, 0.6]]))
    studio.say(desk, " the disc ")
    studio.answer(desk, CLASSES, top_k=2)
    predictor.set_image(image)
    wanted = predictor.predict(
        points=[[60, 40]],
        box=[12, 8, 73, 57],
        scribble=[np.array([[96, 8], [108, 16]])],
        scribble_labels=[0],
        polygon=[[24, 16], [60, 16], [48, 48]],
        text="the disc",
        classes=CLASSES,
        top_k=2,
    )
    predictor.reset_image()
    same(desk.prediction, wanted)


def test_undo_takes_back_the_last_prompt_of_any_kind(studio):
    desk = studio.open(png(picture()))
    studio.draw(desk, mark("click", CENTRE))
    studio.answer(desk)
    first = desk.prediction
    studio.say(desk, "the disc")
    studio.draw(desk, mark("click", [[0.1, 0.1]], positive=False))
    studio.answer(desk)
    assert len(desk.marks) == 2
    studio.undo(desk)
    assert len(desk.marks) == 1
    assert desk.phrase is not None
    studio.undo(desk)
    assert desk.phrase is None
    studio.answer(desk)
    same(desk.prediction, first)
    studio.undo(desk)
    studio.answer(desk)
    assert desk.prediction is None
    with pytest.raises(ValueError, match="nothing to undo"):
        studio.undo(desk)


def test_the_prompts_that_stand_are_listed_in_the_order_in_which_they_came(studio):
    desk = studio.open(png(picture()))
    assert desk.said == ()
    studio.draw(desk, mark("box", [[0.1, 0.1], [0.6, 0.7]]))
    studio.say(desk, "the disc")
    studio.draw(desk, mark("click", CENTRE, positive=False))
    studio.show(desk, Sample(picture(seed=2), [mark("click", CENTRE)]))
    assert desk.said == ("box", "text", "not this: click", "reference picture")
    studio.undo(desk)
    studio.say(desk, "the bar")  # a new phrase is the newest prompt
    assert desk.said == ("box", "not this: click", "text")


def test_names_leave_marks_and_small_masks_to_be_seen():
    image = np.zeros((200, 300, 3), np.uint8)
    large, small = np.zeros((2, 200, 300), bool)
    large[20:180, 70:230], small[100:106, 50:56] = True, True
    centre = draw.names(image, [large], ["a name"])
    assert centre[100, 150].any()
    moved = draw.names(image, [large], ["a name"], [(0.5, 0.5)])
    assert not moved[95:106, 145:156].any()
    rows, columns = np.nonzero(moved.any(-1))
    assert large[rows, columns].all()
    for mask in (small, np.roll(small, -95, axis=0)):  # with and without room above
        beside = draw.names(image, [mask], ["a name"])
        assert beside.any()
        assert not beside[mask].any()


def test_names_of_masks_that_overlap_stand_beside_each_other():
    image = np.zeros((200, 300, 3), np.uint8)
    masks, texts = np.ones((3, 200, 300), bool), ["one 0.90", "two 0.80", "three 0.70"]
    together = draw.names(image, masks, texts).any(-1).sum()
    alone = [draw.names(image, [masks[0]], [text]).any(-1).sum() for text in texts]
    assert together == sum(alone)


def test_a_new_phrase_takes_the_place_of_the_old_one_unless_it_is_bad(studio):
    desk = studio.open(png(picture()))
    studio.say(desk, "the disc")
    studio.say(desk, "the bar")
    assert desk.session.question()[1].text == "the bar"
    with pytest.raises(ValueError, match="shorten"):
        studio.say(desk, "the bar " * 200)
    assert desk.session.question()[1].text == "the bar"
    studio.say(desk, "  ")
    assert desk.session.actions == ()


def test_negative_marks_alone_stand_and_wait_for_a_direction(studio):
    desk = studio.open(png(picture()))
    studio.draw(desk, mark("click", [[0.1, 0.1]], positive=False))
    with pytest.raises(ValueError, match="negative points alone"):
        studio.answer(desk)
    studio.draw(desk, mark("click", CENTRE))
    studio.answer(desk)
    assert len(desk.marks) == 2
    assert len(desk.prediction) == 1


def test_a_reference_comes_from_any_marks_of_another_picture(studio, predictor):
    shown, desk = picture(seed=2), studio.open(png(picture()))
    gestures = [
        mark("click", CENTRE),
        mark("box", [[0.1, 0.1], [0.6, 0.7]]),
        mark("scribble", [[0.8, 0.1], [0.9, 0.2]], positive=False),
        mark("click", [[0.9, 0.9]], positive=False),
        mark("outline", [[0.2, 0.2], [0.5, 0.2], [0.4, 0.6]]),
    ]
    with pytest.raises(ValueError, match="mark it there first"):
        studio.show(desk, Sample(shown))
    for count in (3, 5):  # the second takes the place of the first
        studio.show(desk, Sample(shown, gestures[:count]))
    assert len(desk.session.actions) == 1
    studio.answer(desk)
    reference = predictor.reference([shown], [Sample(shown, gestures).prompts()])
    predictor.set_image(desk.picture)
    same(desk.prediction, predictor.predict(reference=reference))
    predictor.reset_image()


def test_users_do_not_meet_and_memory_returns(studio):
    one, two = (studio.open(png(picture(seed=seed))) for seed in (0, 1))
    studio.draw(one, mark("click", CENTRE))
    studio.say(two, "the disc")
    for desk in (two, one):
        studio.answer(desk)
    alone = studio.open(png(picture(seed=0)))
    studio.draw(alone, mark("click", CENTRE))
    studio.answer(alone)
    same(one.prediction, alone.prediction)
    assert two.marks == {}
    for desk in (one, two, alone, alone, None):
        studio.close(desk)
    assert len(studio.desks) == len(studio.pool) == studio.pool.nbytes == 0


def test_the_desk_at_rest_the_longest_makes_room(studio):
    desks = [studio.open(png(picture(seed=seed))) for seed in range(3)]
    studio.draw(desks[0], mark("click", CENTRE))  # now the second rests the longest
    studio.open(png(picture(seed=3)))
    assert len(studio.desks) == len(studio.pool) == 3
    studio.answer(desks[0])
    with pytest.raises(ValueError, match="put away"):
        studio.answer(desks[1])
    with pytest.raises(ValueError, match="open a picture first"):
        studio.answer(None)


def test_everything_is_cut_with_given_names_or_those_of_training(studio, predictor):
    desk = studio.open(png(picture()))
    studio.cut(desk)
    assert desk.everything.classes == CLASSES
    studio.cut(desk, ["<b>cat</b>", "dog"], ["sea"])
    assert desk.everything.classes == ("<b>cat</b>", "dog", "sea")
    assert predictor.image is None
    assert "<b>" not in pictures.inventory(desk)
    assert pictures.segments(desk).shape == (480, 720, 3)


def test_the_board_shows_marks_and_the_list_escapes_what_users_wrote(studio):
    desk = studio.open(png(picture()))
    assert pictures.answers(desk) == ""
    studio.draw(desk, mark("click", [[0.25, 0.25]]))
    studio.draw(desk, mark("click", [[0.75, 0.75]], positive=False))
    studio.say(desk, "<img src=x onerror=alert(1)>")
    studio.answer(desk, ["<i>", "bar"])
    shown = pictures.board(desk)
    assert shown.shape == (480, 720, 3)
    assert tuple(shown[120, 180]) == draw.GREEN
    assert tuple(shown[360, 540]) == draw.RED
    listed = pictures.answers(desk)
    assert "<img" not in listed
    assert "<i>" not in listed
    assert "&lt;img src=x" in listed
    studio.answer(desk, threshold=1.0)
    assert "lowest score" in pictures.answers(desk)


def test_lines_boxes_and_outlines_are_drawn_where_they_were_made():
    shown = np.zeros((100, 100, 3), np.uint8)
    for tool in ("scribble", "box", "outline"):
        where = [[0.1, 0.5], [0.9, 0.5], [0.9, 0.9]]
        drawn = pictures.marked(shown, [mark(tool, where)])
        assert tuple(drawn[round(0.5 * 99), 50]) == draw.GREEN, tool
    closed = pictures.marked(shown, [mark("outline", where)])
    assert closed[70, 49:52].any()  # the way back
    assert not pictures.marked(shown, [mark("scribble", where)])[70, 49:52].any()
    assert not shown.any()


def test_the_parcel_holds_masks_coco_and_panoptic(studio, predictor):
    desk = studio.open(png(picture()))
    studio.draw(desk, mark("click", CENTRE))
    studio.answer(desk, CLASSES, top_k=2)
    studio.cut(desk)
    with zipfile.ZipFile(io.BytesIO(pictures.parcel(desk))) as archive:
        content = json.loads(archive.read("object/annotations.json"))
        assert len(content["annotations"]) == len(desk.prediction)
        for index, entry in enumerate(content["annotations"]):
            mask = np.array(Image.open(archive.open(f"object/masks/picture_{index}.png"))) > 0
            np.testing.assert_array_equal(mask, desk.prediction.masks[index])
            np.testing.assert_array_equal(coco_mask.decode(entry["segmentation"]), mask)
        (answers,) = json.loads(archive.read("object/label_studio.json"))["predictions"]
        brushes = [one for one in answers["result"] if one["type"] == "brushlabels"]
        for one, mask in zip(brushes, desk.prediction.masks, strict=True):
            np.testing.assert_array_equal(read_brush(one["value"]["rle"], mask.shape), mask)
        segments = json.loads(archive.read("everything/panoptic.json"))["annotations"]
        assert len(segments[0]["segments_info"]) == len(desk.everything.segments)
        assert "everything/panoptic/picture.png" in archive.namelist()


def read_brush(data: list[int], size: tuple[int, int]) -> np.ndarray:
    """The mask in run lengths of Label Studio, read as its page does."""
    stream = "".join(f"{byte:08b}" for byte in data)
    place = 0

    def take(count: int) -> int:
        nonlocal place
        place += count
        return int(stream[place - count : place], 2)

    total, word = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    assert total == 4 * size[0] * size[1]
    values: list[int] = []
    while len(values) < total:
        repeated = take(1)
        length = take(sizes[take(2)]) + 1
        run = [take(word) for _ in range(1 if repeated else length)]
        values += run * (length if repeated else 1)
    return np.array(values[3::4], np.uint8).reshape(size) > 0


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (200, 300)])
def test_brushes_of_label_studio_hold_any_mask(size):
    rng = np.random.default_rng(0)
    noise = rng.random(size) < 0.5
    for mask in (np.zeros(size, bool), np.ones(size, bool), noise):
        np.testing.assert_array_equal(read_brush(label_studio.encode(mask), size), mask)


def test_outlines_of_label_studio_are_in_percent(studio):
    desk = studio.open(png(picture()))
    studio.draw(desk, mark("click", CENTRE))
    studio.answer(desk, CLASSES)
    (answers,) = label_studio.task(desk.prediction, "a.png")["predictions"]
    outlines = [one["value"] for one in answers["result"] if one["type"] == "polygonlabels"]
    (rings,) = desk.prediction.to_polygons()
    assert len(outlines) == len(rings)
    for outline, ring in zip(outlines, rings, strict=True):
        assert outline["polygonlabels"] == [desk.prediction.names[0]]
        pixels = np.array(outline["points"]) * [[1.2, 0.8]] - 0.5
        np.testing.assert_allclose(pixels, ring, atol=1e-4)


def test_names_are_a_list_with_commas():
    assert names(" cat, ,dog,cat ,") == ["cat", "dog"]
    assert names("") == []


def test_without_a_checkpoint_the_command_says_how_to_get_one(tmp_path, monkeypatch, capsys):
    pytest.importorskip("gradio")
    monkeypatch.chdir(tmp_path)
    assert command.main([]) == 1
    said = capsys.readouterr().err
    assert "no checkpoint at runs/shapes" in said
    assert "make train" in said
    assert "seem_jax.convert" in said


@pytest.mark.parametrize(
    "flag",
    ["--port=0", "--port=70000", "--max-megabytes=0", "--max-megapixels=nan", "--max-users=-1"],
)
def test_numbers_out_of_range_are_one_line(capsys, flag):
    pytest.importorskip("gradio")
    assert command.main([flag]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {flag.partition('=')[0]} ")


def test_a_port_that_is_taken_is_told_before_anything_compiles(
    tmp_path, monkeypatch, predictor, capsys
):
    pytest.importorskip("gradio")
    (tmp_path / "checkpoints").mkdir()
    monkeypatch.setattr(command.Predictor, "from_checkpoint", lambda *_, **__: predictor)
    monkeypatch.setattr(predictor, "warm_up", lambda: pytest.fail("it compiles"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert command.main([f"--checkpoint={tmp_path}", f"--port={port}"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: --port {port} cannot be had")
