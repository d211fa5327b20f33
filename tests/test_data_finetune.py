"""Fine-tuning on a toy set of one's own, in each of the five formats, ends better than it began."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from configs import finetune
from data_prep import custom
from data_prep.tokenizer import train_tokenizer
from seem_jax.config_checks import validate
from tests import test_converters_custom as formats

ROOT = Path(__file__).resolve().parents[1]
SIDE = 64
COLOURS = {"bolt": (220, 60, 40), "nut": (40, 90, 230)}

PROGRAM = """
import os, sys
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0"
)
import tests.conftest
from configs import finetune
from seem_jax import train
from tests.fakes import tiny_config

root, workdir, steps, start_from, tokenizer = sys.argv[1:]
config, wanted = tiny_config(), finetune.get_config()
for name in ("train", "panoptic_eval", "interactive_eval", "referring_eval", "min_scale"):
    setattr(config.data, name, getattr(wanted.data, name))
config.data.referring_unseen_eval = ""
config.data.max_scale = 1.0  # the toy images have the size of the model already
config.data.root, config.data.tokenizer = root, tokenizer
config.data.batch_size, config.data.max_phrase_tokens = 4, 16
config.workdir, config.num_steps, config.start_from = workdir, int(steps), start_from
config.checkpoint_every, config.log_every = int(steps), 1
config.evaluation.max_images, config.evaluation.max_clicks, config.max_rounds = 0, 1, 1
config.evaluation.tasks, config.evaluation.num_pictures = ("interactive",), 0
config.compile_cache = str(tests.conftest.CACHE)
sys.exit(train.train(config))
"""


def test_the_configuration_starts_from_the_official_recipe():
    config = finetune.get_config()
    validate(config)
    assert config.data.train == ("custom:train",)
    assert config.data.panoptic_eval == config.data.interactive_eval == "custom:val"
    assert config.optimizer.frozen  # the encoders keep what they know


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """Patches the formats' writers to draw objects that can be learned in a minute."""
    rng = np.random.default_rng(0)
    boxes, split = {}, {}
    for number in range(24):
        name = f"t{number:02d}"
        split[name] = "train" if number < 18 else "val"
        x0, x1 = rng.integers(2, 8), rng.integers(34, 40)
        objects = []
        for label, left in zip(rng.permutation(2).tolist(), (x0, x1)):
            width, top = rng.integers(16, 24), rng.integers(4, 30)
            box = (int(left), int(top), int(left + width), int(top + width))
            objects.append((label, box))
        boxes[name] = objects

    def write_picture(path: Path, seed: int) -> None:
        pixels = np.random.default_rng(seed).integers(90, 150, (SIDE, SIDE, 3), np.uint8)
        for label, (left, top, right, bottom) in boxes[path.stem]:
            pixels[top:bottom, left:right] = list(COLOURS.values())[label]
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), pixels[..., ::-1])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formats, "BOXES", boxes)
        patch.setattr(formats, "SPLIT", split)
        patch.setattr(formats, "HEIGHT", SIDE)
        patch.setattr(formats, "WIDTH", SIDE)
        patch.setattr(formats, "write_picture", write_picture)
        folder = tmp_path_factory.mktemp("toys")
        texts = [f"a photo of a {name}." for name in COLOURS]
        train_tokenizer(texts, folder / "tokenizer.model", 48)
        for kind, write in formats.WRITERS.items():
            write(folder / kind)
            things = formats.NAMES * (kind == "masks")
            custom.convert(folder / kind, folder / "records" / kind, "custom", things=things)
        train(folder, "coco", "start", 2, "")
        yield folder


def train(folder: Path, kind: str, name: str, steps: int, start_from: str) -> dict[str, float]:
    """Trains in a process of its own; the numbers of its evaluation."""
    workdir = folder / "runs" / name
    arguments = [folder / "records" / kind, workdir, steps, start_from, folder / "tokenizer.model"]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads((workdir / "evaluation.json").read_text())


@pytest.mark.slow  # a minute of one core each, and another for what all start from
@pytest.mark.parametrize("kind", formats.WRITERS)
def test_fine_tuning_ends_better_than_it_began(toys, kind):
    before = json.loads((toys / "runs" / "start" / "evaluation.json").read_text())
    after = train(toys, kind, kind, 150, str(toys / "runs" / "start"))
    assert after["interactive/click/iou@1"] > before["interactive/click/iou@1"]
    lines = (toys / "runs" / kind / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert np.mean(losses[-20:]) < 0.8 * np.mean(losses[:20])
