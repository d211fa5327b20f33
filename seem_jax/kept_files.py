"""What a work folder keeps beside its checkpoints, so that it may be moved and needs no data set.

WORKDIR/tokenizer.model  the tokenizer that the model reads with
WORKDIR/classes.json     the classes of its first training set: the vocabulary where none is given
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from seem_jax.config import Config
from seem_jax.data import catalog

TOKENIZER, CLASSES = "tokenizer.model", "classes.json"


def keep(workdir: str | Path, config: Config) -> None:
    """Copies the files there, those that are where the configuration says; aside first, then renamed."""
    for name, source in _sources(config).items():
        if source.is_file():
            aside = Path(workdir) / f".{name}.{os.getpid()}.tmp"
            shutil.copyfile(source, aside)
            os.replace(aside, Path(workdir) / name)


def tokenizer(workdir: str | Path, config: Config) -> Path:
    """The tokenizer kept in a work folder; where there is none, that of the configuration."""
    return _find(TOKENIZER, workdir, config)


def classes(workdir: str | Path, config: Config) -> tuple[tuple[str, ...], int]:
    """(class names, number of things) kept in a work folder; where there are none, those of the first
    training set; no names where that is not here either. ValueError for a damaged file."""
    path = _find(CLASSES, workdir, config)
    if not path.is_file():
        return (), 0
    try:
        found = json.loads(path.read_text())
        return tuple(map(str, found["names"])), int(found["num_things"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({error!r}): copy it again from the training data, or delete it and "
            "give names with each call."
        ) from error


def _find(name: str, workdir: str | Path, config: Config) -> Path:
    kept = Path(workdir) / name
    return kept if kept.is_file() else _sources(config)[name]


def _sources(config: Config) -> dict[str, Path]:
    """Where the configuration says that each file is."""
    data = config.data
    return {
        TOKENIZER: Path(data.tokenizer),
        CLASSES: catalog.classes_path(data.root, data.train[0]),
    }
