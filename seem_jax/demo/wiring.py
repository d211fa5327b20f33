"""What both tabs of the page share: boards to draw on, uploaded files, events with friendly errors."""

from __future__ import annotations

import functools
import html
import inspect
import threading
from collections.abc import Callable
from pathlib import Path

import gradio as gr

from seem_jax.demo.studio import TOOLS

HERE = Path(__file__).parent
SUFFIXES = [".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"]
HOW = {
    "click": "Click on the object. Shift or the right button: on what it is not.",
    "box": "Hold the button and draw from one corner to the other.",
    "scribble": "Hold the button and scribble on the object. With Shift: on what it is not.",
    "outline": "Hold the button and draw around the object.",
}
_BOARD = (
    '${value ? `<div class="frame"><img class="board" src="${value}" draggable="false" alt="picture">'
    '<svg viewBox="0 0 1 1" preserveAspectRatio="none"><polyline points=""/></svg></div>`'
    ' : `<div class="empty">${empty}</div>`}'
)


def tools(name: str) -> gr.Radio:
    """The choice of what a gesture means."""
    return gr.Radio(list(TOOLS), value=TOOLS[0], label="Tool", elem_id=name)


def board(empty: str, name: str, tools: str) -> gr.HTML:
    """A picture to draw on; its event `gesture` carries where, and whether it was negative."""
    return gr.HTML(
        "",
        html_template=_BOARD,
        js_on_load=(HERE / "board.js").read_text(),
        apply_default_css=False,
        empty=empty,
        tools=f"#{tools}",
        elem_id=name,
    )


def uploaded(path: str | None, megabytes: float) -> bytes:
    """An uploaded file, of which not more is read than is needed to refuse it."""
    if path is None:
        raise ValueError("there is no file.")
    with open(path, "rb") as file:
        return file.read(int(megabytes * 1e6) + 1)


def aside(function: Callable) -> Callable:
    """The function in a thread of its own: Gradio clears states in the thread that serves everybody."""
    return lambda value: threading.Thread(target=function, args=(value,)).start()


def on(event: Callable, function: Callable, inputs: list, outputs: list) -> None:
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

    friendly = step_by_step if inspect.isgeneratorfunction(function) else once
    event(friendly, inputs, outputs, api_visibility="private", show_progress="hidden")


def _told(error: ValueError) -> object:
    """Shows the reason, as text whatever is in it, and leaves the page as it is."""
    gr.Warning(html.escape(str(error)), duration=8)
    return gr.skip()
