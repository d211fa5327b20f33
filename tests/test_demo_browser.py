"""The web app in a real browser. Pictures of each state are left in the folder of the test.

The first test runs wherever Chromium is installed; the others, which take longer, are slow.
"""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from seem_jax.demo.studio import Limits, Studio
from tests.browser_support import Page, browser, needs_browser, served, until
from tests.predictor_support import picture, same, tiny_predictor
from tests.test_demo import png_header

LIMITS = Limits(megabytes=0.5, megapixels=1.0, video_megabytes=1.0)


@pytest.fixture(scope="module")
def predictor():
    needs_browser()
    predictor = tiny_predictor()
    predictor.warm_up()
    return predictor


@pytest.fixture
def studio(predictor):
    return Studio(predictor, LIMITS)


@pytest.fixture
def address(studio):
    with served(studio) as address:
        yield address


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def driver(predictor, downloads):
    with browser(downloads) as driver:
        yield driver


@pytest.fixture
def files(tmp_path):
    """Two pictures of different sizes."""
    for number, size in enumerate([(80, 120), (90, 70)]):
        Image.fromarray(picture(*size, seed=number)).save(tmp_path / f"{number}.png")
    return [tmp_path / "0.png", tmp_path / "1.png"]


def test_a_user_opens_clicks_refines_undoes_and_writes(
    studio, address, driver, predictor, files, tmp_path
):
    page = Page(driver, address, tmp_path)
    page.shot("1_empty")
    page.open(files[0])
    page.shot("2_open")
    (desk,) = studio.desks
    np.testing.assert_array_equal(desk.picture, picture(80, 120, seed=0))

    page.click(0.25, 0.5)
    page.shot("3_click")
    clicked = desk.prediction
    predictor.set_image(desk.picture)
    (x, y) = desk.session.question()[1].points[0]
    assert (x, y) == pytest.approx((30, 40), abs=0.5)  # where the mouse was, in pixels of the file
    same(clicked, predictor.predict(points=[[x, y]], classes=predictor.classes))
    page.click(0.75, 0.25, shift=True)
    assert [mark.positive for mark in desk.marks.values()] == [True, False]
    page.shot("4_refine")
    with page.changes():
        page.press("#undo")
    same(desk.prediction, clicked)

    page.write("#text", "the disc")
    page.says("the disc")
    until(lambda: "the disc" in page.text("#answers"), "the answer to a phrase")
    assert desk.session.question()[1].text == "the disc"
    page.shot("5_text")
    assert page.complaints() == []


@pytest.mark.slow
def test_every_tool_marks_what_the_hand_drew(studio, address, driver, files, tmp_path):
    page = Page(driver, address, tmp_path)
    page.open(files[0])
    (desk,) = studio.desks
    corners = [(0.2, 0.2), (0.5, 0.25), (0.7, 0.3), (0.6, 0.8), (0.3, 0.7)]
    for tool in ("box", "scribble", "outline"):
        page.tool(tool)
        with page.changes():
            page.drag(corners)
        page.shot(tool)
    asked = desk.session.question()[1]
    np.testing.assert_allclose(asked.box, [[24, 16, 37, 57]], atol=1)  # first and last corner
    (line,) = asked.scribble
    (ring,) = asked.polygon
    for corner in corners:
        pixel = np.array(corner) * (120, 80)
        assert np.abs(line - pixel).sum(1).min() < 2
        assert np.abs(ring - pixel).sum(1).min() < 2
    page.tool("scribble")
    with page.changes():
        page.drag([(0.8, 0.8), (0.9, 0.9)], shift=True)
    assert desk.session.question()[1].scribble_labels.tolist() == [True, False]
    page.tool("box")
    page.drag([(0.1, 0.1)])
    page.says("a box has two corners")
    assert len(desk.marks) == 4
    for left in (3, 2, 1, 0):
        with page.changes():
            page.press("#undo")
        assert len(desk.marks) == left
    page.press("#undo")
    page.says("there is nothing to undo")
    assert page.complaints() == []


@pytest.mark.slow
def test_everything_references_options_and_the_download(
    studio, address, driver, downloads, files, tmp_path
):
    page = Page(driver, address, tmp_path)
    page.open(files[0])
    (desk,) = studio.desks
    page.press("#cut")
    until(lambda: page.source("#everything"), "the segments")
    until(lambda: "segment" in page.text("#inventory"), "the list of segments")
    page.shot("everything")

    page.press("#reference button")
    with page.changes("#reference-board"):
        page.upload(files[1], "#open-reference")
    with page.changes("#reference-board"):
        page.drag([(0.5, 0.5)], "#reference-board")
    with page.changes():
        page.press("#find-reference")
    page.shot("reference")
    assert desk.session.question()[1].reference.num_images == 1

    page.click(0.5, 0.5)
    page.write("#things", "<b>cat</b>, dog, dog")
    until(lambda: desk.prediction.classes[:2] == ("<b>cat</b>", "dog"), "the new names")
    until(lambda: "cat" in page.text("#answers") or "dog" in page.text("#answers"), "names")
    assert not page.driver.find_elements("css selector", "#answers b")
    page.shot("names")

    until(lambda: page.find("#download").is_enabled(), "the download")
    page.find("#download").click()
    saved = until(lambda: downloaded(downloads, "results"), "the file")
    with zipfile.ZipFile(saved) as archive:
        content = json.loads(archive.read("object/annotations.json"))
    assert len(content["annotations"]) == len(desk.prediction)
    assert page.complaints() == []


@pytest.mark.slow
def test_a_clip_is_marked_followed_and_taken_home(address, driver, downloads, tmp_path):
    pytest.importorskip("av", reason="pip install -r requirements-video.txt")
    from seem_jax.video import write_video

    frames = [np.roll(picture(64, 96), 4 * number, axis=1) for number in range(6)]
    write_video(tmp_path / "clip.mp4", frames, fps=6)
    page = Page(driver, address, tmp_path)
    page.press("button[role=tab]:nth-of-type(2)")
    page.press("#clip-run")
    page.says("open a video first")
    with page.changes("#clip-board"):
        page.upload(tmp_path / "clip.mp4", "#open-clip")
    page.says("6 frames, 6 a second")
    with page.changes("#clip-board"):
        page.drag([(0.5, 0.5)], "#clip-board")
    page.write("#clip-text", "<i>the disc</i>")
    until(lambda: "<i>the disc</i>" in page.text("#clip-orders"), "the phrase, as text")
    page.press("#clip-leave")
    page.says("object 1 is not there yet")
    page.shot("marked")
    page.press("#clip-run")
    page.says("6 frames followed")
    until(lambda: page.find("#clip-result video").get_attribute("src"), "the result")
    page.shot("followed")
    page.find("#clip-masks").click()
    saved = until(lambda: downloaded(downloads, "masks"), "the file")
    with zipfile.ZipFile(saved) as archive:
        assert len(archive.namelist()) == 6
    assert page.complaints() == []


@pytest.mark.slow
def test_two_users_at_once_do_not_meet(studio, address, driver, predictor, files, tmp_path):
    with browser(tmp_path) as other:
        pages = [Page(driver, address, tmp_path), Page(other, address, tmp_path)]
        for page, file in zip(pages, files, strict=True):
            page.open(file)
        desks = studio.desks
        for turn in range(4):
            for page in pages:  # both events are under way before either is waited for
                page.drag([(0.2 + 0.1 * turn, 0.5)])
            for desk in desks:
                until(lambda desk=desk, turn=turn: len(desk.marks) == turn + 1, "a click")
        for number, (page, desk) in enumerate(zip(pages, desks, strict=True)):
            until(lambda desk=desk: desk.prediction is not None, "an answer")
            page.shot(f"user_{number}")
            height, width = [(80, 120), (90, 70)][number]
            np.testing.assert_array_equal(desk.picture, picture(height, width, seed=number))
            alone = Studio(predictor, LIMITS)
            copy = alone.open(files[number].read_bytes())
            for gesture in desk.marks.values():
                alone.draw(copy, gesture)
                alone.answer(copy, predictor.classes)
            same(desk.prediction, copy.prediction)
        with pages[1].changes():
            pages[1].press("#restart")
        assert [len(desk.marks) for desk in desks] == [4, 0]


@pytest.mark.slow
def test_a_hostile_upload_is_refused_in_words_and_the_page_goes_on(
    studio, address, driver, files, tmp_path
):
    page = Page(driver, address, tmp_path)
    cases = {
        "empty.png": (b"", "empty"),
        "large.png": (bytes(900_000), "this server takes 0.5"),
        "larger.png": (bytes(2_000_000), "exceed"),
        "text.png": (b"not a picture at all", "not an image"),
        "bomb.png": (png_header(50_000, 50_000), "image"),
        "program.exe": (b"MZ" + bytes(100), "nvalid file type"),
        "<img src=x onerror=alert(1)>.png": (b"no", "not an image"),
        "n" * 240 + ".png": (b"no", "not an image"),
    }
    for number, (name, (data, words)) in enumerate(cases.items()):
        file = tmp_path / name
        file.write_bytes(data)
        page.upload(file)
        page.says(words)
        page.shot(f"refused_{number}")
        assert studio.desks == ()
        page = Page(driver, address, tmp_path)
    page.open(files[0])
    page.click(0.5, 0.5)
    assert len(studio.desks) == 1


def downloaded(folder, name=""):
    """The newest finished file in a folder, of those whose names begin so."""
    done = [
        file for file in folder.glob(f"{name}*") if not file.name.endswith((".crdownload", ".tmp"))
    ]
    return max(done, key=lambda file: file.stat().st_mtime, default=None)
