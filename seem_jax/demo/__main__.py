"""Serves the web app on this machine.

    python -m seem_jax.demo                              # the model that `make train` made
    python -m seem_jax.demo --checkpoint=runs/focalt_v1  # any other work folder

It answers at http://127.0.0.1:7860 and nowhere else. To use it from elsewhere, forward the port:
ssh -L 7860:127.0.0.1:7860 that-machine
"""

from __future__ import annotations

import argparse
import math
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from seem_jax.demo.studio import Limits, Studio
from seem_jax.predictor import Predictor

DEFAULT = "runs/shapes"
NO_GRADIO = "the web app needs Gradio: pip install -r requirements-demo.txt"
NO_CHECKPOINT = """there is no checkpoint at {}.
  make train                                     trains a small one in minutes (runs/shapes)
  python -m seem_jax.convert seem_focalt_v1.pt --config=configs/focalt.py --output=runs/focalt_v1
                                                 reads an official one; then --checkpoint=runs/focalt_v1"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(
        prog="python -m seem_jax.demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add, limits = out.add_argument, Limits()
    add("--checkpoint", default=DEFAULT, metavar="DIR", help=f"work folder of a run ({DEFAULT})")
    add("--tokenizer", metavar="FILE", help="instead of the one beside the checkpoint")
    add("--port", type=int, default=7860, help="port on 127.0.0.1 (7860)")
    add("--max-megabytes", type=float, default=limits.megabytes, help="of a picture as a file (32)")
    add("--max-megapixels", type=float, default=limits.megapixels, help="of a picture (24)")
    add("--max-users", type=int, default=limits.desks, help="with a picture at a time (40)")
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command until it is interrupted; 1 with a reason on stderr where it cannot start."""
    options = parser().parse_args(argv)
    try:
        from seem_jax.demo import app
    except ImportError as error:
        print(f"error: {NO_GRADIO} ({error})", file=sys.stderr)
        return 1
    try:
        _check(options)
        predictor = Predictor.from_checkpoint(options.checkpoint, tokenizer=options.tokenizer)
        listener = _listener(app.ADDRESS, options.port)  # before compiling, which takes long
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    cache = predictor.config.compile_cache
    if cache and not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", cache)
    print("compiling, so that no click has to wait for it ...", flush=True)
    predictor.warm_up()
    limits = Limits(
        megabytes=options.max_megabytes,
        megapixels=options.max_megapixels,
        desks=options.max_users,
    )
    print(f"open http://{app.ADDRESS}:{options.port} in a browser; Ctrl-C ends it", flush=True)
    with listener:
        app.server(Studio(predictor, limits), options.port).run(sockets=[listener])
    return 0


def _check(options: argparse.Namespace) -> None:
    """Raises ValueError for numbers out of range, and where there is no checkpoint."""
    if not 1 <= options.port <= 65535:
        raise ValueError(f"--port {options.port}: expected 1 to 65535.")
    for flag, value in (
        ("--max-megabytes", options.max_megabytes),
        ("--max-megapixels", options.max_megapixels),
        ("--max-users", options.max_users),
    ):
        if not 0 < value < math.inf:
            raise ValueError(f"{flag} {value}: expected a number above 0.")
    if not (Path(options.checkpoint) / "checkpoints").is_dir():
        raise ValueError(NO_CHECKPOINT.format(options.checkpoint))


def _listener(address: str, port: int) -> socket.socket:
    """A socket that waits for browsers; ValueError where the port cannot be had."""
    try:
        return socket.create_server((address, port))
    except OSError as error:
        raise ValueError(f"--port {port} cannot be had ({error}); give another.") from error


if __name__ == "__main__":
    sys.exit(main())
