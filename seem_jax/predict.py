"""Segments pictures and videos from the shell, with any mix of prompts or everything in them.

    python -m seem_jax.predict photo.jpg --checkpoint=runs/shapes --point 120,80 --output=out
    python -m seem_jax.predict photo.jpg --checkpoint=runs/shapes --text "the red star" --output=out
    python -m seem_jax.predict FOLDER --checkpoint=runs/shapes --panoptic --output=out
    python -m seem_jax.predict clip.mp4 --checkpoint=runs/shapes --point 120,80 --frame 30 --output=out

Coordinates are pixels (x, y) of each picture as stored; all prompts together mean one object, and each
--text is a question of its own. Without a prompt, all things are found. In the output folder:

    NAME.png             the picture, small ones enlarged, with masks, names and scores
    masks/NAME_0.png     one mask per answer, 255 inside; best first
    annotations.json     the same as COCO instances (RLE, box, area, score)
    panoptic/NAME.png    with --panoptic: segment ids as COCO writes them (R + 256 G + 65536 B)
    panoptic.json        and what they are

Of a video (a file, or with --video a folder of frames) the prompts mean an object on frame --frame,
which is followed from there; each --text is an object, and without a prompt all things on that frame
are. Instead of pictures there are, in the output folder:

    NAME.mp4             the video, a small one enlarged, with masks and names
    masks/NAME/00000.png one index map per frame, a palette PNG as in DAVIS: 0 none, else the object
    NAME.jsonl           one line per frame: objects, scores, names, areas
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
from tqdm import tqdm

from seem_jax.image import decode_image
from seem_jax.predict_inputs import (
    check_flags,
    check_output,
    find_inputs,
    is_video,
    read_file,
    read_prompts,
    read_reference,
    split_names,
)
from seem_jax.predict_outputs import Writer
from seem_jax.predict_video import LEAST_SCORE, answer_video
from seem_jax.predictor import Predictor, Prompts
from seem_jax.predictor.everything import TOP


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(
        prog="python -m seem_jax.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = out.add_argument
    add("images", nargs="+", metavar="INPUT", help="picture, folder of pictures, or video file")
    add("--checkpoint", required=True, metavar="DIR", help="work folder of a training run")
    add("--output", required=True, metavar="DIR", help="folder for the results")
    add("--tokenizer", metavar="FILE", help="instead of the one beside the checkpoint")
    asked = out.add_argument_group("prompts, all about one object")
    add = asked.add_argument
    add("--point", action="append", metavar="X,Y[,-]", help="click; with ,- on what it is not")
    add("--box", action="append", metavar="X0,Y0,X1,Y1")
    add(
        "--scribble", action="append", metavar="FILE", help="painted picture, or JSON [[x, y], ...]"
    )
    add("--polygon", action="append", metavar="X,Y,X,Y,X,Y,...")
    add("--mask", metavar="FILE", help="picture of the size of the image, 0 outside of the object")
    add("--text", action="append", metavar="PHRASE")
    add("--reference", metavar="FILE", help="picture that shows the object, or a saved .npz")
    add("--reference-point", action="append", metavar="X,Y[,-]", help="click on the reference")
    add("--reference-box", metavar="X0,Y0,X1,Y1", help="box on the reference")
    every = out.add_argument_group("answers")
    add = every.add_argument
    add("--panoptic", action="store_true", help="cut the whole picture into segments")
    add("--classes", metavar="NAME,NAME,...", help="vocabulary for names")
    add("--stuff", metavar="NAME,NAME,...", help="with --panoptic: classes without instances")
    add("--top-k", type=int, default=None, help="most masks per question (1), or things (100)")
    add("--threshold", type=float, default=None, help="lowest score from 0 to 1")
    video = out.add_argument_group("video")
    add = video.add_argument
    add("--video", action="store_true", help="each folder holds the frames of one video")
    add("--frame", type=int, default=0, metavar="N", help="the frame that prompts are drawn on (0)")
    add("--objects", metavar="FILE", help="index map as in DAVIS: the objects on that frame")
    add("--fps", type=float, default=None, help="of the written video (as read, else 25)")
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; 0 where every input was answered, else 1 with reasons on stderr."""
    options = parser().parse_args(argv)
    try:
        files = find_inputs(options.images, frames=options.video, output=options.output)
        check_output(options.output, files, options)
        check_flags(options, files)
        asked = read_prompts(options)
        predictor = Predictor.from_checkpoint(options.checkpoint, tokenizer=options.tokenizer)
        cache = predictor.config.compile_cache
        if cache and not jax.config.jax_compilation_cache_dir:
            jax.config.update("jax_compilation_cache_dir", cache)
        if options.reference is not None:
            asked = dataclasses.replace(asked, reference=read_reference(options, predictor))
        writer = Writer(Path(options.output))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    failures = []
    for file in tqdm(files, unit="input", disable=len(files) == 1):
        try:
            if is_video(file):
                answer_video(predictor, file, asked, options, writer)
            else:
                answer_picture(predictor, file, asked, options, writer)
        except (ValueError, OSError) as error:
            failures.append(f"{file}: {error}")
    writer.finish()
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    print(f"{len(files) - len(failures)} of {len(files)} inputs answered in {options.output}")
    return 1 if failures else 0


def answer_picture(
    predictor: Predictor, file: Path, asked: Prompts, options: argparse.Namespace, writer: Writer
) -> None:
    """Answers one picture and writes its files."""
    picture = decode_image(read_file(file, "INPUT"), name="the picture")
    predictor.set_image(picture)
    classes = split_names(options.classes, "--classes")
    names = {} if options.threshold is None else {"threshold": options.threshold}
    if options.panoptic:
        stuff = split_names(options.stuff, "--stuff")
        writer.add_panoptic(file, picture, predictor.panoptic(classes, stuff, **names))
        return
    if not asked.given:
        found = predictor.instances(classes, **{"threshold": LEAST_SCORE} | names).different()
        most = TOP if options.top_k is None else options.top_k
        writer.add(file, picture, found.take(range(min(len(found), most))))
        return
    if options.top_k is not None:
        names["top_k"] = options.top_k
    writer.add(file, picture, predictor.predict(**vars(asked), classes=classes, **names))


if __name__ == "__main__":
    sys.exit(main())
