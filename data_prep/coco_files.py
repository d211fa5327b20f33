"""Which files of a folder in COCO's layout belong to a split, the official filtered ones among them.

The release trains on COCO without some images, and names the annotation files after what is left out:
`panoptic_train2017_filtrefgumdval.json` lacks the validation images of RefCOCOg (UMD),
`..._filtrefgumdval_filtvlp.json` also the captions' test images of Karpathy's split.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

YEAR = "2017"  # the only year with panoptic annotations
NAME = re.compile(rf"([a-z]+)_(.+?)(?:{YEAR})?(?:_(filt\w+))?")  # kind, split, filtered
SHORT = {"filtrefgumdval": "filtrefgumd"}  # in the official name of the sentences' file


@dataclasses.dataclass(frozen=True)
class Files:
    """The files of one split, with or without the year in their names.

    `filtered` is what the names of filtered annotation files end with; "" for COCO's own.
    """

    source: Path
    split: str
    filtered: str = ""

    def path(self, start: str, end: str = "") -> Path:
        """`<start><split>2017<end>`, or without the year where only that exists."""
        named = self.source / f"{start}{self.split}{YEAR}{end}"
        plain = self.source / f"{start}{self.split}{end}"
        return plain if plain.exists() and not named.exists() else named

    def annotations(self, kind: str) -> Path:
        """`annotations/<kind>_<split>2017_<filtered>.json`, or COCO's own where there is no such."""
        whole = self.path(f"annotations/{kind}_", ".json")
        if not self.filtered:
            return whole
        filtered = self.path(f"annotations/{kind}_", f"_{self.filtered}.json")
        return filtered if filtered.is_file() else whole

    def grounding(self) -> Path | None:
        """The official file of merged sentences, `annotations/grounding_<split>2017_*.json`."""
        for name in (self.filtered, SHORT.get(self.filtered)):
            path = self.path("annotations/grounding_", f"_{name}.json")
            if name and path.is_file():
                return path
        return None


def find_splits(source: Path) -> dict[str, list[str]]:
    """The splits that have a panoptic file, each with the filters there are; "" for COCO's own."""
    found: dict[str, list[str]] = {}
    for path in sorted(source.glob("annotations/panoptic_*.json")):
        _, split, filtered = NAME.fullmatch(path.stem).groups("")
        found.setdefault(split, []).append(filtered)
    return found


def files_of(source: Path, split: str, filtered: str | None) -> Files:
    """The files of a split, filtered as asked for.

    Without being asked (None), COCO's own file is taken, or the only filtered one. Raises ValueError
    for a filter that no split has, and where there are several and none was asked for.
    """
    splits = find_splits(source)
    known = splits.get(split, [])
    if filtered is not None and filtered not in {
        name for names in splits.values() for name in names
    }:
        raise ValueError(
            f"--filtered {filtered!r}: no annotations/panoptic_*_{filtered}.json in {source}; it has "
            f"the splits and filters {splits}."
        )
    if filtered in known:
        return Files(source, split, filtered)
    if "" in known or not known:
        return Files(source, split)
    if len(known) > 1:
        raise ValueError(
            f"{source} has panoptic_{split}{YEAR}_*.json for {known}: choose one with --filtered."
        )
    print(f"{split}: annotations/panoptic_{split}{YEAR}_{known[0]}.json is taken.")
    return Files(source, split, known[0])
