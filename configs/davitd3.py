"""SEEM v1 with DaViT-d3: configs/seem/davitd3_unicl_lang_v1.yaml. Differs in the backbone only."""

from configs import focalt
from seem_jax.config import BackboneConfig, Config


def get_config() -> Config:
    config = focalt.get_config()
    config.name = "davitd3"
    config.workdir = "runs/davitd3"
    config.model.backbone = BackboneConfig(name="davit", width=128, depths=(1, 1, 9, 1))
    return config
