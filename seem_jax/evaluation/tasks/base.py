"""What every task shares: the compiled programs' devices, batches of records, a table of class names."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from seem_jax import name_templates, postprocess
from seem_jax.config import Config
from seem_jax.data import catalog
from seem_jax.evaluation import reader
from seem_jax.evaluation.reader import EvalBatch, Sizing
from seem_jax.evaluation.results import Result
from seem_jax.models.language import class_names
from seem_jax.models.language.tokenizer import Tokenizer

Pictures = tuple[list[np.ndarray], str]  # a row of a sheet, and its caption
MASK_STRIDE = 4  # pixels of the model image to one of the mask logits


@dataclasses.dataclass(frozen=True)
class Answer:
    """The result of one sample, and how to draw it."""

    result: Result
    draw: Callable[[], Pictures]


class Task(Protocol):
    """One way to be asked, on one split."""

    name: str  # start of its scores' names
    split: str
    columns: tuple[str, ...]  # of its picture sheet

    def protocol(self) -> dict[str, Any]:
        """The choices that other evaluations make in another way; part of the results."""

    def count(self) -> int:
        """How many samples there are."""

    def grouped(self, samples: Sequence[int]) -> list[list[int]]:
        """The samples in units that are answered together; they depend on nothing else."""

    def answers(self, params, units: Sequence[list[int]]) -> Iterator[list[Answer]]:
        """The answers of the units, some at a time: what is given is saved, what is not is lost by a
        kill. A result holds "sample", "name" and "score" (higher: better)."""

    def summary(self, results: Sequence[Result]) -> dict[str, float]:
        """The scores of all results."""


class Context:
    """A model ready to be asked: its configuration, tokenizer, devices and class tables."""

    def __init__(self, model, config: Config, class_tables: Path | None = None):
        options = config.evaluation
        self.model, self.config = model, config
        self.side = options.image_size or config.data.image_size
        self.tokenizer = Tokenizer(config.data.tokenizer)
        devices = jax.local_devices()
        self.devices = devices[: math.gcd(options.batch_size, len(devices))]
        self._encoders: dict[tuple[float, ...], Callable] = {}
        self.tables = class_names.ClassTables(
            model, self.tokenizer, config.data.max_phrase_tokens, class_tables
        )

    def place(self, params):
        """The parameters whole on each of this host's devices."""
        params = jax.tree.map(_local, params)
        if len(self.devices) == 1:
            return jax.device_put(params, self.devices[0])
        mesh = Mesh(np.array(self.devices), ("data",))
        return jax.device_put(params, NamedSharding(mesh, PartitionSpec()))

    def spread(
        self, program: Callable, shared: int, *, given_up: tuple[int, ...] = (), **static
    ) -> Callable:
        """A program compiled for this host's devices: the first `shared` arguments after the model
        are whole on each, the rows of the others are divided among them. given_up: numbers of the
        arguments after the model whose memory the results may take."""
        program = functools.partial(program, self.model, **static)
        if len(self.devices) == 1:
            return jax.jit(program, donate_argnums=given_up)
        mesh = Mesh(np.array(self.devices), ("data",))

        @functools.partial(jax.jit, donate_argnums=given_up)
        def divided(*arguments):
            rows = [PartitionSpec()] * shared + [PartitionSpec("data")] * (len(arguments) - shared)
            run = jax.shard_map(
                program,
                mesh=mesh,
                in_specs=tuple(rows),
                out_specs=PartitionSpec("data"),
                check_vma=False,
            )
            return run(*arguments)

        return divided

    def open(self, split: str) -> catalog.Split:
        return catalog.open_split(self.config.data.root, split)

    def sizing(self, edges: tuple[int, ...], *, bicubic: bool = False) -> Sizing:
        """How the images of a task are sized; see EvaluationConfig.edges."""
        divisor = self.config.model.backbone.size_divisor
        return Sizing(self.side, divisor, tuple(edges), bicubic)

    def encoder(self, sizing: Sizing) -> Callable:
        """The compiled program (params, images, image_size) -> features; one for all tasks alike."""
        pad = sizing.pad_colour(self.config.model.pixel_mean)
        key = tuple(pad.tolist())
        if key not in self._encoders:
            self._encoders[key] = self.spread(encode_image, 1, pad=pad)
        return self._encoders[key]

    def grouped(
        self, split: catalog.Split, samples: Sequence[int], sizing: Sizing, batches: int = 1
    ) -> list[list[int]]:
        """The samples in units of so many batches of one canvas."""
        return reader.group(split, samples, sizing, batches * self.config.evaluation.batch_size)

    def batches(
        self, split: catalog.Split, units: Sequence[Sequence[int]], sizing: Sizing
    ) -> Iterator[EvalBatch]:
        """The batch of each unit, read ahead."""
        size = self.config.evaluation.batch_size
        yield from reader.read(split, units, sizing, self.tokenizer, self.config.data, size)

    def plan(self, batch: EvalBatch, *, antialias: bool = True) -> postprocess.ResizePlan:
        """How the masks of a batch reach the original sizes."""
        height, width = batch.canvas
        return postprocess.plan_resize(
            batch.image_size,
            [(record.height, record.width) for record in batch.records],
            (height // MASK_STRIDE, width // MASK_STRIDE),
            (height, width),
            antialias=antialias,
        )

    def class_table(self, params, split: catalog.Split) -> np.ndarray:
        """float32 [C, V], the vocabulary of a data set: its own class names, or those that the file
        config.evaluation.vocabulary gives for each of them."""
        names = split.class_names
        if self.config.evaluation.vocabulary:
            names = read_vocabulary(self.config.evaluation.vocabulary, names)
        return self.tables.table(params, names, name_templates.templates_of(split.name))


def encode_image(model, params, images, sizes, *, pad: np.ndarray):
    """The features of images uint8 [B, H, W, 3] that are `pad` (RGB) beyond their sizes [B, 2]."""
    rows = jax.lax.broadcasted_iota(jnp.int32, images.shape[:3], 1)
    columns = jax.lax.broadcasted_iota(jnp.int32, images.shape[:3], 2)
    inside = (rows < sizes[:, 0, None, None]) & (columns < sizes[:, 1, None, None])
    images = jnp.where(inside[..., None], images.astype(jnp.float32), pad[None, None, None])
    return model.apply({"params": params}, images, method="encode_image")


def read_vocabulary(path: str | Path, names: Sequence[str]) -> list[list[str]]:
    """What to call each class: from a JSON object, class name -> a name or a list of synonyms.

    Raises ValueError for a file that is no such object and for a class that it lacks.
    """
    groups = []
    try:
        found = json.loads(Path(path).read_text())
        for name in names:
            said = [found[name]] if isinstance(found[name], str) else found[name]
            if not (isinstance(said, list) and all(isinstance(one, str) for one in said)):
                raise TypeError(f"{name!r} is called {said!r:.80}")
            groups.append(said)
    except KeyError as error:
        raise ValueError(
            f"the vocabulary {path} lacks the class {error}; it needs all of {list(names)}."
        ) from error
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"the vocabulary {path} is no JSON object of class names ({error})."
        ) from error
    return groups


def identified(path: str | Path) -> str:
    """The name of a file and a hash of what it holds, for a protocol. ValueError if it cannot be read."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}).") from error
    return f"{Path(path).name}, SHA-256 {hashlib.sha256(content).hexdigest()[:12]}"


def unstack(tree, rows: Sequence) -> Iterator:
    """The parts of a batched pytree as NumPy, one for each of `rows`."""
    tree = jax.device_get(tree)
    for b in range(len(rows)):
        yield jax.tree.map(lambda array, b=b: array[b], tree)


def _local(leaf):
    """What this host has of an array that lies whole on every device."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return leaf.addressable_data(0)
    return leaf
