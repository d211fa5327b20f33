"""focalt.py with nothing of our own: the training mix and the attention rules of the release.

Sentences keep "left" and "right" in flipped images, targets that the cut left out stay as empty masks,
and no drawing comes with a phrase.
"""

from configs import focalt
from seem_jax.config import Config


def get_config() -> Config:
    config = focalt.get_config()
    config.name = "focalt_official"
    config.workdir = "runs/focalt_official"
    config.model.decoder.rules = "official"
    config.data.mirror_text = False
    config.data.keep_hidden = True
    config.data.phrase_prompt_probability = 0.0
    config.data.max_phrase_tokens = 77
    return config
