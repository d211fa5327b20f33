"""A model of two arrays in place of SEEM, for the tests that start runs some dozens of times.

Starting SEEM means tracing it for many seconds, in each process. What breaks when a process is killed,
hangs or is lost, and what has to go on, does not know the model: data, collectives, checkpoints, watchdog
and ledger are the real ones. The step draws random numbers, sums gradients over all devices and keeps
moments, on parameters that are split over fsdp.
"""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from seem_jax import sharding, train
from seem_jax.training import compiling
from seem_jax.training import state as states

SHAPES = {"in": (3, 64), "out": (64, 8)}


def abstract(model, config, mesh):
    """The state as shapes; arrays are split over fsdp along their longer axis."""
    spread = {"in": PartitionSpec(None, "fsdp"), "out": PartitionSpec("fsdp")}
    params = {
        name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spread[name]))
        for name, shape in SHAPES.items()
    }
    number = jax.ShapeDtypeStruct((), jnp.int32, sharding=sharding.replicated(mesh))
    return states.TrainState(step=number, trainable=params, frozen={}, opt_state={"mu": params})


def creation(model, config, like):
    def draw(key):
        w = {name: jax.random.normal(key, shape) / 8 for name, shape in SHAPES.items()}
        zeros = jax.tree.map(jnp.zeros_like, w)
        return states.TrainState(step=jnp.int32(0), trainable=w, frozen={}, opt_state={"mu": zeros})

    return jax.jit(draw, out_shardings=jax.tree.map(lambda x: x.sharding, like))


def make_train_step(model, config, like, *, decoder=True):
    def step(state, batch, names):
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        colour = batch.image.astype(jnp.float32).mean((1, 2)) / 255  # [B, 3]
        seen = colour + 0.1 * jax.random.normal(key, colour.shape)

        def loss(w):
            told = jnp.tanh(seen @ w["in"]) @ w["out"]
            wanted = jnp.sin(batch.sample_id.astype(jnp.float32))[:, None]
            return ((told - wanted) ** 2).mean()

        value, grads = jax.value_and_grad(loss)(state.trainable)
        mu = jax.tree.map(lambda m, g: 0.9 * m + g, state.opt_state["mu"], grads)
        after = states.TrainState(
            step=state.step + 1,
            trainable=jax.tree.map(lambda w, m: w - 0.01 * m, state.trainable, mu),
            frozen={},
            opt_state={"mu": mu},
        )
        return after, {"loss": value, "finite": jnp.isfinite(value).astype(jnp.float32)}

    shardings = jax.tree.map(lambda x: x.sharding, like)
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, like.step.sharding))


def install():
    """From here on, train.train trains this model, whatever the configuration says."""
    for module, name, ours in (
        (states, "creation", creation),
        (states, "abstract", abstract),
        (compiling, "make_train_step", make_train_step),
        (compiling, "vocabulary", lambda *given: None),
        (train, "vocabulary", lambda *given: None),
    ):
        assert hasattr(module, name), f"{module.__name__} has no {name} to replace"
        setattr(module, name, ours)
