"""Converts COCO panoptic with the finer masks of LVIS where both annotate the same object.

    python -m data_prep.lvis --input data/coco --output data/coco/records --splits train

Reads what data_prep/coco.py reads, and the LVIS annotation files given with --lvis, or else those
that lie as `lvis/*.json` in or beside --input. The result is the official training set.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from data_prep import coco
from data_prep.writer import MissingInputError, converter_parser, message_only


def find_lvis(source: Path) -> list[Path]:
    """LVIS files in or beside the folder of the images."""
    for folder in (source / "lvis", source.parent / "lvis"):
        found = sorted(folder.glob("*lvis*.json"))
        if found:
            return found
    raise MissingInputError(
        f"no lvis/*lvis*.json in or beside {source}; name the files with --lvis."
    )


def main() -> None:
    parser = converter_parser(__doc__, "coco_lvis")
    coco.add_options(parser)
    parser.add_argument("--lvis", type=Path, nargs="+", help="LVIS annotation files")
    args = parser.parse_args()
    with message_only(__doc__):
        coco.convert_arguments(args, args.lvis or find_lvis(args.input))


if __name__ == "__main__":
    # Under its own name, so that other processes and machines find what is defined here.
    importlib.import_module(__spec__.name).main()
