"""COCO, LVIS and RefCOCOg, converted by their programs, are what configs/focalt.py trains on."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from data_prep.tokenizer import train_tokenizer
from seem_jax.config_files import load_config
from seem_jax.data import pipeline
from seem_jax.data.catalog import open_split
from seem_jax.models.language.tokenizer import Tokenizer
from seem_jax.name_templates import COCO_TEMPLATES
from tests.test_converters import SAMPLES, needs_samples
from tests.test_converters_sets import run_module

ROOT = Path(__file__).resolve().parents[1]

PROGRAM = """
import dataclasses, os, sys
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0"
)
import tests.conftest
from seem_jax import train
from seem_jax.config_files import load_config
from tests.fakes import tiny_config

root, workdir, size = sys.argv[1:]
config = tiny_config()
data = load_config("configs/focalt.py").data
config.data = dataclasses.replace(
    data, root=root, tokenizer=root + "/tokenizer.model", image_size=int(size), batch_size=2
)
config.model.text.context_length = data.max_phrase_tokens
config.model.text.vocab_size = 256
config.model.decoder.num_object_queries = 64
config.workdir, config.num_steps, config.max_rounds = workdir, 2, 1
config.checkpoint_every, config.log_every = 2, 1
config.compile_cache = str(tests.conftest.CACHE)
sys.exit(train.train(config))
"""


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> Path:
    """The samples laid out as a user's folder, train2017 as val2017, and converted as documented."""
    if not SAMPLES.is_dir():
        pytest.skip("the sample files are not beside the checkout (../shared/samples)")
    root = tmp_path_factory.mktemp("focalt")
    (root / "coco" / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        for kind in ("", "panoptic_"):
            shutil.copytree(SAMPLES / f"coco/{kind}val2017", root / f"coco/{kind}{split}2017")
        for kind in ("panoptic", "instances"):
            shutil.copy(
                SAMPLES / f"coco/annotations/{kind}_val2017.json",
                root / f"coco/annotations/{kind}_{split}2017.json",
            )
    shutil.copytree(SAMPLES / "lvis", root / "coco" / "lvis")
    shutil.copytree(SAMPLES / "refer_ours" / "refcocog", root / "refer" / "refcocog")
    for module, split in (("lvis", "train"), ("coco", "val"), ("refcoco", "val")):
        arguments = ("--input", root / "coco", "--output", root / "records", "--splits", split)
        done = run_module(module, *arguments, "--processes=1")
        assert done.returncode == 0, done.stderr
    names = open_split(root / "records", "coco_lvis:train").class_names
    texts = [template.format(name) for name in names for template in COCO_TEMPLATES]
    train_tokenizer(texts, root / "records" / "tokenizer.model", 256)
    return root / "records"


@needs_samples
def test_the_names_in_the_configuration_are_those_that_the_programs_write(records):
    data = load_config("configs/focalt.py").data
    train = open_split(records, data.train[0])
    # Of the two images with panoptic truth, one has sentences of RefCOCOg's validation split.
    assert [train[number].image_id for number in range(len(train))] == [439180]
    for spec in (data.panoptic_eval, data.interactive_eval, data.referring_eval):
        assert len(open_split(records, spec)) == 2
    table = json.loads((SAMPLES / "coco_panoptic_categories.json").read_text())
    assert len(train.class_names) == 133
    assert train.class_names == [row["name"] for row in table]


@needs_samples
def test_the_training_mix_is_made_of_the_real_images_at_full_size(records):
    data = load_config("configs/focalt.py").data
    data.root, data.batch_size, data.num_threads = str(records), 2, 0
    tokenizer = Tokenizer(str(records / "tokenizer.model"))
    batches = pipeline.train_batches(data, tokenizer, templates=COCO_TEMPLATES)
    batch = next(batches)
    batches.close()
    assert batch.image.shape == (2, 1024, 1024, 3)
    assert batch.planes.shape == (2, 3, 1024, 1024)
    assert (batch.sample_id == 0).all() and batch.prompt_masks.valid.any(axis=1).all()
    assert not batch.phrases.is_class.any()  # it has sentences
    bytes_each = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(batch)) / 2
    assert bytes_each < 8e6


@pytest.mark.slow
@pytest.mark.parametrize("size", [128, 1024])
def test_a_small_model_trains_and_is_evaluated_on_it(records, tmp_path, size):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(records), str(tmp_path / "run"), str(size)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    numbers = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert {"panoptic/pq", "referring/text/ciou", "interactive/click/iou@1"} <= set(numbers)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert all(np.isfinite(json.loads(line)["loss"]) for line in lines)
