"""A real page in a real browser: the app served from this process, and what a user's hands do."""

from __future__ import annotations

import contextlib
import shutil
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from seem_jax.demo.studio import Studio

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
PATIENCE = 120.0  # seconds for anything to appear


@contextlib.contextmanager
def served(studio: Studio) -> Iterator[str]:
    """The address of the app, served by a thread of this process."""
    from seem_jax.demo import app

    with socket.socket() as probe:
        probe.bind((app.ADDRESS, 0))
        port = probe.getsockname()[1]
    server = app.server(studio, port)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        yield f"http://{app.ADDRESS}:{port}"
    finally:
        server.should_exit = True
        thread.join(PATIENCE)


def needs_browser() -> None:
    """Skips a test where there is no browser, and says how to get one."""
    pytest.importorskip("gradio", reason="pip install -r requirements-demo.txt")
    pytest.importorskip("selenium", reason="pip install -r requirements-dev.txt")
    if not CHROMIUM or not DRIVER:
        pytest.skip("no chromium with chromedriver: apt-get install chromium chromium-driver")


def until(true, what: str = "the server"):
    """The first value that counts as true; AssertionError where none comes in time."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if value := true():
            return value
        time.sleep(0.05)
    raise AssertionError(f"{what} did not come within {PATIENCE:g} s")


@contextlib.contextmanager
def browser(downloads: Path) -> Iterator:
    """A headless Chromium of its own, a new user to every server."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "headless=new",
        "no-sandbox",  # containers run as root
        "disable-dev-shm-usage",
        "disable-gpu",
        "disable-background-networking",
        "window-size=1280,1100",
        "host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # whoever else is asked is lost
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


class Page:
    """One user's page. Places are fractions of the picture."""

    def __init__(self, driver, address: str, pictures: Path):
        self.driver, self.pictures = driver, pictures
        driver.get(address)
        self.find("#open input[type=file]")

    def find(self, css: str):
        from selenium.webdriver.common.by import By

        found = lambda: self.driver.find_elements(By.CSS_SELECTOR, css)  # noqa: E731
        return until(found, f"{css} on the page")[0]

    def text(self, css: str) -> str:
        return self.find(css).get_attribute("innerText")

    def says(self, words: str) -> None:
        """Waits until a message with these words stands on the page."""
        until(lambda: words in self.driver.page_source, repr(words))

    def source(self, board: str = "#board") -> str:
        """What a board shows; "" where it is empty."""
        script = "return document.querySelector(arguments[0] + ' img.board')?.src ?? ''"
        return self.driver.execute_script(script, board)

    @contextlib.contextmanager
    def changes(self, board: str = "#board") -> Iterator[None]:
        """Waits until what is done inside has changed what a board shows."""
        before = self.source(board)
        yield
        until(lambda: self.source(board) not in (before, ""), f"a change of {board}")

    def upload(self, file: Path, into: str = "#open") -> None:
        self.find(f"{into} input[type=file]").send_keys(str(file))

    def open(self, file: Path) -> None:
        with self.changes():
            self.upload(file)

    def tool(self, name: str) -> None:
        self.find(f"#tools input[value={name}]").click()

    def drag(self, places: Sequence[tuple[float, float]], board: str = "#board", shift=False):
        """Presses at the first place, moves over the others, lets go at the last."""
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.keys import Keys

        picture = self.find(f"{board} img.board")
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", picture)
        width, height = picture.size["width"], picture.size["height"]
        moves = [(round((x - 0.5) * width), round((y - 0.5) * height)) for x, y in places]
        hand = ActionChains(self.driver, duration=20)
        hand = hand.key_down(Keys.SHIFT) if shift else hand
        hand.move_to_element_with_offset(picture, *moves[0]).click_and_hold()
        for move in moves[1:]:
            hand.move_to_element_with_offset(picture, *move)
        hand.release()
        hand = hand.key_up(Keys.SHIFT) if shift else hand
        hand.perform()

    def click(self, x: float, y: float, *, shift: bool = False) -> None:
        with self.changes():
            self.drag([(x, y)], shift=shift)

    def write(self, css: str, text: str) -> None:
        from selenium.webdriver.common.keys import Keys

        field = self.find(f"{css} textarea, {css} input")
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(Keys.DELETE)
        field.send_keys(text + Keys.ENTER)

    def press(self, css: str) -> None:
        self.driver.execute_script("arguments[0].click()", self.find(css))

    def shot(self, name: str) -> None:
        """Writes a picture of the whole page."""
        height = self.driver.execute_script("return document.documentElement.scrollHeight")
        self.driver.set_window_size(1280, max(1100, min(height + 160, 3000)))
        time.sleep(0.4)  # messages fade in
        self.driver.save_screenshot(str(self.pictures / f"{name}.png"))

    def complaints(self) -> list[str]:
        """What went wrong in the page's own program."""
        return [line["message"] for line in self.driver.get_log("browser") if _grave(line)]


def _grave(line: dict) -> bool:
    refused = "status of 4" in line["message"]  # an upload that the server refuses, as it should
    return line["level"] == "SEVERE" and not refused
