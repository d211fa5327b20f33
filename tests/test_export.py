"""An exported model gives the predictor's numbers, without any code of this package."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest
from jax import export
from PIL import Image

from seem_jax.export import __main__ as command
from seem_jax.export import export_model, loader
from seem_jax.export.programs import PLATFORMS, features_dict, rows_dict
from seem_jax.predictor import Prompts
from tests.predictor_support import CLASSES, picture, tiny_predictor

STRANGER = """
import sys
import numpy as np
from load import load

class Strict:
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("seem_jax", "flax", "optax", "cv2", "PIL", "safetensors"):
            raise AssertionError(f"{name} is imported")

sys.meta_path.insert(0, Strict())
model = load(".")
given = dict(np.load(sys.argv[1]))

def part(name):
    return {key[len(name) + 1 :]: value for key, value in given.items() if key.startswith(name + "/")}

features = model["encode"](given["images"])
phrase = part("phrase")
reference = part("reference")
reference["levels"] = tuple(reference.pop(f"level_{n}") for n in range(3))
rows = part("row") | {"phrase": phrase, "reference": reference}
out = {f"answer/{k}": v for k, v in model["answer_text_reference"](features, rows).items()}
few = {key: value[1:] for key, value in part("row").items()}
one = {k: tuple(x[1:] for x in v) if type(v) is tuple else v[1:] for k, v in features.items()}
out["tokens"], out["sentence"] = model["sentence"](given["ids"], given["valid"])
if sys.argv[3] == "all":
    out |= {f"one/{k}": v for k, v in model["answer"](one, few).items()}
    out |= {f"objects/{k}": v for k, v in model["objects"](features).items()}
    out["table"] = model["classes"](given["class_ids"], given["class_valid"])
    drawn = {name: given[f"row/{name}"] for name in ("points", "positive", "valid")}
    out["pooled"] = model["read"](features, drawn)["pooled"]
np.savez(sys.argv[2], **out)
"""


@pytest.fixture(scope="module")
def predictor():
    return tiny_predictor()


@pytest.fixture(scope="module")
def folder(predictor, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("export") / "deep" / "model"
    tokenizer = path.parents[1] / "t.model"
    tokenizer.write_bytes(b"tokenizer")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command.Predictor, "from_checkpoint", lambda *_, **__: predictor)
        call = ["--checkpoint=run", f"--output={path}", f"--tokenizer={tokenizer}"]
        assert command.main(call) == 0
    assert [each.name for each in path.parent.iterdir()] == ["model"]
    return path


def test_the_loader_is_thirty_lines_of_jax_and_numpy(folder):
    text = (folder / "load.py").read_text()
    assert text == Path(loader.__file__).read_text()
    body = [line for line in text.split('"""', 2)[2].splitlines() if line.strip()]
    assert len(body) <= 30
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module] if isinstance(node, ast.ImportFrom) else [n.name for n in node.names]
        )
    }
    assert imported - set(sys.stdlib_module_names) == {"jax", "numpy"}


def test_every_program_takes_any_batch_on_three_kinds_of_device(folder):
    files = sorted(folder.glob("*.stablehlo"))
    assert len(files) == 9
    for file in files:
        made = export.deserialize(bytearray(file.read_bytes()))
        assert made.platforms == PLATFORMS
        arguments, _ = jax.tree.unflatten(made.in_tree, made.in_avals)
        leaves = jax.tree.leaves(arguments[1:])
        assert all("b" in map(str, leaf.shape) for leaf in leaves), file.stem


@pytest.mark.parametrize("programs", ["some", pytest.param("all", marks=pytest.mark.slow)])
def test_a_stranger_gets_the_predictors_numbers(predictor, folder, tmp_path, programs):
    images = [picture(seed=1), picture(50, 64, seed=2)]
    encoded = [predictor.encode(image) for image in images]
    shown = predictor.reference([picture(seed=3)], [{"box": [5, 5, 60, 50]}])
    memory = predictor.answer([(encoded[1], Prompts(points=[[9, 9]]))])[0].memory
    asked = [
        Prompts(points=[[20, 30], [60, 50]], point_labels=[1, 0], text="red disc", reference=shown),
        Prompts(points=[[30, 20]], text="a bar", reference=shown, memory=memory),
    ]
    decoding = predictor.decoding
    rows = [
        decoding.row(image, each, decoding.draw(each, image.placement), each.text)
        for image, each in zip(encoded, asked, strict=True)
    ]
    row = rows_dict(jax.tree.map(lambda *parts: np.stack(parts), *rows))
    phrase, reference = row.pop("phrase"), row.pop("reference")
    levels = {f"level_{n}": level for n, level in enumerate(reference.pop("levels"))}
    ids, valid = predictor.texts.tokens([each.text for each in asked], "text")
    names = [t.format("disc") for t in predictor.texts.templates]
    class_ids, class_valid = predictor.texts.tokens(names, "classes")
    squares = [predictor.square(image) for image in images]
    given = {"images": np.stack(squares), "ids": ids, "valid": valid}
    given |= {"class_ids": class_ids[None], "class_valid": class_valid[None]}
    for name, part in (("row", row), ("phrase", phrase), ("reference", reference | levels)):
        given |= {f"{name}/{key}": value for key, value in part.items()}
    np.savez(tmp_path / "given.npz", **given)
    (folder / "stranger.py").write_text(STRANGER)
    run = subprocess.run(
        [sys.executable, "stranger.py", tmp_path / "given.npz", tmp_path / "out.npz", programs],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    out = np.load(tmp_path / "out.npz")
    close = {"rtol": 1e-4, "atol": 1e-4}
    replies = decoding.ask(list(zip(encoded, asked, strict=True)))
    for index, reply in enumerate(replies):
        want = reply.answers[0]
        np.testing.assert_array_equal(out["answer/valid"][index], want.valid)
        for field in ("logits", "score", "quality", "embedding"):
            got = out[f"answer/{field}"][index][want.valid]
            np.testing.assert_allclose(got, getattr(want, field)[want.valid], **close)
    for index, text in enumerate(each.text for each in asked):
        want = predictor.texts.phrase(text)
        np.testing.assert_allclose(out["sentence"][index], want.sentence, **close)
        np.testing.assert_allclose(out["tokens"][index], want.tokens, **close)
    if programs == "some":
        return
    plain = Prompts(points=[[30, 20]], memory=memory)
    (reply,) = decoding.ask([(encoded[1], plain)])
    np.testing.assert_allclose(out["one/logits"][0, 0], reply.answers[0].logits[0], **close)
    objects = predictor.naming.objects(encoded[1])
    for field in ("logits", "names", "embedding"):
        np.testing.assert_allclose(out[f"objects/{field}"][1], getattr(objects, field), **close)
    np.testing.assert_allclose(out["table"], predictor.texts.table(("disc",))[:1], **close)
    shown = decoding.show(encoded[1], Prompts(points=[[30, 20]]))
    np.testing.assert_allclose(out["pooled"][1], shown.pooled, **close)


def test_the_folder_says_what_is_needed_to_call_it(predictor, folder):
    about = json.loads((folder / "about.json").read_text())
    assert about["image_size"] == predictor.side == 64
    assert about["model"] == predictor.fingerprint()
    assert about["classes"] == list(CLASSES) and about["num_things"] == 2
    assert (folder / "tokenizer.model").read_bytes() == b"tokenizer"
    assert json.loads((folder / "config.json").read_text())["name"] == "tiny"
    text = (folder / "README.md").read_text()
    for file in folder.glob("*.stablehlo"):
        assert f"| {file.stem} |" in text
    for name in about:
        assert name in text or name in ("jax", "model", "num_things", "classes", "answers")
    assert set(features_dict(predictor.encode(picture()).features)) >= {"mask", "keys", "values"}


@pytest.mark.slow
def test_the_example_beside_the_programs_cuts_out_what_the_predictor_does(predictor, folder):
    image = picture(80, 120, seed=1)
    Image.fromarray(image).save(folder / "photo.jpg", quality=100, subsampling=0)
    _, example = (folder / "README.md").read_text().split("to its mask (with Pillow):\n")
    (folder / "example.py").write_text(textwrap.dedent(example))
    run = subprocess.run(
        [sys.executable, "example.py"], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr[-3000:]
    got = np.asarray(Image.open(folder / "mask.png"))
    predictor.set_image(np.asarray(Image.open(folder / "photo.jpg")))
    want = predictor.predict(points=[[60, 40]]).mask
    assert got.shape == want.shape
    # Random weights give ragged masks, and Pillow resizes a little differently.
    assert (got == want).mean() > 0.95


def test_the_tokenizer_beside_the_checkpoint_is_exported(predictor, tmp_path, monkeypatch):
    (tmp_path / "tokenizer.model").write_bytes(b"words")
    exported = []

    def export_model(predictor, output, *, tokenizer):
        exported.append(tokenizer)
        return tmp_path

    monkeypatch.setattr(command.Predictor, "from_checkpoint", lambda *_, **__: predictor)
    monkeypatch.setattr(command, "export_model", export_model)
    assert command.main([f"--checkpoint={tmp_path}", f"--output={tmp_path / 'out'}"]) == 0
    assert exported == [tmp_path / "tokenizer.model"]


def test_an_existing_folder_and_bad_checkpoints_are_refused(predictor, folder, tmp_path, capsys):
    with pytest.raises(ValueError, match=r"output = .* exists"):
        export_model(predictor, folder)
    with pytest.raises(ValueError, match="tokenizer = "):
        export_model(predictor, tmp_path / "new", tokenizer=tmp_path / "missing.model")
    assert list(tmp_path.iterdir()) == []
    out = tmp_path / "out"
    assert command.main([f"--checkpoint={tmp_path / 'nowhere'}", f"--output={out}"]) == 1
    assert capsys.readouterr().err.startswith("error: no checkpoint")
    assert not out.exists()
