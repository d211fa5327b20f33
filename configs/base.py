"""The defaults of seem_jax/config.py: what every other file here starts from."""

from seem_jax.config import Config


def get_config() -> Config:
    return Config()
