"""SEEM v1 with the ViT-B of SAM and a deformable pixel decoder: samvitb_unicl_lang_v1.yaml.

Official images are at most 1024 pixels on a side and padded to 1024 x 1024.
"""

from configs import focalt
from seem_jax.config import BackboneConfig, Config, PixelDecoderConfig


def get_config() -> Config:
    config = focalt.get_config()
    config.name = "samvitb"
    config.workdir = "runs/samvitb"
    config.model.backbone = BackboneConfig(
        name="sam_vit",
        width=768,
        depths=(12,),
        drop_path=0.0,
        size_divisor=1024,
        head_width=64,
        window=14,
        global_blocks=(2, 5, 8, 11),
    )
    config.model.pixel_decoder = PixelDecoderConfig(name="deformable", mlp_width=1024)
    evaluation = config.evaluation
    evaluation.edges = evaluation.referring_edges = (1000, 1024)
    evaluation.video_edges = (512, 1024)
    return config
