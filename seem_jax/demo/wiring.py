"""What both tabs of the page share: boards to draw on, uploaded files, events with friendly errors."""

from __future__ import annotations

import functools
import html
import inspect
import threading
from collections.abc import Callable
from pathlib import Path

import gradio as gr
from gradio.events import Dependency
from gradio.utils import get_upload_folder

from seem_jax.demo.studio import TOOLS

HERE = Path(__file__).parent
QUIET = {"api_visibility": "private", "show_progress": "hidden"}  # of every event
# Rounds of all users stand in one line: the model answers one at a time, and what a user does counts in
# the order in which it was done, also where it comes faster than answers.
IN_LINE = QUIET | {"trigger_mode": "multiple", "concurrency_id": "rounds", "concurrency_limit": 1}
SUFFIXES = [".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"]
HOW = {
    "click": "Click on the object. Shift or the right button: on what it is not.",
    "box": "Hold the button and draw from one corner to the other.",
    "scribble": "Hold the button and scribble on the object. With Shift: on what it is not.",
    "outline": "Hold the button and draw around the object.",
}
_BOARD = """${value ? `
<div class="frame" style="width: min(100%, ${value.width}px, 78vh * ${value.width / value.height})">
  <img class="board" src="${value.src}" draggable="false" alt="picture"
       style="aspect-ratio: ${value.width} / ${value.height}">
  <svg viewBox="0 0 1 1" preserveAspectRatio="none"><polyline points=""/></svg>
</div>` : `<div class="empty">${empty}</div>`}"""


def tools(name: str) -> gr.Radio:
    """The choice of what a gesture means."""
    return gr.Radio(list(TOOLS), value=TOOLS[0], label="Tool", elem_id=name)


def board(empty: str, name: str, tools: str = "") -> gr.HTML:
    """A picture of `pictures.on_page`, or None.

    With the elem_id of tools, one can draw on it: its event `gesture` carries where, and whether it
    was negative.
    """
    return gr.HTML(
        None,
        html_template=_BOARD,
        js_on_load=(HERE / "board.js").read_text() if tools else None,
        apply_default_css=False,
        empty=empty,
        tools=f"#{tools}",
        elem_id=name,
    )


def upload_path(path: str | None) -> Path:
    """The path of an upload; ValueError for any other file of this machine.

    Gradio checks what a page sends only for apps that `launch` started (6.31), and ours is not.
    """
    if path is None:
        raise ValueError("there is no file.")
    place = Path(path).resolve()
    if not place.is_relative_to(Path(get_upload_folder()).resolve()) or not place.is_file():
        raise ValueError("the file was not uploaded by this page.")
    return place


def uploaded(path: str | None, megabytes: float) -> bytes:
    """An uploaded file, of which not more is read than is needed to refuse it."""
    with upload_path(path).open("rb") as file:
        return file.read(int(megabytes * 1e6) + 1)


def aside(function: Callable) -> Callable:
    """The function in a thread of its own: Gradio clears states in the thread that serves everybody."""
    return lambda value: threading.Thread(target=function, args=(value,)).start()


def on(event: Callable, function: Callable, inputs: list, outputs: list) -> Dependency:
    """Binds a function to an event; a ValueError becomes a message and changes nothing."""

    @functools.wraps(function)
    def once(*values):
        try:
            return function(*values)
        except ValueError as error:
            return _told(error)

    @functools.wraps(function)
    def step_by_step(*values):
        try:
            yield from function(*values)
        except ValueError as error:
            yield _told(error)

    if inspect.isgeneratorfunction(function):
        return event(step_by_step, inputs, outputs, **QUIET)
    return event(once, inputs, outputs, **IN_LINE)


def on_upload(file: gr.File, function: Callable, inputs: list, outputs: list) -> None:
    """Binds a function to an upload; afterwards there is room for the next, whatever became of it."""
    on(file.upload, function, inputs, outputs).then(lambda: None, None, file, **QUIET)


def _told(error: ValueError) -> object:
    """Shows the reason, as text whatever is in it, and leaves the page as it is."""
    gr.Warning(html.escape(str(error)), duration=8)
    return gr.skip()
