"""docs/tutorial.md: every snippet runs, in order, in one session, with an untrained model.

`python` blocks are executed; of `bash` blocks the commands `python -m ...` run in this process. Left out
are the commands in NOT_RUN. Blocks marked slow (the export) run in the slow test alone, which uses the
model of configs/shapes.py; training is taken as far as its first batch here, and two steps there.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import linen as nn

from configs import shapes
from data_prep.tokenizer import train_tokenizer
from seem_jax import checkpoint
from seem_jax.config import Config
from seem_jax.config_checks import validate
from seem_jax.data import catalog
from seem_jax.data.pipeline import train_batches
from seem_jax.demo import __main__ as demo
from seem_jax.models.language.tokenizer import Tokenizer
from seem_jax.models.seem import build, initialise
from tests.fakes import tiny_config

ROOT = Path(__file__).resolve().parents[1]
TUTORIAL = ROOT / "docs" / "tutorial.md"
BLOCK = re.compile(r"^```(\w+)( slow)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN = {"pip install -r requirements-demo.txt", "pip install -r requirements-video.txt"}
CLASSES = ("cross", "heart", "ring", "sky", "grass", "water")
SENTENCES = (  # whose words become pieces of the tokenizer, so that phrases are short
    *("the red cross", "the blue heart", "the red triangle", "the yellow ring", "the shape"),
    *(
        f"a photo of a {name}."
        for name in ("sky", "grass", "water", "red", "orange", "green", "background")
    ),
)


def small_config() -> Config:
    """The tiny configuration with room for the phrases of the tutorial."""
    config = tiny_config()
    config.model.text.vocab_size, config.data.max_phrase_tokens = 200, 16
    return config


def blocks(*, slow: bool = True) -> list[tuple[str, str, int]]:
    """(language, text, line of the first line) of every block, or of those not marked slow."""
    text = TUTORIAL.read_text()
    return [
        (found[1], found[3], text.count("\n", 0, found.start(3)) + 1)
        for found in BLOCK.finditer(text)
        if slow or not found[2]
    ]


def make_run(config: Config) -> None:
    """A work folder runs/shapes below the current one, with random parameters."""
    config.workdir, config.compile_cache = "runs/shapes", ""
    config.data.root = "data/shapes/records"
    config.data.tokenizer = "data/shapes/records/tokenizer.model"
    classes = Path(config.data.root, config.data.train[0].partition(":")[0], catalog.VERSION)
    classes.mkdir(parents=True)
    (classes / "classes.json").write_text(json.dumps({"names": CLASSES, "num_things": 3}))
    train_tokenizer(SENTENCES, Path(config.data.tokenizer), 200)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda key: initialise(build(config.model), key), jax.random.key(0))
    draw = lambda leaf: rng.normal(size=leaf.shape, scale=0.2).astype(np.float32)  # noqa: E731
    checkpoint.save_params("runs/shapes", jax.tree.map(draw, nn.unbox(shapes)), config)


def command(line: str) -> None:
    """Runs `python -m MODULE ...` here, so that nothing compiles twice."""
    python, dash, module, *arguments = shlex.split(line)
    assert (python, dash) == ("python", "-m"), line
    if module == "seem_jax.demo":
        demo.parser().parse_args(arguments)
    elif module == "seem_jax.train":
        (name,) = arguments
        first_batch(runpy.run_path(name.removeprefix("--config="))["get_config"]())
    else:
        entry = importlib.import_module(module)
        if hasattr(entry, "__path__"):  # a package
            entry = importlib.import_module(f"{module}.__main__")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [module, *arguments])
            assert not status(entry.main), line


def status(main: Callable) -> object:
    """What a program ends with; 0, False or None where all went well."""
    try:
        return main()
    except SystemExit as end:
        return end.code


def first_batch(config: Config) -> None:
    """Opens the data of a configuration and makes its first batch."""
    validate(config)
    params, _ = checkpoint.restore_params(config.start_from)
    assert params
    batches = train_batches(config.data, Tokenizer(config.data.tokenizer), templates=("{}",))
    try:
        assert len(next(batches).image) == config.data.batch_size
    finally:
        batches.close()


def tour(run_command, *, slow: bool) -> dict:
    """Runs all blocks; the names that they leave behind."""
    session = types.ModuleType("tour")
    for language, text, line in blocks(slow=slow):
        if language == "python":
            # Faults are reported with the line of the tutorial.
            code = compile("\n" * (line - 1) + text, str(TUTORIAL), "exec")
            exec(code, vars(session))
        else:
            assert language == "bash", f"line {line}: what is {language}?"
            for part in text.strip().splitlines():
                if part not in NOT_RUN:
                    run_command(part)
    return vars(session)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_snippet_runs_in_order(folder, monkeypatch):
    pytest.importorskip("av", reason="pip install -r requirements-video.txt")
    make_run(small_config())
    monkeypatch.setattr(shapes, "get_config", small_config)
    left = tour(command, slow=False)
    assert left["many"].texts == ("the shape",) * len(left["many"])
    assert left["session"].actions == (1, 3)
    assert [len(np.atleast_1d(answer)) for answer in left["answers"]] == [1, 2]
    assert len(left["regions"].labels) == 96
    for name in ("answer.png", "heart.npz", "coco.json", "out/scene.png", "out/masks/scene_0.png"):
        assert (folder / name).is_file(), name
    assert (folder / "out/everything/panoptic.json").is_file()
    assert left["found"].object_ids == (2,)
    assert left["opening"].shape == (96, 96, 3)
    assert len(list((folder / "davis").glob("*.png"))) == 12
    assert list((folder / "pictures").glob("*.png"))


def test_the_tour_shows_every_kind_of_prompt_and_use():
    text = TUTORIAL.read_text()
    code = "".join(text for language, text, _ in blocks() if language == "python")
    for kind in ("points", "box", "scribble", "polygon", "mask", "text", "reference", "memory"):
        assert f"{kind}=" in code, kind
    for use in (
        "session",
        "predict_batch",
        "panoptic",
        "instances",
        "semantic",
        "Reference.load",
        "VideoPredictor",
    ):
        assert use in code, use
    for module in (
        "seem_jax.predict",
        "seem_jax.demo",
        "seem_jax.train",
        "data_prep.custom",
        "seem_jax.export",
    ):
        assert f"python -m {module}" in text, module


@pytest.mark.slow
def test_the_tour_runs_with_the_model_of_the_quickstart_and_trains(folder):
    make_run(shapes.get_config())

    def really(line: str) -> None:
        if "seem_jax.train" not in line:
            command(line)
            return
        options = "--config.num_steps=2"
        done = subprocess.run(
            [sys.executable, *shlex.split(line)[1:], *options.split()],
            env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""},  # one device
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        assert (folder / "runs/mine/checkpoints").is_dir()

    tour(really, slow=True)
    for name, source in (
        ("tokenizer.model", "data/shapes/records/tokenizer.model"),
        ("classes.json", "mine/records/custom/1.0.0/classes.json"),
    ):
        assert Path("runs/mine", name).read_bytes() == Path(source).read_bytes()
