"""The model that a golden file names, with the weights that the recipe makes for it."""

from __future__ import annotations

import functools
import importlib.util
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from seem_jax.config import ModelConfig, as_released
from seem_jax.config_files import load_config
from seem_jax.convert import rules
from seem_jax.models.seem import build, initialise
from seem_jax.sharding import unbox
from seem_jax.types import Features
from tests.parity.report import Stored, entries, shape
from tests.parity.xdecoder import smooth_levels

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
NAME = re.compile(r"(seem|xdecoder)_([a-z0-9]+)_unicl_lang(?:_(v0|v1|demo))?")
QUERIES = rules.HEAD + "query_feat.weight"
NUM_CLASSES = 134  # rows of token ids that the goldens embed as their class table
PRECISION = "highest"  # of matrix products: no TF32 or bfloat16 passes


def load_recipe(folder: Path):
    """The module recipe.py of the parity material, which makes weights and inputs from a seed."""
    spec = importlib.util.spec_from_file_location("parity_recipe", folder / "recipe.py")
    if spec is None or not (folder / "recipe.py").is_file():
        raise ValueError(
            f"no recipe.py in {str(folder)!r}; it must lie beside the folder of the manifests."
        )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def model_config(name: str) -> ModelConfig:
    """The configuration of an official one, such as "seem_focalt_unicl_lang_v1"."""
    match = NAME.fullmatch(name)
    path = CONFIGS / f"{match[2]}.py" if match else None
    if path is None or not path.is_file():
        known = sorted(p.stem for p in CONFIGS.glob("*.py"))
        raise ValueError(
            f"no configuration for {name!r}; expected seem_<file in configs/>_unicl_lang_<v0, v1 or "
            f"demo> or xdecoder_<file in configs/>_unicl_lang, with a file of {known}."
        )
    config = load_config(path).model
    config.decoder = as_released(config.decoder, match[3] or "v1")
    return config


class Subject:
    """A model, its parameters, and what several files of the same configuration share."""

    def __init__(self, name: str, seed: int, manifests: Path):
        self.name, self.seed = name, seed
        self.is_xdecoder = name.startswith("xdecoder")
        self.recipe = load_recipe(manifests.resolve().parent)
        path = manifests / f"{name}.json"
        if not path.is_file():
            raise ValueError(f"no manifest {path.name!r} in {str(manifests)!r}.")
        self.config = model_config(name)
        manifest = self.recipe.load_manifest(path)
        queries = [shape for key, shape, _ in manifest if key == QUERIES]
        self.config.decoder.num_object_queries = queries[0][0]  # larger X-Decoders have 201
        self.model = build(self.config)
        shapes = unbox(jax.eval_shape(functools.partial(initialise, self.model), jax.random.key(0)))
        state = self.recipe.make_state_dict(manifest, seed)
        self.params = jax.tree.map(jnp.asarray, _converted(name, state, shapes))
        self._features: dict[tuple, tuple] = {}
        self.jitted: dict[tuple, object] = {}  # compiled functions, by what is static in them

    def run(self, function, *args):
        """function(params, *args), compiled, with full float32 products."""
        with jax.default_matmul_precision(PRECISION):
            return jax.jit(function)(self.params, *args)

    def images(self, stored: Stored) -> np.ndarray:
        """The normalised images, padded with zeros as the release does, [B, H, W, 3]."""
        height, width = stored["size"].tolist()
        batch = self.recipe.make_batch(self.seed, int(stored["batch"]), height, width)
        tall, wide = self.padded_size(stored)
        batch = np.pad(batch, [(0, 0), (0, 0), (0, tall - height), (0, wide - width)])
        return batch.transpose(0, 2, 3, 1)

    def padded_size(self, stored: Stored) -> tuple[int, int]:
        """(height, width) that the model sees: that of the stored maps, else the next multiple."""
        for name in entries(stored):
            if MAPS.fullmatch(name) and len(shape(stored, name)) == 4:
                return tuple(4 * n for n in shape(stored, name)[-2:])
        divisor = self.config.backbone.size_divisor
        return tuple(-(-n // divisor) * divisor for n in stored["size"].tolist())

    def maps(self, stored: Stored):
        """(backbone maps, encoded coarsest map, features) of the images of a file; kept."""
        key = (stored["size"].tobytes(), int(stored["batch"]), self.padded_size(stored))
        if key not in self._features:
            self._features.clear()  # one size at a time bounds the memory
            self._features[key] = self.run(self._encode, jnp.asarray(self.images(stored)))
        return self._features[key]

    def features(self, stored: Stored) -> Features:
        """What the decoder needs of the images of a file."""
        return self.maps(stored)[2]

    def _encode(self, params, images):
        features, seen = self.model.apply(
            {"params": params},
            images,
            method="encode_normalised",
            capture_intermediates=lambda module, _: module.name in ("backbone", "encoder"),
            mutable="intermediates",
        )
        seen = seen["intermediates"]
        if self.is_xdecoder:
            features = smooth_levels(features)
        encoded = seen["pixel_decoder"]["encoder"]["__call__"][0]
        encoded = encoded[0] if isinstance(encoded, tuple) else encoded  # coarsest of several maps
        return seen["backbone"]["__call__"][0], encoded, features

    def encode_text(self, ids, end) -> tuple[np.ndarray, np.ndarray]:
        """(token embeddings [N, J, V], sentence embeddings [N, V]) of ids [N, J], not normalised.

        The sentence is read at token `end` (int [N]), as the release reads it at the largest id.
        """
        valid = np.arange(ids.shape[1])[None] <= np.asarray(end)[:, None]
        run = self.jitted.setdefault(
            ("text",),
            jax.jit(lambda p, *text: self.model.apply({"params": p}, *text, method="encode_text")),
        )
        with jax.default_matmul_precision(PRECISION):
            text = run(self.params, jnp.asarray(ids, jnp.int32), jnp.asarray(valid))
        return tuple(np.asarray(x) for x in text)

    def sentences(self, ids: np.ndarray) -> np.ndarray:
        """Sentence embeddings [N, V]; what stands behind the last end token is cut off (causal)."""
        end = ids.argmax(-1)
        return self.encode_text(ids[:, : int(end.max()) + 1], end)[1]

    @functools.cached_property
    def table(self) -> jnp.ndarray:
        """The class table float32 [C, V] of every golden of this configuration and seed."""
        ids, _ = self.recipe.make_tokens(self.seed, "classes", NUM_CLASSES)
        return jnp.asarray(unit(self.sentences(ids)))


# Maps at stride 4 that tell the padded size.
MAPS = re.compile(
    r"(pixel_decoder/)?mask_features|(.*/)?(pred_[gs]?masks/\w+|prev_mask)|backbone/res2"
)


def unit(x: np.ndarray) -> np.ndarray:
    """Rows at length 1, as the release normalises."""
    return x / (np.linalg.norm(x, axis=-1, keepdims=True) + np.float32(1e-7))


def _converted(name: str, state: rules.State, shapes: dict) -> dict:
    """Our parameters. What SEEM adds to X-Decoder is zero: nothing that is stored for it uses that."""
    if not name.startswith("xdecoder"):
        return rules.convert_state(state, shapes)
    wanted = flatten_dict(shapes, sep="/")
    shared = {path: shape for path, shape in wanted.items() if path not in rules.SEEM_ONLY}
    kept = {key: array for key, array in state.items() if key not in rules.XDECODER_ONLY}
    params = rules.convert_state(kept, unflatten_dict(shared, sep="/"))
    added = {path: np.zeros(wanted[path].shape, np.float32) for path in rules.SEEM_ONLY}
    return unflatten_dict(flatten_dict(params, sep="/") | added, sep="/")
