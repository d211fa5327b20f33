"""The whole evaluation with a model that knows the answer: every decision must be right.

The oracle reads the truth from the colours of the images (red: segment, green: class), so what is
tested is everything around a model: vocabulary, sizes, padding, clicks, counting and pictures.
"""

from __future__ import annotations

import dataclasses

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from pycocotools import mask as coco_mask

from seem_jax import postprocess
from seem_jax.data.schema import Record
from seem_jax.evaluation import evaluator, programs
from seem_jax.models.seem import build, initialise
from seem_jax.types import Features, Outputs, SlotOutputs, VisualTokens
from tests.fakes import tiny_config

NUM_IDS, NUM_WORDS = 16, 48
FIRST_CLASS, BACKGROUND, FIRST_PHRASE = 3, 20, 24  # words of the oracle's language
STEP = 10  # grey levels between two segments
SURE = 20.0  # logit


@dataclasses.dataclass
class FakeSplit:
    records: list[Record]
    name: str = "shapes_fake"
    split: str = "val"
    class_names: tuple[str, ...] = ("c0", "c1", "c2", "c3-stuff")
    num_things: int = 3

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, item: int) -> Record:
        return self.records[item]


class FakeTokenizer:
    def __init__(self, path: str = ""):
        del path

    def encode(self, texts, length: int):
        ids, valid = np.zeros((len(texts), length), np.int32), np.zeros((len(texts), length), bool)
        for row, text in enumerate(texts):
            word = text.split()[-1]
            start = {"c": FIRST_CLASS, "p": FIRST_PHRASE}.get(word[0])
            ids[row, :3] = 1, BACKGROUND if word == "background" else start + int(word[1:]), 2
            valid[row, :3] = True
        return ids, valid


class Oracle:
    """Keeps the calls of SEEM and answers from the colours; `late`: only from the second round on."""

    def __init__(self, late: bool = False):
        self.late = late

    def apply(self, variables, *args, method: str, **kwargs):
        del variables
        return getattr(self, method)(*args, **kwargs)

    def encode_image(self, images):
        small = jnp.asarray(images)[:, 2::4, 2::4].astype(jnp.float32) / STEP
        segment = jax.nn.one_hot(jnp.round(small[..., 0]).astype(jnp.int32), NUM_IDS)
        label = jnp.round(small[..., 1, None]) * segment  # [B, h, w, ids]
        label = jnp.where(segment.any((1, 2)), label.max((1, 2)) + FIRST_CLASS, BACKGROUND)
        mask = SURE * (2 * segment - 1)
        return Features(mask=mask, levels=(), mask_levels=(), keys=(label,), values=())

    def encode_text(self, ids, valid):
        del valid
        tokens = jax.nn.one_hot(ids, NUM_WORDS)
        return tokens, tokens[:, 1]

    def encode_prompts(self, features, prompts, num_prompts):
        h, w = features.mask.shape[1:3]
        at = jnp.floor(prompts.points * jnp.array([[[w, h]]], jnp.float32)).astype(jnp.int32)
        rows = jnp.arange(len(at))[:, None]
        read = features.mask[rows, at[..., 1], at[..., 0]]  # [B, K, ids]
        owner = prompts.prompt[:, None] == jnp.arange(num_prompts)[None, :, None]
        owner = owner & (prompts.valid & prompts.positive)[:, None]
        pooled = jnp.einsum("bpk,bkd->bpd", owner.astype(jnp.float32), read)
        pooled = pooled / jnp.maximum(owner.sum(-1, keepdims=True), 1).astype(jnp.float32)
        return VisualTokens(
            levels=(),
            prompt=prompts.prompt,
            valid=prompts.valid,
            pooled=pooled,
            prompt_valid=owner.any(-1),
        )

    def decode(self, features, text=None, visual=None, memory=None, *, objects=True):
        batch = len(features.mask)
        every = jnp.broadcast_to(jnp.eye(NUM_IDS)[None, None], (1, batch, NUM_IDS, NUM_IDS))
        named = jax.nn.one_hot(features.keys[0].astype(jnp.int32), NUM_WORDS)[None]
        said = jax.nn.one_hot(FIRST_PHRASE + jnp.arange(NUM_IDS), NUM_WORDS)
        said = jnp.broadcast_to(said[None, None], (1, batch, NUM_IDS, NUM_WORDS))
        drawn = choice = None
        if visual is not None:
            own = jax.nn.one_hot(visual.pooled.argmax(-1), NUM_IDS)
            known = memory.valid if self.late and memory is not None else visual.prompt_valid
            drawn = SlotOutputs(jnp.where(known[..., None], own, -own)[None], said[:, :, :1])
            choice = jnp.broadcast_to(jnp.arange(own.shape[1])[None], own.shape[:2])
        return Outputs(
            object=SlotOutputs(every, named) if objects else None,
            text=SlotOutputs(every, said) if text is not None else None,
            visual=drawn,
            visual_choice=choice,
        )


def record(number: int, height: int, width: int, block: int) -> Record:
    """A scene of blocks: stuff (class 3) below, things of classes 0 to 2 on top."""
    ids = np.ones((height, width), np.uint8)
    categories, top = [3], block
    for segment in range(2, 2 + 6 + (number == 0)):
        left = (segment - 2) * block
        if left >= width or top >= height:
            break
        ids[top : top + 2 * block, left : left + block] = segment
        categories.append(segment % 3)
    labels = np.append([0], categories)[ids]
    image = np.stack([ids * STEP, labels * STEP, ids * 0], -1).astype(np.uint8)
    things = range(2, len(categories) + 1)
    rle = [coco_mask.encode(np.asfortranarray((ids == i).astype(np.uint8))) for i in things]
    return Record(
        image_id=number,
        file_name=f"{number}.png",
        image=cv2.imencode(".png", image[..., ::-1])[1].tobytes(),
        height=height,
        width=width,
        segment_map=cv2.imencode(".png", ids)[1].tobytes(),
        segment_id=list(range(1, len(categories) + 1)),
        segment_category=categories,
        segment_crowd=[False] * len(categories),
        object_rle=[r["counts"] for r in rle],
        object_category=categories[1:],
        phrase_text=[f"the p{i}" for i in things],
        phrase_object=list(range(len(rle))),
    )


@pytest.fixture
def setting(monkeypatch):
    """(config, params) of an evaluation on three images of different sizes, one batch half empty."""
    records = [record(0, 64, 64, 8), record(1, 32, 64, 8), record(2, 32, 32, 4)]
    split = FakeSplit(records)
    monkeypatch.setattr(evaluator.catalog, "open_split", lambda root, name: split)
    monkeypatch.setattr(evaluator, "Tokenizer", FakeTokenizer)
    config = tiny_config()
    config.evaluation.max_images = 0
    config.evaluation.max_clicks = 3
    return config, {"logit_scale": jnp.float32(4.0)}


def test_right_answers_are_counted_as_right(setting, tmp_path):
    config, params = setting
    got = evaluator.run(Oracle(), params, config, workdir=tmp_path)
    # Bilinear masks round the corners of the blocks, so areas are not perfect, but decisions are.
    exact = [key for key in got if "/rq" in key or "/p@" in key]
    assert len(exact) == 3 + 3 * 5
    assert {key: got[key] for key in exact} == pytest.approx(dict.fromkeys(exact, 100.0))
    assert min(value for key, value in got.items() if "noc" not in key) > 97
    assert {got[f"interactive/click/noc@{t}"] for t in (50, 80, 85, 90)} == {1.0}
    for key in ("panoptic/pq_things", "referring/text+click/ciou", "referring/unseen/p@0.5"):
        assert key in got
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert names == {
        "panoptic.png",
        "referring.png",
        "referring_unseen.png",
        "interactive_click.png",
    }
    sheet = cv2.imread(str(tmp_path / "pictures" / "interactive_click.png"))
    assert sheet.shape[1] == 10 + 4 * 266
    assert sheet.std() > 10


def test_an_answer_of_the_second_round_counts_two_clicks(setting, tmp_path):
    config, params = setting
    config.data.panoptic_eval = config.data.referring_eval = config.data.referring_unseen_eval = ""
    got = evaluator.run(Oracle(late=True), params, config, workdir=tmp_path)
    assert set(got) == {key for key in got if key.startswith("interactive/click/")}
    assert got["interactive/click/noc@85"] == got["interactive/click/noc@90"] == 2.0
    assert got["interactive/click/iou@1"] < 1
    assert got["interactive/click/iou@2"] == got["interactive/click/iou@3"] > 97


def test_evaluating_again_compiles_nothing(setting, tmp_path):
    config, params = setting
    runner = evaluator.Evaluator(Oracle(), config)
    first = runner.run(params, workdir=tmp_path)
    sizes = [getattr(runner, name)._cache_size() for name in ("encode", "click_session")]
    again = runner.run(params, workdir=tmp_path)
    assert again == first
    assert sizes == [getattr(runner, name)._cache_size() for name in ("encode", "click_session")]


def test_a_session_depends_on_no_batch_mate():
    """With a real, untrained model: the same clicks and answers in other company."""
    config = tiny_config()
    model = build(config.model)
    rng = np.random.default_rng(0)
    shapes = nn.unbox(jax.eval_shape(lambda key: initialise(model, key), jax.random.key(0)))
    params = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(x.dtype), shapes)
    images = rng.integers(0, 255, (3, 64, 64, 3)).astype(np.uint8)
    maps = np.kron(rng.integers(0, 4, (3, 4, 4)), np.ones((16, 16), np.int64)).astype(np.int32)
    sizes = [(64, 64)] * 2
    plan = postprocess.plan_resize(np.array(sizes), sizes, (16, 16), (64, 64), antialias=False)

    @jax.jit
    def session(params, images, maps, wanted):
        features = model.apply({"params": params}, images, method="encode_image")
        return programs.click_session(model, params, features, maps, maps, wanted, plan, 3)

    def run(mate: int, wanted):
        pair = np.array([0, mate])
        return session(params, images[pair], maps[pair], np.array(wanted, np.int32))

    one, other = run(1, [[1, 2, 0], [3, 0, 0]]), run(2, [[1, 2, 0], [1, 2, 3]])
    one, other = (jax.tree.map(lambda array: np.asarray(array)[0], s) for s in (one, other))
    np.testing.assert_array_equal(one.prompts.points, other.prompts.points)
    np.testing.assert_array_equal(one.last[:2], other.last[:2])
    np.testing.assert_allclose(one.iou[:2], other.iou[:2], atol=1e-6)
    clicks = one.prompts.valid.reshape(3, 3, 9).any(-1)  # rounds, prompts
    assert clicks[:, :2].all()
    assert not clicks[:, 2].any()  # the padding prompt is never clicked
