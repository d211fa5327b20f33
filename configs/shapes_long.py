"""shapes.py for an hour instead of minutes, to see how far it goes."""

from configs import shapes
from seem_jax.config import Config


def get_config() -> Config:
    config = shapes.get_config()
    config.name = "shapes_long"
    config.workdir = "runs/shapes_long"
    config.num_steps = 14_000
    config.optimizer.warmup_steps = 560
    return config
