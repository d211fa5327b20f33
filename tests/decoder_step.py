"""python -m tests.decoder_step OUT DATA,FSDP,TENSOR PROCESS TOTAL PORT DEVICES

One training step of configs/focalt.py with its whole decoder, which learns, on small images on a mesh. The
encoders, which are frozen, are small. Process 0 writes the metrics and all updated parameters to OUT (.npz).
"""

import os
import sys

os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={sys.argv[6]}"
import tests.conftest  # noqa: F401, I001 - sets the environment before JAX is imported

import jax
import numpy as np

from seem_jax.config_files import load_config
from seem_jax import sharding
from seem_jax.config import MeshConfig
from seem_jax.models.seem import build
from seem_jax.training import state as states
from seem_jax.training.step import make_train_step, vocabulary
from tests.fakes import class_token_ids, fake_batch

QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
BATCH = 8


def main(out, sizes, process, total, port):
    if total > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", total, process)
    config = load_config("configs/focalt.py")
    config.data.image_size, config.data.batch_size, config.max_rounds = 64, BATCH, 1
    config.data.max_objects, config.data.max_prompts, config.data.max_points = 6, 3, 24
    config.data.max_phrases, config.data.max_phrase_tokens = 3, 10
    config.loss.num_points = 256
    config.model.backbone.width, config.model.backbone.depths = 32, (1, 1, 1, 1)
    config.model.pixel_decoder.num_layers = 1
    config.model.text.num_layers, config.model.text.width, config.model.text.vocab_size = 1, 64, 64
    config.mesh = MeshConfig(*sizes)
    mesh = sharding.make_mesh(config.mesh)
    model = build(config.model)
    state = states.create(model, config, mesh, jax.random.key(0))
    names = vocabulary(model, states.merge(state), config, *class_token_ids(config))
    part = np.array_split(np.arange(BATCH), total)[process]
    batch = jax.tree.map(lambda x: x[part], fake_batch(config, BATCH))
    batch = sharding.put_batch(batch, mesh)
    with sharding.use(mesh):
        step = make_train_step(model, config, state).lower(state, batch, names).compile(QUICK)
        state, metrics = step(state, batch, names)
        whole = jax.jit(lambda x: x, out_shardings=sharding.replicated(mesh))(state.trainable)
    leaves = jax.tree_util.tree_leaves_with_path(whole)
    found = {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}
    found |= {f"metrics {name}": value for name, value in metrics.items()}
    if process == 0:
        np.savez(out, **{name: np.asarray(x.addressable_data(0)) for name, x in found.items()})


if __name__ == "__main__":
    main(sys.argv[1], [int(n) for n in sys.argv[2].split(",")], *map(int, sys.argv[3:6]))
