"""The page: components, and which function of the studio each event calls. Needs Gradio.

A user's desk lives in `gr.State`, so nobody sees another's; it is cleared when it has rested for long
or the page was left, and by the studio when too many others came. Files on disk are found by nobody's
path but Gradio's own, and the page sends none back.
"""

from __future__ import annotations

import functools
import html
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastapi
import gradio as gr
import uvicorn
from PIL import Image

from seem_jax.demo import pictures
from seem_jax.demo.studio import TOOLS, Desk, Sample, Studio, mark, names

ADDRESS = "127.0.0.1"
HERE = Path(__file__).parent
SUFFIXES = [".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"]
HOW = {
    "click": "Click on the object. Shift or the right button: on what it is not.",
    "box": "Hold the button and draw from one corner to the other.",
    "scribble": "Hold the button and scribble on the object. With Shift: on what it is not.",
    "outline": "Hold the button and draw around the object.",
}
BOARD = (
    '${value ? `<div class="frame"><img class="board" src="${value}" draggable="false" alt="picture">'
    '<svg viewBox="0 0 1 1" preserveAspectRatio="none"><polyline points=""/></svg></div>`'
    ' : `<div class="empty">${empty}</div>`}'
)


def theme() -> gr.themes.Base:
    """Fonts of the system, since the page must not ask any other server for them."""
    return gr.themes.Soft(
        primary_hue="indigo",
        font=("system-ui", "sans-serif"),
        font_mono=("ui-monospace", "monospace"),
    )


def build(studio: Studio) -> gr.Blocks:
    """The page for a studio. Every event is private: it can be used from the page alone."""
    with gr.Blocks(
        title="seem_jax", analytics_enabled=False, delete_cache=(600, 3600), fill_width=True
    ) as page:
        gr.Markdown(
            "## Segment everything everywhere\n"
            "Open a picture and say what you mean: click, draw, write, or show it on another picture. "
            "Any mix is one question; correct the answer with more of them."
        )
        with gr.Tab("Picture"):
            _picture_tab(studio)
    return page


def server(studio: Studio, port: int) -> uvicorn.Server:
    """The page as a server on 127.0.0.1; `run()` serves until it is interrupted.

    Built from Gradio's parts rather than with `launch`, which asks the network whether it may start
    and can open a tunnel.
    """
    # Whatever way a file comes in, nothing larger than a picture may be is ever decoded:
    # Pillow refuses twice its limit.
    Image.MAX_IMAGE_PIXELS = int(studio.limits.megapixels * 1e6 / 2)
    site = gr.mount_gradio_app(
        fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        build(studio),
        path="",
        server_name=ADDRESS,
        server_port=port,
        show_error=False,
        ssr_mode=False,
        max_file_size=int(max(studio.limits.megabytes, studio.limits.video_megabytes) * 1e6),
        footer_links=[],
        theme=theme(),
        css=(HERE / "page.css").read_text(),
    )
    return uvicorn.Server(uvicorn.Config(site, host=ADDRESS, port=port, log_level="warning"))


def _picture_tab(studio: Studio) -> None:
    limits = studio.limits
    # Time at rest counts from the last event that set the state: every event returns it.
    state = gr.State(None, time_to_live=limits.seconds, delete_callback=studio.close)
    with gr.Row():
        with gr.Column(scale=5, min_width=420):
            board = _board("Your picture appears here.")
            hint = gr.Markdown(HOW["click"])
            with gr.Row():
                undo = gr.Button("Undo", size="md", elem_id="undo")
                restart = gr.Button("Start over", size="md", elem_id="restart")
                cut = gr.Button("Name everything", size="md", elem_id="cut")
                download = gr.DownloadButton(
                    "Download", size="md", interactive=False, elem_id="download"
                )
            everything = gr.HTML(apply_default_css=False, elem_id="everything")
            inventory = gr.HTML(apply_default_css=False, elem_id="inventory")
        with gr.Column(scale=3, min_width=320):
            file = gr.File(
                label=f"Open a picture (to {limits.megabytes:g} MB, {limits.megapixels:g} megapixels)",
                file_types=SUFFIXES,
                type="filepath",
                height=150,
                elem_id="open",
            )
            tool = gr.Radio(list(TOOLS), value=TOOLS[0], label="Tool", elem_id="tools")
            negative = gr.Checkbox(label="This is not what I mean (negative)", elem_id="negative")
            with gr.Row():
                text = gr.Textbox(
                    label="Text",
                    placeholder="the red star; Enter asks",
                    max_length=300,
                    elem_id="text",
                    scale=4,
                )
            answers = gr.HTML(apply_default_css=False, elem_id="answers")
            things, stuff, top_k, threshold = _options(studio)
            sample, shown = _reference(studio, tool, negative)
    view = [state, board, answers, hint, download]
    options = [things, stuff, top_k, threshold]

    def answered(desk: Desk | None, *options: Any) -> tuple:
        return (desk, *_round(studio, desk, *options))

    def opened(path: str | None, desk: Desk | None) -> tuple:
        fresh = studio.open(_bytes(path, limits.megabytes))
        studio.close(desk)
        return fresh, *_view(studio, fresh, HOW["click"]), None, "", "", ""

    def gesture(
        event: gr.EventData, desk: Desk | None, tool: str, negative: bool, *options: Any
    ) -> tuple:
        studio.draw(desk, mark(tool, event.where, not (negative or event.negative)))
        return answered(desk, *options)

    def said(desk: Desk | None, text: str, *options: Any) -> tuple:
        studio.say(desk, text)
        return answered(desk, *options)

    def undone(desk: Desk | None, *options: Any) -> tuple:
        studio.undo(desk)
        return (*answered(desk, *options), desk.phrase[1] if desk.phrase else "")

    def restarted(desk: Desk | None) -> tuple:
        studio.restart(desk)
        return desk, *_view(studio, desk, HOW["click"]), ""

    def found(desk: Desk | None, sample: Sample | None, *options: Any) -> tuple:
        studio.show(desk, sample)
        return answered(desk, *options)

    def named(desk: Desk | None, things: str, stuff: str) -> tuple:
        studio.cut(desk, names(things), names(stuff))
        source = pictures.as_source(pictures.segments(desk))
        shown = f'<div class="frame"><img class="board" alt="segments" src="{source}"></div>'
        return desk, shown, pictures.inventory(desk), _parcel(studio, desk)

    fresh = [*view, file, text, everything, inventory]
    _on(file.upload, opened, [file, state], fresh)
    _on(board.gesture, gesture, [state, tool, negative, *options], view)
    _on(text.submit, said, [state, text, *options], view)
    _on(undo.click, undone, [state, *options], [*view, text])
    _on(restart.click, restarted, [state], [*view, text])
    _on(shown.click, found, [state, sample, *options], view)
    _on(cut.click, named, [state, things, stuff], [state, everything, inventory, download])
    for option in options:
        event = option.submit if isinstance(option, gr.Textbox) else option.release
        _on(event, answered, [state, *options], view)
    _on(tool.change, lambda tool: HOW[tool], [tool], [hint])


def _options(studio: Studio) -> tuple[gr.Textbox, gr.Textbox, gr.Slider, gr.Slider]:
    """Vocabulary, number of answers, lowest score."""
    predictor = studio.predictor
    things = predictor.classes[: predictor.num_things]
    stuff = predictor.classes[predictor.num_things :]
    with gr.Accordion("Names and number of answers", open=False):
        return (
            gr.Textbox(", ".join(things), label="Names of things, with commas", elem_id="things"),
            gr.Textbox(", ".join(stuff), label="Names of regions (sky, grass)", elem_id="stuff"),
            gr.Slider(1, 8, 1, step=1, label="Answers at most", elem_id="top"),
            gr.Slider(0, 1, 0, step=0.01, label="Lowest score", elem_id="lowest"),
        )


def _reference(studio: Studio, tool: gr.Radio, negative: gr.Checkbox) -> tuple[gr.State, gr.Button]:
    """(the reference picture with its marks, the button that asks for what it shows)."""
    state = gr.State(None, time_to_live=studio.limits.seconds)
    with gr.Accordion("Show it on another picture", open=False, elem_id="reference"):
        file = gr.File(
            label="A picture that shows the object",
            file_types=SUFFIXES,
            type="filepath",
            height=130,
            elem_id="open-reference",
        )
        board = _board("Open a picture, then mark the object on it.", "reference-board")
        with gr.Row():
            clear = gr.Button("Clear marks", elem_id="clear-reference")
            shown = gr.Button("Find it in my picture", variant="primary", elem_id="find-reference")

    def view(sample: Sample) -> tuple:
        return sample, pictures.as_source(pictures.sample(sample))

    def opened(path: str | None) -> tuple:
        return (*view(Sample(studio.read(_bytes(path, studio.limits.megabytes)))), None)

    def gesture(event: gr.EventData, sample: Sample | None, tool: str, negative: bool) -> tuple:
        if sample is None:
            raise ValueError("open a picture that shows the object first.")
        fresh = mark(tool, event.where, not (negative or event.negative))
        fresh.prompts(sample.picture.shape[:2])  # raises where the gesture marks nothing
        return view(Sample(sample.picture, [*sample.marks, fresh]))

    def cleared(sample: Sample | None) -> tuple:
        return (None, None) if sample is None else view(Sample(sample.picture))

    _on(file.upload, opened, [file], [state, board, file])
    _on(board.gesture, gesture, [state, tool, negative], [state, board])
    _on(clear.click, cleared, [state], [state, board])
    return state, shown


def _board(empty: str, name: str = "board") -> gr.HTML:
    """A picture to draw on; its event `gesture` carries where, and whether it was negative."""
    return gr.HTML(
        "",
        html_template=BOARD,
        js_on_load=(HERE / "board.js").read_text(),
        apply_default_css=False,
        empty=empty,
        elem_id=name,
    )


def _round(
    studio: Studio, desk: Desk, things: str, stuff: str, top_k: int, threshold: float
) -> tuple:
    """The view after an answer; where there is none, the view with the reason."""
    start = time.perf_counter()
    try:
        classes = [*names(things), *names(stuff)]
        studio.answer(desk, list(dict.fromkeys(classes)), top_k=int(top_k), threshold=threshold)
    except ValueError as error:
        return _view(studio, desk, html.escape(str(error)))
    took = 1000 * (time.perf_counter() - start)
    count = len(desk.session.actions)
    said = f"{count} prompt{'s' if count != 1 else ''}, answered in {took:.0f} ms."
    return _view(studio, desk, said if count else HOW["click"])


def _view(studio: Studio, desk: Desk, hint: str) -> tuple:
    """(picture, list of answers, hint, parcel) of a desk."""
    source = pictures.as_source(pictures.board(desk))
    return source, pictures.answers(desk), hint, _parcel(studio, desk)


def _parcel(studio: Studio, desk: Desk) -> gr.DownloadButton:
    """The download button, with a fresh parcel where there is something to take home."""
    if desk.prediction is None and desk.everything is None:
        return gr.DownloadButton(value=None, interactive=False)
    file = Path(desk.folder.name) / "masks.zip"  # Gradio takes a copy of its own
    file.write_bytes(pictures.parcel(desk, studio.predictor))
    return gr.DownloadButton(value=str(file), interactive=True)


def _bytes(path: str | None, megabytes: float) -> bytes:
    """An uploaded file, of which not more is read than is needed to refuse it."""
    if path is None:
        raise ValueError("there is no file.")
    with open(path, "rb") as file:
        return file.read(int(megabytes * 1e6) + 1)


def _on(event: Callable, function: Callable, inputs: list, outputs: list) -> None:
    """Binds a function to an event; a ValueError becomes a message and changes nothing."""

    @functools.wraps(function)
    def friendly(*values, **named):
        try:
            return function(*values, **named)
        except ValueError as error:
            gr.Warning(html.escape(str(error)), duration=8)
            return gr.skip()

    event(friendly, inputs, outputs, api_visibility="private", show_progress="hidden")
