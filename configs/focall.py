"""SEEM v1 with FocalNet-L: configs/seem/focall_unicl_lang_v1.yaml. Differs in the backbone only."""

from configs import focalt
from seem_jax.config import BackboneConfig, Config


def get_config() -> Config:
    config = focalt.get_config()
    config.name = "focall"
    config.workdir = "runs/focall"
    config.model.backbone = BackboneConfig(
        width=192, depths=(2, 2, 18, 2), focal_levels=(4, 4, 4, 4), depthwise=False
    )
    return config
