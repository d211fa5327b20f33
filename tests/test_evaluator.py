"""The whole evaluation with a model that knows the answer: every decision must be right.

The oracle reads the truth from the colours of the images (red: segment, green: class), so what is
tested is everything around a model: vocabulary, sizes, padding, clicks, counting and pictures.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from pycocotools import mask as coco_mask

from seem_jax import postprocess
from seem_jax.data.schema import Record
from seem_jax.evaluation import evaluator, report, results, sessions
from seem_jax.evaluation.tasks import base
from seem_jax.models.seem import build, initialise
from seem_jax.types import Features, KeptTokens, Outputs, SlotOutputs, VisualTokens
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

    config = tiny_config().model  # named in the keys of class tables

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

    def encode_prompts(self, features, prompts, num_prompts, located=None):
        del located
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

    def keep_prompts(self, features, prompts, num_prompts):
        visual = self.encode_prompts(features, prompts, num_prompts)
        shape = (len(prompts.valid), num_prompts, -1)
        valid = prompts.valid.reshape(shape)
        positive = (valid & prompts.positive.reshape(shape)).sum(-1, keepdims=True)
        return KeptTokens(
            keys=(),
            values=(),
            valid=valid,
            pooled=visual.pooled,
            count=positive.astype(jnp.float32),
            prompt_valid=visual.prompt_valid,
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
    """(config, params, split) of three images of different sizes, one batch half empty."""
    split = FakeSplit([record(0, 64, 64, 8), record(1, 32, 64, 8), record(2, 32, 32, 4)])
    monkeypatch.setattr(base.catalog, "open_split", lambda root, name: split)
    monkeypatch.setattr(base, "Tokenizer", FakeTokenizer)
    config = tiny_config()
    config.evaluation.max_images = 0
    config.evaluation.max_clicks = 3
    config.evaluation.num_pictures = 3
    return config, {"logit_scale": jnp.float32(4.0), "text": {}, "text_projection": {}}, split


def only(config, *tasks: str, **options):
    """The configuration with these tasks and evaluation options."""
    values = {"tasks": tasks} | options
    return dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, **values))


def test_right_answers_are_counted_as_right(setting, tmp_path):
    config, params, _ = setting
    got = evaluator.run(Oracle(), params, config, workdir=tmp_path)
    # Bilinear masks round the corners of the blocks, so areas are not perfect, but decisions are.
    exact = [key for key in got if "/rq" in key or "/p@" in key]
    assert len(exact) == 3 + 3 * 5
    assert {key: got[key] for key in exact} == pytest.approx(dict.fromkeys(exact, 100.0))
    high = [key for key in got if key.endswith(("pq", "sq", "ciou", "miou", "iou@1", "iou@3"))]
    assert min(got[key] for key in high) > 97
    assert {got[f"interactive/click/noc@{t}"] for t in (50, 80, 85, 90)} == {1.0}
    assert got["panoptic/risk"] == 0.0
    for key in ("panoptic/pq_things", "referring/text+click/ciou", "referring/unseen/p@0.5"):
        assert key in got
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    tasks = ("panoptic", "referring", "referring_unseen", "interactive_click")
    assert names == {f"{task}.png" for task in tasks}
    sheet = cv2.imread(str(tmp_path / "pictures" / "interactive_click.png"))
    assert sheet.shape[1] == 10 + 4 * 266
    assert sheet.std() > 10


def test_the_other_tasks_of_a_model_that_knows_the_answer(setting, tmp_path):
    config, params, _ = setting
    config = only(config, "instance", "semantic", "referring", referring_ways=("click",))
    got = evaluator.run(Oracle(), params, config, workdir=tmp_path)
    assert got["instance/ap50"] == pytest.approx(100)
    assert got["semantic/miou"] == got["semantic/miou_true"] > 97
    assert got["referring/ciou"] > 97  # one way alone needs no name
    header, _ = results.read(tmp_path / "samples" / "semantic.jsonl")
    assert header["protocol"]["metric"].startswith("SEEM SemSegEvaluator")


@pytest.mark.parametrize(
    "kind", ["circle", *(pytest.param(k, marks=pytest.mark.slow) for k in ("polygon", "box"))]
)
def test_other_first_prompts_and_the_other_user(setting, tmp_path, kind):
    config, params, _ = setting
    config = only(config, "interactive", first_prompts=(kind,), ritm=kind == "circle")
    got = evaluator.run(Oracle(), params, config, workdir=tmp_path)
    for name in (kind, "ritm/click")[: 1 + (kind == "circle")]:
        assert got[f"interactive/{name}/noc@90"] == 1.0
        assert got[f"interactive/{name}/objects"] > 10


def test_an_answer_of_the_second_round_counts_two_clicks(setting, tmp_path):
    config, params, _ = setting
    got = evaluator.run(Oracle(late=True), params, only(config, "interactive"), workdir=tmp_path)
    assert set(got) == {key for key in got if key.startswith("interactive/click/")}
    assert got["interactive/click/noc@85"] == got["interactive/click/noc@90"] == 2.0
    assert got["interactive/click/iou@1"] < 1
    assert got["interactive/click/iou@2"] == got["interactive/click/iou@3"] > 97


def test_a_video_is_followed_from_its_first_frame(setting, tmp_path):
    config, params, split = setting
    split.records = [
        dataclasses.replace(record(5, 64, 64, 8), sequence=name, frame=frame)
        for name, frames in (("a", 5), ("b", 3))
        for frame in range(frames)
    ]
    got = evaluator.run(Oracle(), params, only(config, "video"), workdir=tmp_path)
    assert got["video/j"] > 97
    assert got["video/f"] == pytest.approx(100)
    assert got["video/objects"] == 2 * 7
    _, found = results.read(tmp_path / "samples" / "video.jsonl")
    assert [np.shape(result["region"]) for result in found] == [(7, 3), (7, 1)]
    assert "video/click/j&f" in got


def test_evaluating_again_compiles_nothing(setting, tmp_path):
    config, params, _ = setting
    runner = evaluator.Evaluator(Oracle(), config)
    first = runner.run(params, workdir=tmp_path)
    programs = [runner.tasks[-1].encode, runner.tasks[-1].advance]
    sizes = [program._cache_size() for program in programs]
    again = runner.run(params, workdir=tmp_path)
    assert again == first
    assert sizes == [program._cache_size() for program in programs]


def test_a_killed_evaluation_goes_on_and_another_model_begins_anew(setting, tmp_path, monkeypatch):
    config, params, _ = setting
    config = only(config, "panoptic")
    want = evaluator.run(Oracle(), params, config, workdir=tmp_path / "whole")
    whole = results.read(tmp_path / "whole" / "samples" / "panoptic.jsonl")

    def killed(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(results.Store, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluator.run(Oracle(), params, config, workdir=tmp_path / "cut")
    part = tmp_path / "cut" / "samples" / "panoptic.part0.jsonl"
    lines = part.read_text().splitlines(keepends=True)
    part.write_text("".join(lines[:3]) + lines[3][:20])  # two whole results and a cut one
    answered = []
    seen = base.Context.batches
    monkeypatch.setattr(
        base.Context,
        "batches",
        lambda self, split, units, sizing: (
            answered.append(list(units)) or seen(self, split, units, sizing)
        ),
    )
    got = evaluator.run(Oracle(), params, config, workdir=tmp_path / "cut")
    assert answered[0] == [[2]]  # the first batch of two was kept
    assert got == want
    assert results.read(tmp_path / "cut" / "samples" / "panoptic.jsonl") == whole
    assert not part.exists()
    part.write_text("".join(lines))
    other = {"logit_scale": jnp.float32(4.5), "text": {}, "text_projection": {}}
    evaluator.run(Oracle(), other, config, workdir=tmp_path / "cut")
    assert answered[2] == [[0, 1], [2]]


@pytest.mark.parametrize("missing", ["truth", "things"])
def test_a_set_without_truth_or_without_things_has_numbers(setting, tmp_path, missing):
    config, params, split = setting
    if missing == "truth":
        bare = {"segment_id": [], "segment_category": [], "segment_crowd": []}
        empty = cv2.imencode(".png", np.zeros((32, 64), np.uint8))[1].tobytes()
        split.records = [dataclasses.replace(split.records[1], segment_map=empty, **bare)]
    else:
        split.num_things = 0
    tasks = ("panoptic", "instance", "semantic", "interactive")
    got = evaluator.run(Oracle(), params, only(config, *tasks), workdir=tmp_path)
    assert math.isnan(got["instance/ap"])
    assert math.isnan(got["interactive/click/noc@90"])
    assert got["interactive/click/objects"] == 0
    assert math.isnan(got["semantic/miou"]) == (missing == "truth")
    if missing == "things":
        assert math.isnan(got["panoptic/pq_things"])
        assert got["panoptic/pq"] == got["panoptic/pq_stuff"] > 0


def test_a_set_without_stuff_and_answers_without_a_segment_have_numbers(setting, tmp_path):
    config, params, split = setting
    config = only(config, "panoptic", calibrate=True)
    split.num_things = 4
    got = evaluator.run(Oracle(), params, config, workdir=tmp_path / "things")
    assert math.isnan(got["panoptic/pq_stuff"])
    assert got["panoptic/pq"] == got["panoptic/pq_things"] > 0
    assert math.isfinite(got["panoptic/temperature"])
    config.evaluation.object_threshold = 1.0  # nothing is surer than that
    got = evaluator.run(Oracle(), params, config, workdir=tmp_path / "nothing")
    assert got["panoptic/pq"] == got["panoptic/rq"] == 0
    undefined = ("ece", "risk", "temperature", "ece_before", "ece_after", "risk_after")
    assert all(math.isnan(got[f"panoptic/{key}"]) for key in undefined)
    report.write(tmp_path / "nothing", config, got)  # NaN everywhere is no reason to fail
    assert "&ndash;" in (tmp_path / "nothing" / "report.html").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segment_map": b"nothing"}, "its segment map .*is not an image"),
        ({"segment_map": b""}, "it has no segment map"),
        (
            {"segment_map": cv2.imencode(".png", np.ones((8, 9), np.uint8))[1].tobytes()},
            r"\(8, 9\)",
        ),
    ],
)
def test_a_damaged_segment_map_is_named(setting, tmp_path, change, message):
    """By data set, number and file, in every task that reads it."""
    config, params, split = setting
    split.records[1] = dataclasses.replace(split.records[1], **change)
    context = base.Context(Oracle(), only(config, "panoptic", batch_size=1))
    for task in (
        evaluator.Panoptic(context, "fake:val"),
        evaluator.Semantic(context, "fake:val"),
        evaluator.Instances(context, "fake:val"),
        evaluator.Interactive(context, "fake:val"),
        evaluator.Video(context, "fake:val"),
    ):
        with pytest.raises(ValueError, match=rf"shapes_fake:val, record 1 \(1\.png\): .*{message}"):
            list(task.answers(params, [[0] if task.count() == 1 else [1]]))


def test_a_vocabulary_gives_names_and_must_be_complete(setting, tmp_path):
    config, params, _ = setting
    path = tmp_path / "names.json"
    path.write_text(json.dumps({"c0": "c0", "c1": ["c1"], "c2": "c2", "c3-stuff": "c3"}))
    config = only(config, "panoptic", vocabulary=str(path))
    got = evaluator.run(Oracle(), params, config, workdir=tmp_path)
    assert got["panoptic/rq"] == pytest.approx(100)
    path.write_text(json.dumps({"c0": "c0"}))
    with pytest.raises(ValueError, match=r"lacks the class 'c1'"):
        evaluator.run(Oracle(), params, config, workdir=tmp_path)


def test_unknown_tasks_are_named(setting):
    config, _, _ = setting
    with pytest.raises(ValueError, match=r"tasks = \('panoptik',\): expected names of"):
        evaluator.Evaluator(Oracle(), only(config, "panoptik"))


def test_pictures_are_the_best_the_median_and_the_worst():
    stored = [{"sample": k, "score": float(k)} for k in range(10)] + [{"sample": 99, "score": None}]
    assert evaluator.ranked(stored, 3) == {9: "best", 5: "median", 0: "worst"}
    assert evaluator.ranked(stored[:2], 6) == {1: "best", 0: "worst"}
    assert evaluator.ranked([], 3) == {}


def untrained(config):
    """A real model with random parameters, of such sizes that signals neither fade nor grow."""
    model = build(config.model)
    rng = np.random.default_rng(0)
    shapes = nn.unbox(jax.eval_shape(lambda key: initialise(model, key), jax.random.key(0)))

    def draw(path, leaf):
        if leaf.ndim > 1:
            values = rng.normal(0, leaf.shape[-1] ** -0.5, leaf.shape)
        else:
            values = 0.1 * rng.normal(size=leaf.shape) + ("scale" in jax.tree_util.keystr(path))
        return np.asarray(values, leaf.dtype)

    return model, jax.tree_util.tree_map_with_path(draw, shapes)


def test_a_session_depends_on_no_batch_mate():
    """With a real, untrained model: the same clicks and answers in other company."""
    model, params = untrained(tiny_config())
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (3, 64, 64, 3)).astype(np.uint8)
    maps = np.kron(rng.integers(0, 4, (3, 4, 4)), np.ones((16, 16), np.int64)).astype(np.int32)
    sizes = np.full((2, 2), 64, np.int32)
    plan = postprocess.plan_resize(sizes, [(64, 64)] * 2, (16, 16), (64, 64), antialias=False)
    user = sessions.SeemUser()

    @jax.jit
    def session(params, images, maps, wanted):
        features = model.apply({"params": params}, images, method="encode_image")
        chosen = (maps[:, None] == wanted[..., None, None]) & (wanted > 0)[..., None, None]
        truth = chosen.astype(np.int8)
        rows = sessions.Rows(chosen, truth, wanted > 0, sizes, sizes, plan, None)
        begin = functools.partial(sessions.begin, model, user=user, max_clicks=3)
        state = sessions.idle(jax.eval_shape(begin, params, rows, features), 3)
        return sessions.advance(
            model,
            params,
            jnp.float32(0),
            jnp.ones(2, bool),
            rows,
            features,
            state,
            user=user,
            max_clicks=3,
        )

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
