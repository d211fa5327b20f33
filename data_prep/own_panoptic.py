"""Your own images with COCO panoptic PNGs and their JSON file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_prep import coco
from data_prep.coco_files import find_splits
from data_prep.own_files import Found


def find_panoptic(source: Path, things: Sequence[str]) -> Found | None:
    """COCO panoptic."""
    splits = find_splits(source)
    if not splits:
        return None
    plans = [coco.plan_split(source, split) for split in splits]
    if len({classes for _, classes in plans}) > 1:
        raise ValueError(f"{source}: the splits {list(splits)} list different 'categories'.")
    items = {plan.split: list(plan.items) for plan, _ in plans}
    return Found(plans[0][1], items, plans[0][0].make)
