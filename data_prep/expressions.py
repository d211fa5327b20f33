"""Sentences that mean exactly one thing of a scene.

A sentence is built as a description, checked against every thing of the scene, and kept only when
exactly one thing can be meant even by a lenient reader (positions closer than MARGIN and radii
closer than RATIO count as possible confusions).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

MARGIN = 0.06  # share of the image size; smaller differences of position are never relied on
RATIO = 1.25  # smaller ratios of radius are never relied on

DIRECTIONS = {  # word -> (axis, sign): "a left of b" when sign * (a - b) is clearly positive
    "left of": (0, -1),
    "right of": (0, 1),
    "above": (1, -1),
    "below": (1, 1),
}
EXTREMES = {"leftmost": (0, -1), "rightmost": (0, 1), "topmost": (1, -1), "bottommost": (1, 1)}


@dataclasses.dataclass(frozen=True)
class Item:
    """What a sentence can say of a thing; (x, y) is the centre of its visible part in pixels."""

    shape: str
    color: str
    texture: str
    size: str
    x: float
    y: float
    radius: float


@dataclasses.dataclass(frozen=True)
class Noun:
    """A description by attributes; one that is "" is not mentioned."""

    size: str = ""
    color: str = ""
    texture: str = ""
    shape: str = ""

    def text(self) -> str:
        words = (self.size, self.color, self.texture, self.shape or "shape")
        return " ".join(word for word in words if word)

    def fits(self, item: Item) -> bool:
        return (
            self.shape in ("", item.shape)
            and self.color in ("", item.color)
            and self.texture in ("", item.texture)
            and self.size in ("", item.size)
        )


def describe(
    items: Sequence[Item], target: int, image_size: int, rng: np.random.Generator
) -> list[str]:
    """Two to four different sentences that each mean the item `target` and no other; [] if none.

    Two by attributes, one by order and one by relation, as far as the scene allows.
    """
    chosen = _likely_texts(_identifying(items, target), 2, rng)
    for kind in (
        _ordinal_sentences(items, target, image_size),
        _relation_sentences(items, target, image_size),
    ):
        if kind:
            chosen.append(str(rng.choice(kind)))
    return [_article(text, rng) for text in chosen] if len(chosen) >= 2 else []


def describe_composition(items: Sequence[Item], target: int, rng: np.random.Generator) -> list[str]:
    """Up to three sentences by attributes that name colour and shape of `target`; [] if none."""
    item = items[target]
    pair = f"{item.color} {item.shape}"
    texts = [
        text
        for text in attribute_sentences(items, target)
        if text.endswith(pair) or text.endswith(f"{item.color} {item.texture} {item.shape}")
    ]
    chosen = texts[:1] + [str(text) for text in rng.permutation(texts[1:])[:2]]
    return [_article(text, rng) for text in chosen]


def attribute_sentences(items: Sequence[Item], target: int) -> list[str]:
    """All descriptions by attributes that fit only `target`, short ones first."""
    return [noun.text() for noun in _identifying(items, target)]


def _identifying(items: Sequence[Item], target: int) -> list[Noun]:
    return [noun for noun in _nouns(items[target]) if _fitting(noun, items) == [target]]


def _likely_texts(nouns: Sequence[Noun], count: int, rng: np.random.Generator) -> list[str]:
    """Up to `count` different descriptions, drawn as people choose them."""
    if not nouns:
        return []
    share = np.array([_likelihood(noun) for noun in nouns])
    chosen = rng.choice(len(nouns), min(count, len(nouns)), replace=False, p=share / share.sum())
    return [nouns[index].text() for index in chosen]


def _likelihood(noun: Noun) -> float:
    """How likely a person says it, unscaled: people name what a thing is, then its colour, and its
    size or texture only now and then (Dale and Reiter 1995, the incremental algorithm)."""
    return (1.0 if noun.shape else 0.2) * 0.3 ** bool(noun.size) * 0.3 ** bool(noun.texture)


def _attributes(item: Item) -> tuple[str, str, str, str]:
    return item.size, item.color, item.texture, item.shape


def _nouns(item: Item) -> list[Noun]:
    """Every true description of an item; the word "shape" needs a colour or texture beside it."""
    said = itertools.product((False, True), repeat=4)
    nouns = [
        Noun(*(word if use else "" for word, use in zip(_attributes(item), uses, strict=True)))
        for uses in said
    ]
    nouns = [noun for noun in nouns if noun.shape or noun.color or noun.texture]
    return sorted(nouns, key=lambda noun: len(noun.text().split()))


def _fitting(noun: Noun, items: Sequence[Item]) -> list[int]:
    return [index for index, item in enumerate(items) if noun.fits(item)]


def _short_nouns(item: Item) -> list[Noun]:
    return [
        Noun(shape=item.shape),
        Noun(color=item.color),
        Noun(color=item.color, shape=item.shape),
        Noun(texture=item.texture, shape=item.shape),
    ]


def _ordinal_sentences(items: Sequence[Item], target: int, image_size: int) -> list[str]:
    texts = []
    for noun in (*_short_nouns(items[target]), Noun()):
        others = [index for index in _fitting(noun, items) if index != target]
        if not others:
            continue
        for word, (axis, sign) in EXTREMES.items():
            if all(_ahead(items, target, i, axis, sign) > MARGIN * image_size for i in others):
                texts.append(f"{word} {noun.text()}")
        ratios = [items[target].radius / items[index].radius for index in others]
        # Sizes of different shapes do not compare, so superlatives need the shape.
        if noun.shape and min(ratios) > RATIO:
            texts.append(f"largest {noun.text()}")
        if noun.shape and max(ratios) < 1 / RATIO:
            texts.append(f"smallest {noun.text()}")
    return texts


def _relation_sentences(items: Sequence[Item], target: int, image_size: int) -> list[str]:
    """Relations to a thing that its own description identifies; best where they are needed."""
    needed, spare = [], []
    anchors_of = [
        [noun for noun in _short_nouns(item) if noun.shape and _fitting(noun, items) == [index]]
        for index, item in enumerate(items)
    ]
    for noun in _short_nouns(items[target])[:3]:
        group = _fitting(noun, items)
        for other in range(len(items)):
            if other == target or not anchors_of[other]:
                continue
            for word, (axis, sign) in DIRECTIONS.items():
                gap = MARGIN * image_size
                possible = [
                    i for i in group if i != other and _ahead(items, i, other, axis, sign) > -gap
                ]
                if possible != [target] or _ahead(items, target, other, axis, sign) <= gap:
                    continue
                texts = [
                    f"{noun.text()} {word} the {anchor.text()}" for anchor in anchors_of[other]
                ]
                (needed if len(group) > 1 else spare).extend(texts)
    return needed or spare


def _ahead(items: Sequence[Item], one: int, other: int, axis: int, sign: int) -> float:
    a, b = items[one], items[other]
    return sign * ((a.x, a.y)[axis] - (b.x, b.y)[axis])


def _article(text: str, rng: np.random.Generator) -> str:
    return f"the {text}" if rng.random() < 0.6 else text
