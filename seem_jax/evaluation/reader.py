"""Test images as the model sees them: sizes, filters and padding, and batches of one size each."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Protocol

import cv2
import grain
import numpy as np
from PIL import Image

from seem_jax import image as images
from seem_jax.config import DataConfig
from seem_jax.data.collate import Tokenizer
from seem_jax.data.schema import Record
from seem_jax.data.transforms import PAD_VALUE

Size = tuple[int, int]  # (height, width), pixels


class Records(Protocol):
    """What is read: a split of `data.catalog`."""

    name: str
    split: str
    class_names: Sequence[str]

    def __len__(self) -> int: ...

    def __getitem__(self, item: int) -> Record: ...


@dataclasses.dataclass(frozen=True)
class Sizing:
    """How large test images are, and how they get there.

    Without edges an image fits into a square of `side`, as in training: bilinear or averages of
    areas, padded with grey. With edges (shortest, longest) it is sized by the official test
    transforms: Pillow's bilinear filter, or its bicubic one for interactive segmentation, padded on
    the right and below to multiples of `divisor` with what normalisation takes to zero.
    """

    side: int
    divisor: int
    edges: tuple[int, ...] = ()
    bicubic: bool = False

    def resized(self, original: Size) -> Size:
        """The size of the image without padding."""
        if not self.edges:
            return images.fit_square(original, self.side)
        fit = images.fit_edges_down if self.bicubic else images.fit_edges
        return fit(original, *self.edges)

    def canvas(self, original: Size) -> Size:
        """The size with padding: what the model sees."""
        if not self.edges:
            return self.side, self.side
        height, width = (-(-n // self.divisor) * self.divisor for n in self.resized(original))
        return height, width

    def pad_colour(self, mean: Sequence[float]) -> np.ndarray:
        """float32 [3], RGB of the padding; mean is the one that normalisation takes out."""
        return np.array(mean if self.edges else [PAD_VALUE] * 3, np.float32)

    def place(self, image: np.ndarray) -> np.ndarray:
        """uint8 [H, W, 3] on its canvas; zero beyond it."""
        original = image.shape[:2]
        height, width = self.resized(original)
        if not self.edges:
            image = images.resize(image, (height, width))
        elif (height, width) != original:
            kind = Image.Resampling.BICUBIC if self.bicubic else Image.Resampling.BILINEAR
            image = np.asarray(Image.fromarray(image).resize((width, height), kind))
        return images.pad(image, self.canvas(original))

    def place_map(self, labels: np.ndarray) -> np.ndarray:
        """Labels or a mask [H, W] on the canvas: nearest pixels, zero beyond."""
        resized = self.resized(labels.shape)
        rows, columns = (
            ((np.arange(count) + 0.5) * (n / count)).astype(np.intp)
            for count, n in zip(resized, labels.shape, strict=True)
        )
        return images.pad(labels[rows[:, None], columns], self.canvas(labels.shape))

    def place_grown(self, mask: np.ndarray) -> np.ndarray:
        """A mask bool [H, W] on the canvas as the official interactive evaluation has it: every pixel
        where bicubic interpolation of 0 and 1 is not 0, so overshoot makes it some pixels fatter."""
        height, width = self.resized(mask.shape)
        grown = cv2.resize(mask.astype(np.float64), (width, height), interpolation=cv2.INTER_CUBIC)
        return images.pad(grown != 0, self.canvas(mask.shape))

    def describe(self) -> str:
        """The rule in words, for the protocol of a result."""
        if not self.edges:
            return f"longest edge {self.side}, padded to a square with grey"
        kind = "bicubic, rounded down" if self.bicubic else "bilinear"
        shortest, longest = self.edges
        return (
            f"shortest edge {shortest}, longest at most {longest}, Pillow {kind}; padded to multiples "
            f"of {self.divisor} with zeros after normalisation"
        )


@dataclasses.dataclass(frozen=True)
class EvalBatch:
    """Images of one canvas with their phrases; rows beyond len(samples) are empty."""

    samples: list[int]  # numbers in the split
    records: list[Record]
    image: np.ndarray  # uint8 [B, H, W, 3]
    image_size: np.ndarray  # int32 [B, 2], (height, width) of the part that is not padding
    token_ids: np.ndarray  # int32 [B, G, J]
    token_valid: np.ndarray  # bool [B, G, J]

    @property
    def canvas(self) -> Size:
        height, width = self.image.shape[1:3]
        return height, width


def group(records: Records, samples: Sequence[int], sizing: Sizing, size: int) -> list[list[int]]:
    """The samples in lists of at most `size` that share a canvas, in order within each canvas."""
    if not sizing.edges:
        canvases = {None: list(samples)}
    else:
        canvases = {}
        for sample in samples:
            record = records[sample]
            key = sizing.canvas((record.height, record.width))
            canvases.setdefault(key, []).append(sample)
    return [
        same[start : start + size]
        for same in canvases.values()
        for start in range(0, len(same), size)
    ]


def read(
    records: Records,
    units: Sequence[Sequence[int]],
    sizing: Sizing,
    tokenizer: Tokenizer,
    config: DataConfig,
    rows: int,
) -> Iterator[EvalBatch]:
    """The batch of each unit (up to `rows` samples of one canvas) in order, read ahead in threads.

    Texts are in lower case, as officially. Raises ValueError naming the record that cannot be read.
    """
    if not units:  # nothing is left for this host
        return
    cv2.setNumThreads(0)  # threads inside threads only wait for each other
    made = grain.MapDataset.range(len(units)).map(
        lambda number: _batch(records, list(units[number]), sizing, tokenizer, config, rows)
    )
    yield from made.to_iter_dataset(
        grain.ReadOptions(num_threads=config.num_threads, prefetch_buffer_size=config.prefetch)
    )


@contextlib.contextmanager
def named(records: Records, sample: int, record: Record) -> Iterator[None]:
    """Puts the data set and the record before the text of a ValueError."""
    try:
        yield
    except ValueError as error:
        where = f"{records.name}:{records.split}, record {sample} ({record.file_name})"
        raise ValueError(f"{where}: {error}") from error


def _batch(records, samples: list[int], sizing: Sizing, tokenizer, config, rows: int) -> EvalBatch:
    found = [records[sample] for sample in samples]
    sizes = [(record.height, record.width) for record in found]
    canvas = sizing.canvas(sizes[0])
    most = max([1, *(len(record.phrase_text) for record in found)])
    image = np.zeros((rows, *canvas, 3), np.uint8)
    image_size = np.zeros((rows, 2), np.int32)
    ids = np.zeros((rows, most, config.max_phrase_tokens), np.int32)
    valid = np.zeros(ids.shape, bool)
    for row, (sample, record, size) in enumerate(zip(samples, found, sizes, strict=True)):
        with named(records, sample, record):
            known = range(len(records.class_names))
            unknown = sorted({c for c in record.segment_category if c not in known})
            if unknown:
                raise ValueError(
                    f"its segments have the classes {unknown}; the data set has {len(known)}, from 0 on. "
                    "Convert it again."
                )
            picture = images.decode_image(record.image, name=record.file_name)
            if picture.shape[:2] != size:
                raise ValueError(
                    f"the image is {picture.shape[:2]} (height, width), its masks are {size}; "
                    "convert the data set from matching files."
                )
            if sizing.canvas(size) != canvas:
                raise ValueError(
                    f"its size {size} leads to a canvas of {sizing.canvas(size)}, the others of its "
                    f"batch or sequence to {canvas}; frames of a video must have one size."
                )
            image[row], image_size[row] = sizing.place(picture), sizing.resized(size)
            if count := len(record.phrase_text):
                texts = [text.lower() for text in record.phrase_text]
                ids[row, :count], valid[row, :count] = tokenizer.encode(
                    texts, config.max_phrase_tokens
                )
    return EvalBatch(samples, found, image, image_size, ids, valid)
