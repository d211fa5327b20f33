"""The video half of `seem_jax.predict`: frames in, an overlaid video, index maps and scores out."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from seem_jax.image import decode_index_png
from seem_jax.predict_inputs import read_file, split_names
from seem_jax.predict_outputs import DRAWN_SIDE, Writer
from seem_jax.predictor import Predictor, Prompts
from seem_jax.video import VideoFrame, VideoPredictor, VideoWriter, read_frames, save_davis
from seem_jax.video.writing import FPS, VOID

MOST_THINGS = 20  # followed where nobody says what
LEAST_SCORE = 0.3  # of those


def answer_video(
    predictor: Predictor, file: Path, asked: Prompts, options: argparse.Namespace, writer: Writer
) -> None:
    """Follows the objects of one video and writes its files; memory does not grow with its length."""
    if options.panoptic:
        raise ValueError("--panoptic is about pictures; of a video, give a folder without --video.")
    tracker = VideoPredictor(predictor, threshold=options.threshold or 0.0)
    name = writer.unused(file)
    with read_frames(file) as frames:
        fps = options.fps if options.fps is not None else frames.fps or FPS
        shown = tqdm(frames, total=frames.total, unit="frame", desc=name)
        with (
            writer.aside(f"masks/{name}") as maps,
            writer.lines(f"{name}.jsonl") as note,
            VideoWriter(writer.folder / f"{name}.mp4", fps) as video,
        ):
            for picture, found in _answers(tracker, shown, asked, options):
                save_davis(maps, found)
                video.add(found.draw(picture, max(DRAWN_SIDE, *picture.shape[:2])))
                note(_line(found))
        if frames.skipped:
            raise ValueError(f"{frames.skipped} damaged parts were left out; the rest is answered.")


def _answers(
    tracker: VideoPredictor, frames, asked: Prompts, options: argparse.Namespace
) -> Iterator[tuple[np.ndarray, VideoFrame]]:
    """Each frame with its answer; objects begin on the frame that the prompts are about."""
    for number, picture in enumerate(frames):
        if number == options.frame:
            _begin(tracker, picture, asked, options)
        yield picture, tracker.push(picture)
    if tracker.index <= options.frame:
        raise ValueError(f"--frame {options.frame}: the video has {tracker.index} frames.")


def _begin(
    tracker: VideoPredictor, picture: np.ndarray, asked: Prompts, options: argparse.Namespace
) -> None:
    """Adds the objects of the command line: drawn, said, in an index map, or all that is there."""
    texts = [asked.text] if isinstance(asked.text, str) else asked.text or [None]
    if asked.given:
        for number, text in enumerate(texts, 1):
            fields = vars(dataclasses.replace(asked, text=text))
            tracker.add(number, **{key: fields[key] for key in fields if key != "memory"})
    if options.objects is not None:
        path = Path(options.objects)
        labels = decode_index_png(read_file(path, "--objects"), name=f"--objects {path}")
        for number in np.unique(labels[(labels > 0) & (labels < VOID)]).tolist():
            tracker.add(len(texts) * bool(asked.given) + number, mask=labels == number)
    if not tracker.object_ids:
        tracker.predictor.set_image(picture)
        things = tracker.predictor.instances(
            split_names(options.classes, "--classes"),
            threshold=LEAST_SCORE if options.threshold is None else options.threshold,
        ).different()
        tracker.predictor.reset_image()
        most = MOST_THINGS if options.top_k is None else options.top_k
        for number, mask in enumerate(things.masks[:most], 1):
            tracker.add(number, mask=mask)


def _line(found: VideoFrame) -> dict:
    """What a frame says, ready for JSON."""
    return {
        "frame": found.index,
        "objects": [
            {
                "id": number,
                "name": name,
                "score": round(float(score), 6),
                "quality": round(float(quality), 6),
                "area": int(mask.sum()),
            }
            for number, name, score, quality, mask in zip(
                found.object_ids, found.names, found.scores, found.quality, found.masks
            )
        ],
    }
