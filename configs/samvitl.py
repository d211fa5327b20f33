"""SEEM v1 with the ViT-L of SAM: configs/seem/samvitl_unicl_lang_v1.yaml. Wider, deeper than B."""

from configs import samvitb
from seem_jax.config import Config


def get_config() -> Config:
    config = samvitb.get_config()
    config.name = "samvitl"
    config.workdir = "runs/samvitl"
    config.model.backbone.width = 1024
    config.model.backbone.depths = (24,)
    config.model.backbone.global_blocks = (5, 11, 17, 23)
    return config
