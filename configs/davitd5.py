"""SEEM v1 with DaViT-d5: configs/seem/davitd5_unicl_lang_v1.yaml. Wider than d3, larger patches."""

from configs import davitd3
from seem_jax.config import Config


def get_config() -> Config:
    config = davitd3.get_config()
    config.name = "davitd5"
    config.workdir = "runs/davitd5"
    config.model.backbone.width = 256
    config.model.backbone.patch_sizes = (7, 3, 3, 3)
    return config
