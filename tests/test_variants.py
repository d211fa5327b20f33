"""Every full-size configuration: its parameters are those of the official checkpoint, name by name."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from seem_jax import sharding
from seem_jax.config_checks import validate
from seem_jax.config_files import load_config
from seem_jax.convert import rules
from seem_jax.models import seem
from tests import parity_support as parity

CONFIGS = Path(__file__).parents[1] / "configs"
MILLIONS = {  # backbone, pixel decoder, mask decoder, text encoder
    "focalt": (29.92, 31.46, 39.81, 63.43),
    "focall": (205.75, 32.19, 39.81, 63.43),
    "davitd3": (86.93, 31.70, 39.81, 63.43),
    "davitd5": (360.63, 32.69, 39.81, 63.43),
    "samvitb": (98.36, 13.96, 39.81, 63.43),
    "samvitl": (323.33, 13.96, 39.81, 63.43),
}
SEEM = [f"seem_{name}_unicl_lang_v1" for name in MILLIONS] + [
    f"seem_{name}_unicl_lang_{version}"
    for name in ("focalt", "focall")
    for version in ("v0", "demo")
]
XDECODER = [f"xdecoder_{name}_unicl_lang" for name in ("focalt", "focall", "davitd3")]


@functools.cache
def shapes(name: str) -> dict:
    """The parameters of a configuration as shapes, path -> ShapeDtypeStruct."""
    model = seem.build(load_config(CONFIGS / f"{name}.py").model)
    tree = jax.eval_shape(functools.partial(seem.initialise, model), jax.random.key(0))
    return flatten_dict(sharding.unbox(tree), sep="/")


def manifest(name: str) -> dict[str, tuple[int, ...]]:
    """Official name -> shape, without the buffers."""
    parity.need_material()
    rows = parity.recipe().load_manifest(parity.ROOT / "manifests" / f"{name}.json")
    return {key: tuple(shape) for key, shape, _ in rows if key not in rules.BUFFERS}


def empty(tree: dict) -> dict:
    """Arrays of these shapes that take no memory."""
    return {name: np.broadcast_to(np.int8(0), shape) for name, shape in tree.items()}


def size(tree: dict, *parts: str) -> float:
    count = sum(
        int(np.prod(leaf.shape)) for path, leaf in tree.items() if path.split("/")[0] in parts
    )
    return round(count / 1e6, 2)


@pytest.mark.parametrize("name", MILLIONS)
def test_parts_have_as_many_parameters_as_officially(name):
    tree = shapes(name)
    got = (
        size(tree, "backbone"),
        size(tree, "pixel_decoder"),
        size(tree, "decoder"),
        size(tree, "text", "text_projection", "logit_scale"),
    )
    assert got == pytest.approx(MILLIONS[name], abs=0.011)


@pytest.mark.parametrize("name", SEEM)
def test_official_names_and_shapes_are_those_of_the_manifest(name):
    tree = shapes(name.split("_")[1])
    ours = unflatten_dict(empty({path: leaf.shape for path, leaf in tree.items()}), sep="/")
    back = rules.official_state(ours)
    assert {key: value.shape for key, value in back.items()} == manifest(name)


@pytest.mark.parametrize("name", XDECODER)
def test_an_xdecoder_checkpoint_fills_all_but_what_seem_adds(name):
    tree = shapes(name.split("_")[1])
    assert tree.keys() >= rules.SEEM_ONLY
    ours = unflatten_dict(
        empty({path: leaf.shape for path, leaf in tree.items() if path not in rules.SEEM_ONLY}),
        sep="/",
    )
    back = {key: value.shape for key, value in rules.official_state(ours).items()}
    theirs = manifest(name)
    assert theirs.keys() - back.keys() == rules.XDECODER_ONLY
    assert back.keys() <= theirs.keys()
    # Larger X-Decoders have 201 queries; SEEM has 101 and starts them anew.
    other = {key for key in back if back[key] != theirs[key]}
    queries = {rules.HEAD + "query_feat.weight", rules.HEAD + "query_embed.weight"}
    assert other == (set() if name == "xdecoder_focalt_unicl_lang" else queries)


@pytest.mark.parametrize("name", SEEM + XDECODER)
def test_every_kind_of_tensor_comes_back_bit_equal(name):
    """One tensor of each kind and shape: numbers in a name do not matter to its rule."""
    kinds = {(re.sub(r"\d+", "#", key), shape): key for key, shape in manifest(name).items()}
    for (_, shape), key in kinds.items():
        if key in rules.XDECODER_ONLY:
            continue
        values = np.resize(np.random.default_rng(0).integers(-128, 127, 9973, np.int8), shape)
        leaf, paths = rules._find(key)
        parts = leaf.forward(values)
        assert len(parts) == len(paths) == len(set(paths))
        assert sum(part.size for part in parts) == values.size
        np.testing.assert_array_equal(leaf.backward(parts), values)


@pytest.mark.slow
@pytest.mark.parametrize("name", SEEM)
def test_a_whole_checkpoint_comes_back_bit_equal(name):
    values = np.random.default_rng(0).integers(-128, 127, 1_000_003, np.int8)
    state = {
        key: np.resize(np.roll(values, index), shape)
        for index, (key, shape) in enumerate(manifest(name).items())
    }
    bytes_of = {
        path: jax.ShapeDtypeStruct(leaf.shape, np.int8)
        for path, leaf in shapes(name.split("_")[1]).items()
    }
    params = rules.convert_state(state, unflatten_dict(bytes_of, sep="/"))
    back = rules.official_state(params)
    assert back.keys() == state.keys()
    assert all(np.array_equal(back[key], state[key]) for key in state)


def test_no_rule_shadows_another():
    """Each of our paths has one rule, and so has each official name."""
    paths = [path for _, _, ours in rules.RULES for path in ours]
    names = [official for _, official, _ in rules.RULES]
    assert len(paths) == len(set(paths))
    assert len(names) == len(set(names))
    for name in names:
        example = re.sub(r"\{\w\}", "7", name)
        assert (
            sum(pattern.fullmatch(example) is not None for pattern, _, _ in rules.BY_OFFICIAL) == 1
        )


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("davitd3", "patch_sizes", (7, 2)),
        ("davitd3", "depths", (1, 1, 9)),
        ("davitd5", "head_width", 48),
        ("focall", "focal_levels", (4, 4)),
        ("samvitb", "depths", (6, 6)),
        ("samvitb", "global_blocks", (2, 12)),
        ("samvitl", "size_divisor", 1000),
    ],
)
def test_values_that_make_no_backbone_are_refused_by_name(name, field, value):
    config = load_config(CONFIGS / f"{name}.py")
    setattr(config.model.backbone, field, value)
    with pytest.raises(ValueError, match=rf"config\.model\.backbone\.{field} = "):
        validate(config)
