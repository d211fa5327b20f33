"""Configurations from files in configs/, and as JSON text."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path

from seem_jax.config import Config
from seem_jax.config_checks import validate


def load_config(path: str | Path) -> Config:
    """The configuration of a file in configs/, validated. For code and tests; flags use config_flags."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no configuration file {str(path)!r}; those at hand are in configs/.")
    spec = importlib.util.spec_from_file_location(f"seem_jax_config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    validate(config)
    return config


def to_json(config: Config) -> str:
    """The configuration as JSON text, for the work folder and the checkpoints."""
    return json.dumps(dataclasses.asdict(config), indent=2, sort_keys=True)


def from_json(text: str) -> Config:
    """The configuration that `to_json` wrote. An unknown field is a ValueError naming it.

    A missing field takes its default: it is younger than the text, and a new field's default is
    what the program did before.
    """
    return _build(Config, json.loads(text), "config")


def _build(kind: type, values: dict, where: str):
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if unknown := sorted(set(values) - set(fields)):
        raise ValueError(f"{where}: unknown fields {unknown}; written by another version?")
    default = kind()
    out = {}
    for name, value in values.items():
        current = getattr(default, name)
        if dataclasses.is_dataclass(current):
            value = _build(type(current), value, f"{where}.{name}")
        elif isinstance(current, tuple):
            value = tuple(value)
        out[name] = value
    return kind(**out)
