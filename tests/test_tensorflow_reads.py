"""Plain tf.data and tfds.builder_from_directory read what we write, in an environment of their own.

TensorFlow is no requirement; the test names a Python that has it, see tests/read_with_tensorflow.py:

    SEEM_TENSORFLOW_PYTHON=tf/bin/python python -m pytest tests/test_tensorflow_reads.py
"""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep import coco, custom, writer
from seem_jax.data.schema import Record
from tests.test_converters import SAMPLES, read_all
from tests.test_converters_custom import write_coco

ROOT = Path(__file__).resolve().parents[1]
PYTHON = os.environ.get(
    "SEEM_TENSORFLOW_PYTHON", sys.executable if importlib.util.find_spec("tensorflow") else ""
)


def summary(record: Record) -> dict:
    return {
        "image_id": record.image_id,
        "file_name": record.file_name,
        "size": [record.height, record.width],
        "shape": [record.height, record.width, 3],
        "segment_map": hashlib.sha256(record.segment_map).hexdigest(),
        "segment_id": record.segment_id,
        "phrase_text": record.phrase_text,
        "object_rle": [code.decode() for code in record.object_rle],
    }


@pytest.mark.skipif(not PYTHON, reason="SEEM_TENSORFLOW_PYTHON names no Python with TensorFlow")
@pytest.mark.parametrize("data", ["own", "samples"])
def test_tensorflow_reads_the_same_records(tmp_path, monkeypatch, data):
    monkeypatch.setattr(writer, "RECORDS_PER_SHARD", 1)
    if data == "own":
        write_coco(tmp_path / "mine")
        custom.convert(tmp_path / "mine", tmp_path / "out", "set")
        split = "train"
    elif SAMPLES.is_dir():
        refer = coco.Referring(SAMPLES / "refer_ours" / "refcocog")
        coco.convert(SAMPLES / "coco", tmp_path / "out", "set", ["val"], 1, [refer])
        split = "val"
    else:
        pytest.skip("the sample files are not beside the checkout (../shared/samples)")
    place = tmp_path / "out" / "set" / "1.0.0"
    done = subprocess.run(
        [PYTHON, str(ROOT / "tests" / "read_with_tensorflow.py"), str(place), split],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "XLA_FLAGS": ""},  # not those that the tests of JAX ask for
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    wanted = [summary(record) for record in read_all(tmp_path / "out", f"set:{split}")]
    assert len(wanted) == 2
    assert found["tf.data"] == wanted
    assert found["tfds"] == wanted
