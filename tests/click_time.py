"""How long a click takes beside encoding the image: python -m tests.click_time

Focal-T at 1024 x 1024 with the weights that ../shared/parity makes, on whatever device JAX finds, through
`Predictor` as users call it: a click is checked, drawn, decoded, and its mask enlarged to the image of
1280 x 960 pixels. Prints medians and 95th percentiles as one flat dictionary, and the processor seconds of a click,
which other work on the machine does not change as much.
"""

from __future__ import annotations

import argparse
import collections
import json
import time

import jax
import numpy as np

from seem_jax.config_files import load_config
from seem_jax.predictor import Predictor, Prompts
from tests import parity_support
from tests.parity.subject import CONFIGS
from tests.predictor_support import WordTokenizer

SIZE = (960, 1280)  # of the picture, pixels


def main() -> None:
    """Encodes and clicks as often as asked, after one call of each that compiles."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clicks", type=int, default=40)
    parser.add_argument("--encodings", type=int, default=3)
    options = parser.parse_args()
    config = load_config(CONFIGS / "focalt.py")
    predictor = Predictor(parity_support.subject().params, config, WordTokenizer())
    rng = np.random.default_rng(0)
    picture = np.kron(rng.integers(0, 256, (30, 40, 3)), np.ones((32, 32, 1))).astype(np.uint8)
    times: dict[str, list[float]] = collections.defaultdict(list)

    def note(name: str, function) -> None:
        begin, busy = time.perf_counter(), time.process_time()
        function()
        times[name].append(time.perf_counter() - begin)
        times[f"{name}_cpu"].append(time.process_time() - busy)

    for _ in range(options.encodings + 1):
        note("encode", lambda: jax.block_until_ready(predictor.set_image(picture).features))
    session = predictor.session(picture)
    for number in range(options.clicks + 1):
        x, y = rng.integers(0, SIZE[::-1])
        session.add_point(int(x), int(y), positive=not session.actions or bool(number % 3))
        note("click", session.predict)
        if number % 8 == 7:
            session.reset()
    figures = {
        "device": jax.devices()[0].device_kind,
        "side": predictor.side,
        "click_gflop": round(click_flop(predictor, picture) / 1e9, 2),
    }
    for name in ("encode", "click", "encode_cpu", "click_cpu"):
        for share in (50, 95):
            figures[f"{name}_p{share}_seconds"] = round(np.percentile(times[name][1:], share), 3)
    print(json.dumps(figures, indent=1))


def click_flop(predictor: Predictor, picture: np.ndarray) -> float:
    """Operations of the program that answers a click, by the compiler's cost analysis."""
    image = predictor.encode(picture)
    asked = Prompts(points=[[5, 5]])
    drawn = predictor.decoding.draw(asked, image.placement)
    row = predictor.decoding.row(image, asked, drawn, None)
    rows = jax.tree.map(lambda leaf: np.asarray(leaf)[None], row)
    program = predictor.programs.answer.lower(predictor.params, (image.features,), rows)
    return program.compile().cost_analysis()["flops"]


if __name__ == "__main__":
    main()
