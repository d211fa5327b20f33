"""The tab for one picture: any mix of prompts, answers, everything named, results to take home.

A user's desk lives in `gr.State`, so nobody sees another's. It is cleared when it has rested for long,
an hour after its page was left at the latest, and by the studio when too many others came.
"""

from __future__ import annotations

import html
import time
from pathlib import Path
from typing import Any

import gradio as gr

from seem_jax.demo import pictures
from seem_jax.demo.studio import Desk, Sample, Studio, mark, names
from seem_jax.demo.wiring import HOW, SUFFIXES, aside, on, on_upload, tools, uploaded
from seem_jax.demo.wiring import board as a_board

LISTED = 6  # prompts that the line below the picture names


def picture_tab(studio: Studio) -> gr.State:
    """Adds the tab to the page that is being built; the reference picture, for the other tab."""
    # Time at rest counts from the last event that set the state: every event returns it.
    rest = {"time_to_live": studio.limits.seconds, "delete_callback": aside(studio.close)}
    state = gr.State(None, **rest)
    with gr.Row():
        with gr.Column(scale=5, min_width=420):
            board = a_board("Your picture appears here.", "board", "tools")
            hint = gr.Markdown(HOW["click"])
            with gr.Row():
                undo = gr.Button("Undo", size="md", elem_id="undo")
                restart = gr.Button("Start over", size="md", elem_id="restart")
                cut = gr.Button("Name everything", size="md", elem_id="cut")
                download = gr.DownloadButton(
                    "Download", size="md", interactive=False, elem_id="download"
                )
            everything = a_board("", "everything")
            inventory = gr.HTML(apply_default_css=False, elem_id="inventory")
        with gr.Column(scale=3, min_width=320):
            limits = studio.limits
            most = f"{limits.megabytes:g} MB, {limits.megapixels:g} megapixels"
            file = a_file(f"Open a picture (to {most})", "open")
            tool = tools("tools")
            negative = gr.Checkbox(label="This is not what I mean (negative)", elem_id="negative")
            text = gr.Textbox(
                label="Text", placeholder="the red star; Enter asks", max_length=300, elem_id="text"
            )
            answers = gr.HTML(apply_default_css=False, elem_id="answers")
            options = _options(studio)
            sample, shown = _reference(studio, tool, negative)

    do = _Events(studio)
    view = [state, board, answers, hint, download]
    on_upload(file, do.opened, [file, state], [*view, text, everything, inventory])
    on(board.gesture, do.drawn, [state, tool, negative, *options], view)
    on(text.submit, do.said, [state, text, *options], view)
    on(undo.click, do.undone, [state, *options], [*view, text])
    on(restart.click, do.restarted, [state], [*view, text])
    on(shown.click, do.shown, [state, sample, *options], view)
    on(cut.click, do.cut, [state, *options[:2]], [state, everything, inventory, download])
    for option in options:
        event = option.submit if isinstance(option, gr.Textbox) else option.release
        on(event, do.answered, [state, *options], view)
    on(tool.change, lambda tool: HOW[tool], [tool], [hint])
    return sample


class _Events:
    """What each event of the tab does; what they return goes to the components named above."""

    def __init__(self, studio: Studio):
        self.studio = studio

    def opened(self, path: str | None, desk: Desk | None) -> tuple:
        fresh = self.studio.open(uploaded(path, self.studio.limits.megabytes))
        self.studio.close(desk)
        return fresh, *_view(fresh, HOW["click"]), "", None, ""

    def drawn(
        self, event: gr.EventData, desk: Desk | None, tool: str, negative: bool, *options: Any
    ) -> tuple:
        self.studio.draw(desk, mark(tool, event.where, not (negative or event.negative)))
        return self.answered(desk, *options)

    def said(self, desk: Desk | None, text: str, *options: Any) -> tuple:
        self.studio.say(desk, text)
        return self.answered(desk, *options)

    def shown(self, desk: Desk | None, sample: Sample | None, *options: Any) -> tuple:
        self.studio.show(desk, sample)
        return self.answered(desk, *options)

    def undone(self, desk: Desk | None, *options: Any) -> tuple:
        self.studio.undo(desk)
        return *self.answered(desk, *options), desk.phrase[1] if desk.phrase else ""

    def restarted(self, desk: Desk | None) -> tuple:
        self.studio.restart(desk)
        return desk, *_view(desk, HOW["click"]), ""

    def cut(self, desk: Desk | None, things: str, stuff: str) -> tuple:
        self.studio.cut(desk, names(things), names(stuff))
        shown = pictures.on_page(pictures.segments(desk))
        return desk, shown, pictures.inventory(desk), _parcel(desk)

    def answered(
        self, desk: Desk | None, things: str, stuff: str, top_k: int, threshold: float
    ) -> tuple:
        """The desk after an answer; where there is none, with the reason in place of the hint."""
        start = time.perf_counter()
        classes = names(f"{things},{stuff}")
        try:
            self.studio.answer(desk, classes, top_k=int(top_k), threshold=threshold)
        except ValueError as error:
            if desk is None or desk not in self.studio.desks:
                raise
            return desk, *_view(desk, html.escape(str(error)))
        took = 1000 * (time.perf_counter() - start)
        said = f"{_listed(desk.said)}. Answered in {took:.0f} ms; Undo takes back the last."
        return desk, *_view(desk, said if desk.said else HOW["click"])


def a_file(label: str, name: str) -> gr.File:
    """A place to drop a picture."""
    return gr.File(label=label, file_types=SUFFIXES, type="filepath", height=170, elem_id=name)


def _options(studio: Studio) -> list[gr.Textbox | gr.Slider]:
    """Names of things and of regions, number of answers, lowest score."""
    naming = studio.predictor.naming
    things, stuff = naming.classes[: naming.num_things], naming.classes[naming.num_things :]
    with gr.Accordion("Names and number of answers", open=False, elem_id="names"):
        return [
            gr.Textbox(", ".join(things), label="Names of things, with commas", elem_id="things"),
            gr.Textbox(", ".join(stuff), label="Names of regions (sky, grass)", elem_id="stuff"),
            gr.Slider(1, 8, 1, step=1, label="Answers at most", elem_id="top"),
            gr.Slider(0, 1, 0, step=0.01, label="Lowest score", elem_id="lowest"),
        ]


def _reference(studio: Studio, tool: gr.Radio, negative: gr.Checkbox) -> tuple[gr.State, gr.Button]:
    """(the reference picture with its marks, the button that asks for what it shows)."""
    state = gr.State(None, time_to_live=studio.limits.seconds)
    with gr.Accordion("Show it on another picture", open=False, elem_id="reference"):
        file = a_file("A picture that shows it", "open-reference")
        board = a_board("Open a picture, then mark the object on it.", "reference-board", "tools")
        with gr.Row():
            clear = gr.Button("Clear marks", size="md", elem_id="clear-reference")
            shown = gr.Button(
                "Find it in my picture", variant="primary", size="md", elem_id="find-reference"
            )

    def view(sample: Sample) -> tuple:
        return sample, pictures.on_page(pictures.sample(sample))

    def opened(path: str | None) -> tuple:
        return view(Sample(studio.read(uploaded(path, studio.limits.megabytes))))

    def drawn(event: gr.EventData, sample: Sample | None, tool: str, negative: bool) -> tuple:
        if sample is None:
            raise ValueError("open a picture that shows the object first.")
        fresh = mark(tool, event.where, not (negative or event.negative))
        fresh.prompts(sample.picture.shape[:2])  # raises where the gesture marks nothing
        return view(Sample(sample.picture, [*sample.marks, fresh]))

    def cleared(sample: Sample | None) -> tuple:
        return (None, None) if sample is None else view(Sample(sample.picture))

    on_upload(file, opened, [file], [state, board])
    on(board.gesture, drawn, [state, tool, negative], [state, board])
    on(clear.click, cleared, [state], [state, board])
    return state, shown


def _listed(said: tuple[str, ...]) -> str:
    """How many prompts there are, and which came last."""
    number = f"{len(said)} prompt{'s' if len(said) != 1 else ''}"
    return f"{number}: {'... ' if len(said) > LISTED else ''}{', '.join(said[-LISTED:])}"


def _view(desk: Desk, hint: str) -> tuple:
    """(picture, list of answers, hint, parcel) of a desk."""
    shown = pictures.on_page(pictures.board(desk))
    return shown, pictures.answers(desk), hint, _parcel(desk)


def _parcel(desk: Desk) -> gr.DownloadButton:
    """The download button, with a fresh parcel where there is something to take home."""
    if desk.prediction is None and desk.everything is None:
        return gr.DownloadButton(value=None, interactive=False)
    file = Path(desk.folder.name) / "results.zip"  # Gradio takes a copy of its own
    file.write_bytes(pictures.parcel(desk))
    return gr.DownloadButton(value=str(file), interactive=True)
