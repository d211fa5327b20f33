"""Exports a checkpoint: python -m seem_jax.export --checkpoint=runs/shapes --output=exported

StableHLO programs for CPU, CUDA and TPU with any batch size, weights as safetensors, configuration,
tokenizer, and a loader of 30 lines that needs only jax, numpy and flatbuffers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from seem_jax import kept_files
from seem_jax.export.folder import export_model
from seem_jax.predictor import Predictor


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; 0 where the folder was written, else 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m seem_jax.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="DIR", help="work folder of a training run")
    add("--output", required=True, metavar="DIR", help="new folder for the exported model")
    add("--tokenizer", metavar="FILE", help="instead of the one beside the checkpoint")
    add("--image-size", type=int, metavar="PIXELS", help="side of the square (as evaluated)")
    options = parser.parse_args(argv)
    try:
        predictor = Predictor.from_checkpoint(
            options.checkpoint, tokenizer=options.tokenizer, image_size=options.image_size
        )
        tokenizer = options.tokenizer or kept_files.tokenizer(options.checkpoint, predictor.config)
        folder = export_model(predictor, options.output, tokenizer=tokenizer)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{folder}: {len(list(folder.glob('*.stablehlo')))} programs, {size / 2**20:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
