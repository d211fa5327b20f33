"""The predictor's programs with plain dicts and tuples at their borders, of any batch size.

`jax.export` keeps dicts, tuples and arrays; so nothing of this package is needed to call them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import export

from seem_jax.config import NUM_LEVELS, Config
from seem_jax.models.language import class_names
from seem_jax.models.seem import build
from seem_jax.predictor import programs as predictor_programs
from seem_jax.predictor.programs import MAX_REFERENCE_POINTS, Phrase, ReferenceTokens, Row
from seem_jax.types import Array, Features, VisualPrompts

PLATFORMS = ("cpu", "cuda", "tpu")


@dataclasses.dataclass(frozen=True)
class Program:
    """A function of (params, *arguments) with the shapes that it takes; some sizes are symbols."""

    name: str
    function: Callable
    arguments: tuple


def features_dict(features: Features) -> dict:
    """The fields by name, tuples of arrays as tuples."""
    return {field.name: getattr(features, field.name) for field in dataclasses.fields(features)}


def rows_dict(row: Row) -> dict:
    """The fields of a (stacked) row by name; absent parts are absent."""
    out = {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}
    for name in ("phrase", "reference"):
        part = out.pop(name)
        if part is not None:
            out[name] = {each.name: getattr(part, each.name) for each in dataclasses.fields(part)}
    return out


def _row(rows: dict) -> Row:
    phrase, reference = rows.get("phrase"), rows.get("reference")
    plain = {name: rows[name] for name in rows if name not in ("phrase", "reference")}
    return Row(
        **plain,
        phrase=None if phrase is None else Phrase(**phrase),
        reference=None if reference is None else ReferenceTokens(**reference),
    )


def programs(config: Config, params: dict, side: int) -> list[Program]:
    """Everything that a predictor of images of this side runs; of params the shapes are read."""
    # The definition: other implementations are for one kind of device, or need sizes that are known.
    model = dataclasses.replace(config.model, attention="xla")
    own = predictor_programs.Programs(build(model))
    width, text_width = config.model.decoder.width, config.model.text.projection
    length = config.data.max_phrase_tokens
    batch, names, points = export.symbolic_shape("b, n, k")

    def of(shape, dtype=jnp.float32) -> Array:
        return jax.ShapeDtypeStruct(shape, dtype)

    def plain(features: dict) -> Features:
        return Features(**features)

    def answer(params, features: dict, rows: dict) -> dict:
        found = own.answer(params, (plain(features),), _row(rows))
        return {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}

    def objects(params, features: dict) -> dict:
        found = own.objects(params, plain(features))
        return {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}

    def read(params, features: dict, drawn: dict) -> dict:
        nobody = jnp.zeros(drawn["valid"].shape, jnp.int32)
        elsewhere = jnp.zeros((drawn["valid"].shape[0], 1), bool)  # a reference is for other images
        tokens = own.read(params, plain(features), VisualPrompts(prompt=nobody, **drawn), elsewhere)
        return {"levels": tokens.levels, "pooled": tokens.pooled[:, 0]}

    def encode(params, images) -> dict:
        return features_dict(own.encode(params, images))

    images = of((batch, side, side, 3), jnp.uint8)
    features = jax.eval_shape(encode, params, images)
    drawn = {
        "points": of((batch, points, 2)),
        "positive": of((batch, points), bool),
        "valid": of((batch, points), bool),
    }
    row = drawn | {
        "fitted": of((batch, 2), jnp.int32),
        "memory": of((batch, width)),
        "remembers": of((batch,), bool),
    }
    phrase = {
        "tokens": of((batch, length, text_width)),
        "valid": of((batch, length), bool),
        "sentence": of((batch, text_width)),
    }
    reference = {
        "levels": (of((batch, MAX_REFERENCE_POINTS, width)),) * NUM_LEVELS,
        "valid": of((batch, MAX_REFERENCE_POINTS), bool),
        "pooled": of((batch, width)),
        "count": of((batch,)),
    }
    ids = (of((batch, length), jnp.int32), of((batch, length), bool))
    sentences = (of((names, batch, length), jnp.int32), of((names, batch, length), bool))
    with_phrase = row | {"phrase": phrase}
    return [
        Program("encode", encode, (images,)),
        Program("objects", objects, (features,)),
        Program("sentence", own.sentence, ids),
        Program("classes", lambda *a: class_names.embed(own.model, *a), sentences),
        Program("read", read, (features, drawn)),
        Program("answer", answer, (features, row)),
        Program("answer_text", answer, (features, with_phrase)),
        Program("answer_reference", answer, (features, row | {"reference": reference})),
        Program(
            "answer_text_reference", answer, (features, with_phrase | {"reference": reference})
        ),
    ]
