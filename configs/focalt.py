"""SEEM v1 with FocalNet-T at its official size, fine-tuned on COCO from an X-Decoder checkpoint.

Values of configs/seem/focalt_unicl_lang_v1.yaml and of the official training command. The encoders are
frozen, so a run of this file needs converted official weights to start from.

    python -m data_prep.lvis --input=data/coco --output=data/coco/records --splits=train
    python -m data_prep.coco --input=data/coco --output=data/coco/records --splits=val
    python -m data_prep.refcoco --input=data/coco --output=data/coco/records --splits=val
    python -m data_prep.tokenizer --clip=FILE --output=data/coco/records/tokenizer.model
    python -m seem_jax.train --config=configs/focalt.py --config.start_from=runs/converted

Below data/coco lie train2017, val2017, panoptic_*2017, annotations, lvis and refcocog (or the merged
annotations/refcocog_umd_val.json). Without LVIS: data_prep.coco for train too, and
--config.data.train="('coco_panoptic:train',)".
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
    config.data.max_phrases = 16  # segments of up to 4 named classes; further ones are counted
    config.data.panoptic_eval = "coco_panoptic:val"
    config.data.referring_eval = "refcocog:val"
    config.data.referring_unseen_eval = ""
    config.data.interactive_eval = "coco_panoptic:val"
    config.data.video_eval = "davis:val"
    config.data.tokenizer = "data/coco/records/tokenizer.model"
    config.data.max_objects = 60  # segments an image; further ones, smallest first, are counted
    config.data.max_phrase_tokens = 32
    config.data.phrase_prompt_probability = 0.25
    # The official test sizes and sides (seem_jax/config.py says what the others are).
    evaluation = config.evaluation
    evaluation.edges = (800, 1333)
    evaluation.referring_edges = (512, 1024)
    evaluation.video_edges = (512, 2048)
    evaluation.grown_masks = True
    config.num_steps = 366_000  # 50 epochs of 117 k images at batch 16
    config.checkpoint_every = 2000
    config.useful_gflop_per_image = 1520.0  # with the exact rewrites, 2.5 rounds on average
    return config
