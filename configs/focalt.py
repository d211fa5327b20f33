"""SEEM v1 with FocalNet-T at its official size, fine-tuned on COCO from an X-Decoder checkpoint.

Values of configs/seem/focalt_unicl_lang_v1.yaml and of the official training command. The encoders are
frozen, so a run of this file needs converted official weights to start from.
"""

from configs import base
from seem_jax.config import Config


def get_config() -> Config:
    config = base.get_config()
    config.name = "focalt"
    config.workdir = "runs/focalt"

    config.model.decoder.rules = "composed"  # a click may help a phrase; "official" for parity
    config.data.root = "data/coco/records"
    # COCO panoptic with the masks of LVIS and the sentences of RefCOCOg, without the images of
    # RefCOCOg's validation split: what data_prep/lvis.py writes.
    config.data.train = ("coco_lvis:train",)
    config.data.num_planes = 3  # up to 16 masks that overlap others, phrases among them
    config.data.panoptic_eval = "coco_panoptic:val"
    config.data.referring_eval = "refcocog:val"
    config.data.referring_unseen_eval = ""
    config.data.interactive_eval = "coco_panoptic:val"
    config.data.tokenizer = "data/coco/records/tokenizer.model"
    config.data.max_objects = 60  # segments an image; further ones, smallest first, are counted
    config.data.max_phrase_tokens = 32
    config.data.phrase_prompt_probability = 0.25
    config.num_steps = 366_000  # 50 epochs of 117 k images at batch 16
    config.checkpoint_every = 2000
    config.useful_gflop_per_image = 1520.0  # with the exact rewrites, 2.5 rounds on average
    return config
