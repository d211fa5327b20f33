"""Loads an exported SEEM model. Needs jax, numpy and flatbuffers; nothing of the training code.

model = load("exported"); features = model["encode"](images); answers = model["answer"](features, rows)
README.md beside this file says what goes in and what comes out.
"""

import functools
import json
from pathlib import Path

import jax
import numpy as np
from jax import export

DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "bfloat16", "I32": "<i4", "BOOL": "?"}


def load(folder):
    """{name of a program: function of its arguments} of an exported folder."""
    data = np.memmap(Path(folder) / "weights.safetensors", np.uint8, "r")
    start = 8 + int(data[:8].view("<u8")[0])
    params = {}
    for name, row in json.loads(data[8:start].tobytes()).items():
        begin, end = row["data_offsets"]
        array = data[start + begin : start + end].view(np.dtype(DTYPES[row["dtype"]]))
        *path, last = name.split("/")
        node = functools.reduce(lambda inside, part: inside.setdefault(part, {}), path, params)
        node[last] = jax.numpy.asarray(array.reshape(row["shape"]))
    programs = sorted(Path(folder).glob("*.stablehlo"))
    loaded = {file.stem: export.deserialize(bytearray(file.read_bytes())) for file in programs}
    return {name: functools.partial(jax.jit(each.call), params) for name, each in loaded.items()}
