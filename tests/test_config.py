import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from seem_jax import sharding
from seem_jax.config_checks import validate
from seem_jax.config_files import from_json, load_config, to_json
from seem_jax.data import strokes
from seem_jax.models.seem import build
from seem_jax.training import state as states
from seem_jax.training.step import Vocabulary, make_train_step
from tests.fakes import fake_batch, tiny_config

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(path for path in (ROOT / "configs").glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_file_is_valid_and_survives_json(path):
    config = load_config(path)
    assert from_json(to_json(config)) == config


def test_focalt_differs_from_shapes_only_in_values():
    """Same fields, so the same architecture and tasks; the tree of parts of the model is one."""
    focalt, shapes = (load_config(ROOT / f"configs/{n}.py") for n in ("focalt", "shapes"))
    assert focalt.model.backbone.name == shapes.model.backbone.name
    assert focalt.model.pixel_decoder.name == shapes.model.pixel_decoder.name
    assert focalt.model.backbone.depthwise == shapes.model.backbone.depthwise
    assert focalt.model.decoder.rules == shapes.model.decoder.rules
    assert focalt.max_rounds == shapes.max_rounds == 5


def test_focalt_has_the_official_numbers_of_parameters():
    config = load_config(ROOT / "configs/focalt.py")
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    state = states.abstract(build(config.model), config, mesh)
    params = states.merge(state)
    assert states.num_parameters(params) / 1e6 == pytest.approx(164.62, abs=0.005)
    assert set(state.trainable) == {"decoder"}


def test_the_full_size_training_step_has_static_shapes():
    config = load_config(ROOT / "configs/focalt.py")
    mesh = sharding.make_mesh(config.mesh)
    model = build(config.model)
    state = states.abstract(model, config, mesh)
    small = dataclasses.replace(config, data=dataclasses.replace(config.data, image_size=64))
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            tuple(config.data.image_size if n == 64 else n for n in x.shape), x.dtype
        ),
        fake_batch(small, 1),
    )
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((16, *x.shape[1:]), x.dtype), batch)
    assert batch.image.shape == (16, 1024, 1024, 3)
    text = (134, 81, config.data.max_phrase_tokens)
    names = Vocabulary(
        token_ids=jax.ShapeDtypeStruct(text, jnp.int32),
        token_valid=jax.ShapeDtypeStruct(text, bool),
        sentences=jax.ShapeDtypeStruct((*text[:2], config.model.text.projection), jnp.float32),
    )
    with sharding.use(mesh):
        step = make_train_step(model, config, state)
        after, metrics = step.eval_shape(state, batch, names)
    same = jax.tree.map(
        lambda new, old: (new.shape, new.dtype) == (old.shape, old.dtype), after, state
    )
    assert all(jax.tree.leaves(same))
    assert {"loss", "object/dice", "text/class", "visual/bce", "num_rounds"} <= set(metrics)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: setattr(c.model.decoder, "width", 34), r"config.model.decoder.width = 34"),
        (lambda c: setattr(c.data, "image_size", 100), r"data.image_size = 100.*multiple of 32"),
        (lambda c: setattr(c.data, "max_objects", 300), r"data.max_objects = 300"),
        (lambda c: setattr(c.data, "weights", (1.0, 2.0)), r"data.weights"),
        (lambda c: setattr(c.data, "prompt_kinds", ("dot",)), r"data.prompt_kinds.*scribble"),
        (lambda c: setattr(c.optimizer, "schedule", "linear"), r"optimizer.schedule = 'linear'"),
        (lambda c: setattr(c, "num_steps", 0), r"num_steps = 0"),
        (
            lambda c: setattr(c, "encoder_steps", 6),
            r"encoder_steps = 6: .*fewer than num_steps = 6",
        ),
        (lambda c: setattr(c, "round_stop_iou", 1.5), r"round_stop_iou = 1.5: .*at most 1"),
        (lambda c: setattr(c, "location_dropout", 1.5), r"location_dropout = 1.5: .*from 0 to 1"),
        (lambda c: setattr(c.model.text, "num_heads", 0), r"model.text.num_heads = 0"),
        (lambda c: setattr(c.model.decoder, "rules", "all"), r'"official", "composed" or "shared"'),
        (lambda c: setattr(c.model, "dtype", "float16"), r'dtype = .*"float32" or "bfloat16"'),
        (lambda c: setattr(c.data, "batch_size", 0), r"data.batch_size = 0"),
        (lambda c: setattr(c.data, "prompt_kinds", ()), r"data.prompt_kinds = \(\)"),
        (lambda c: setattr(c.data, "max_bad_records", -1), r"data.max_bad_records = -1"),
        (lambda c: setattr(c, "may_be_fresh", ("decoder",)), r"config.start_from is empty"),
    ],
)
def test_a_value_out_of_range_is_named(change, message):
    config = tiny_config()
    change(config)
    with pytest.raises(ValueError, match=message):
        validate(config)


def test_json_of_another_version_names_the_fields():
    text = to_json(tiny_config()).replace('"max_rounds"', '"rounds"')
    with pytest.raises(ValueError, match=r"config: unknown fields \['rounds'\]"):
        from_json(text)


def test_json_without_a_younger_field_takes_its_default():
    values = json.loads(to_json(tiny_config()))
    del values["start_from"], values["data"]["max_bad_records"]
    assert from_json(json.dumps(values)) == tiny_config()


def run_flags(*arguments):
    program = (
        "from seem_jax.config_flag import CONFIG, run_program\n"
        "def main(argv):\n"
        "    config = CONFIG.value\n"
        "    print(config.optimizer.learning_rate, config.optimizer.frozen, config.data.train)\n"
        "run_program(main)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", program, f"--config={ROOT}/configs/shapes.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_flags_reach_the_dataclasses():
    done = run_flags("--config.optimizer.learning_rate=3e-4", "--config.optimizer.frozen=('text',)")
    assert done.stdout.split("\n")[0] == "0.0003 ('text',) ('shapes_panoptic:train',)", done.stderr


def test_an_unknown_key_is_an_error_that_names_it():
    done = run_flags("--config.optimizer.learning_rat=3e-4")
    assert done.returncode == 1
    assert done.stderr.startswith(
        "--config: OptimizerConfig has no field 'learning_rat'; expected "
    )
    assert done.stderr.endswith("Is 'learning_rate' meant?\n")


def test_the_kinds_of_drawings_are_those_that_can_be_drawn():
    config = tiny_config()
    config.data.prompt_kinds = tuple(strokes.KINDS)
    validate(config)
    config.data.prompt_kinds = ("none of them",)
    with pytest.raises(ValueError, match=re.escape(f"names of {sorted(strokes.KINDS)}")):
        validate(config)
