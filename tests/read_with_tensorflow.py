"""Reads a converted data set with tf.data and with TFDS, and prints what it finds as JSON.

    python -m venv tf && tf/bin/pip install tensorflow-cpu "tensorflow-datasets>=4.9.10,<4.10"
    tf/bin/python tests/read_with_tensorflow.py data/coco/records/coco_panoptic/1.0.0 val

Needs nothing of this project. tests/test_tensorflow_reads.py compares it with what we read.
"""

import hashlib
import json
import sys
from pathlib import Path


def with_tf_data(directory: Path, split: str) -> list[dict]:
    """The records by the plain means of tf.data."""
    import tensorflow as tf

    scalars = {"image_id": tf.int64, "file_name": tf.string, "height": tf.int64, "width": tf.int64}
    features = {name: tf.io.FixedLenFeature([], kind) for name, kind in scalars.items()}
    features |= {name: tf.io.FixedLenFeature([], tf.string) for name in ("image", "segment_map")}
    features |= {
        name: tf.io.RaggedFeature(kind)
        for name, kind in {
            "segment_id": tf.int64,
            "phrase_text": tf.string,
            "object_rle": tf.string,
        }.items()
    }
    shards = sorted(map(str, directory.glob(f"*-{split}.tfrecord-*-of-?????")))
    found = []
    for payload in tf.data.TFRecordDataset(shards):
        row = tf.io.parse_single_example(payload, features)
        found.append(
            summary(row, tf.io.decode_image(row["image"]).numpy(), row["segment_map"].numpy())
        )
    return found


def with_tfds(directory: Path, split: str) -> list[dict]:
    """The records as TFDS decodes them by features.json."""
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(directory))
    rows = builder.as_dataset(split=split, shuffle_files=False)
    return [summary(row, row["image"].numpy(), row["segment_map"].numpy()) for row in rows]


def summary(row, pixels, segment_map: bytes) -> dict:
    return {
        "image_id": int(row["image_id"]),
        "file_name": row["file_name"].numpy().decode(),
        "size": [int(row["height"]), int(row["width"])],
        "shape": list(pixels.shape),
        "segment_map": hashlib.sha256(segment_map).hexdigest(),
        "segment_id": row["segment_id"].numpy().tolist(),
        "phrase_text": [text.decode() for text in row["phrase_text"].numpy()],
        "object_rle": [code.decode() for code in row["object_rle"].numpy()],
    }


if __name__ == "__main__":
    place, name = Path(sys.argv[1]), sys.argv[2]
    print(json.dumps({"tf.data": with_tf_data(place, name), "tfds": with_tfds(place, name)}))
