"""The tab for video: objects marked on any frame, followed through the clip, results to take home."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Iterator
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr

from seem_jax.demo import pictures
from seem_jax.demo.clips import (
    MAX_OBJECTS,
    Clip,
    Order,
    follow,
    look_at,
    marks_at,
    open_clip,
    ordered,
)
from seem_jax.demo.studio import Sample, Studio, mark
from seem_jax.demo.wiring import board, on, tools

SUFFIXES = [".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif"]
SHOWN_EVERY = 5  # frames, while the clip is being followed


def video_tab(studio: Studio, reference: gr.State) -> None:
    """Adds the tab; reference is the picture that shows an object, of the other tab."""
    limits = studio.limits
    state = gr.State(None, time_to_live=limits.seconds)
    with gr.Row():
        with gr.Column(scale=5, min_width=420):
            shown = board("Your video appears here, frame by frame.", "clip-board", "clip-tools")
            frame = gr.Slider(0, 1, 0, step=1, label="Frame", interactive=False, elem_id="frame")
            status = gr.Markdown("Mark an object on any frame; it is followed from there on.")
            result = gr.Video(label="Result", visible=False, elem_id="clip-result")
            maps = gr.DownloadButton("Download masks (DAVIS)", visible=False, elem_id="clip-masks")
        with gr.Column(scale=3, min_width=320):
            file = gr.File(
                label=f"Open a video (to {limits.video_megabytes:g} MB)",
                file_types=SUFFIXES,
                type="filepath",
                height=170,
                elem_id="open-clip",
            )
            number = gr.Slider(1, MAX_OBJECTS, 1, step=1, label="Object", elem_id="object")
            tool = tools("clip-tools")
            negative = gr.Checkbox(label="This is not what I mean (negative)")
            text = gr.Textbox(
                label="Text",
                placeholder="the red star; Enter adds it",
                max_length=300,
                elem_id="clip-text",
            )
            with gr.Row():
                refer = gr.Button("As on the reference picture", size="md")
                leave = gr.Button("It leaves here", size="md", elem_id="clip-leave")
            with gr.Row():
                undo = gr.Button("Undo", size="md", elem_id="clip-undo")
                run = gr.Button("Follow", variant="primary", size="md", elem_id="clip-run")
            orders = gr.HTML(apply_default_css=False, elem_id="clip-orders")
    view = [state, shown, orders]

    do = _Events(studio)
    on(file.upload, do.opened, [file], [*view, frame, status, file, result, maps])
    on(frame.release, do.moved, [state, frame], view)
    on(shown.gesture, do.drawn, [state, number, tool, negative], view)
    on(text.submit, do.written, [state, number, text], [*view, text])
    on(refer.click, do.referred, [state, number, reference], view)
    on(leave.click, do.left, [state, number], view)
    on(undo.click, do.undone, [state], view)
    on(run.click, do.followed, [state], [shown, status, result, maps])


class _Events:
    """What each event of the tab does; what they return goes to the components named above."""

    def __init__(self, studio: Studio):
        self.studio = studio

    def opened(self, path: str | None) -> tuple:
        if path is None:
            raise ValueError("there is no file.")
        clip = open_clip(self.studio, path)
        said = f"{clip.count} frames, {clip.fps:.4g} a second."
        said += " The video is longer; the rest is left out." if clip.cut else ""
        slider = gr.Slider(maximum=max(clip.count - 1, 1), value=0, interactive=clip.count > 1)
        hidden = gr.Video(visible=False), gr.DownloadButton(visible=False)
        return *_view(clip), slider, said, None, *hidden

    def moved(self, clip: Clip | None, frame: int) -> tuple:
        return _view(look_at(_there(clip), int(frame)))

    def drawn(
        self, event: gr.EventData, clip: Clip | None, number: int, tool: str, negative: bool
    ) -> tuple:
        gesture = mark(tool, event.where, not (negative or event.negative))
        return _ordered(clip, number, gesture=gesture)

    def written(self, clip: Clip | None, number: int, text: str) -> tuple:
        return *_ordered(clip, number, text=text.strip()), ""

    def referred(self, clip: Clip | None, number: int, sample: Sample | None) -> tuple:
        return _ordered(clip, number, reference=self.studio.reference(sample))

    def left(self, clip: Clip | None, number: int) -> tuple:
        return _ordered(clip, number)

    def undone(self, clip: Clip | None) -> tuple:
        clip = _there(clip)
        if not clip.orders:
            raise ValueError("there is nothing to undo.")
        return _view(dataclasses.replace(clip, orders=clip.orders[:-1]))

    def followed(self, clip: Clip | None) -> Iterator[tuple]:
        clip = _there(clip)
        _, own, _ = _view(clip)  # the frame that the next gesture is about
        with TemporaryDirectory(prefix="seem_jax_") as folder:
            try:
                for found in follow(self.studio, clip, folder):
                    if found.index % SHOWN_EVERY == 0:
                        source = pictures.as_source(pictures.fitted(found.picture))
                        said = f"frame {found.index + 1} of {clip.count} ..."
                        yield source, said, gr.skip(), gr.skip()
            except ValueError:
                yield own, "Not followed.", gr.skip(), gr.skip()
                raise
            video = gr.Video(f"{folder}/clip.mp4", visible=True)
            masks = gr.DownloadButton(value=f"{folder}/masks.zip", visible=True)
            yield own, f"{clip.count} frames followed.", video, masks


def _there(clip: Clip | None) -> Clip:
    if clip is None:
        raise ValueError("open a video first.")
    return clip


def _ordered(clip: Clip | None, number: int, **what: Any) -> tuple:
    """The view with one more order for an object, at the frame that is looked at."""
    clip = _there(clip)
    return _view(ordered(clip, Order(clip.frame, int(number), **what)))


def _view(clip: Clip) -> tuple:
    """(state, frame with its marks, list of orders)."""
    source = pictures.as_source(pictures.sample(Sample(clip.picture, marks_at(clip))))
    rows = [
        f"<tr><td>{order.frame}</td><td>{order.object_id}</td><td>{html.escape(order.said)}</td></tr>"
        for order in clip.orders
    ]
    return clip, source, pictures.table(("frame", "object", "what"), rows) if rows else ""
