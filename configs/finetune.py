"""Fine-tunes Focal-T on your own images, converted by data_prep/custom.py.

    python -m data_prep.custom --input data/mine --output data/mine/records
    python -m seem_jax.train --config=configs/finetune.py --config.start_from=FOLDER

FOLDER is a run of another configuration of the same model, or converted official weights. They read
with the tokenizer beside them: --config.data.tokenizer=FOLDER/tokenizer.model where it is not the one
that configs/focalt.py names.
"""

from configs import focalt
from seem_jax.config import Config


def get_config() -> Config:
    """The recipe of configs/focalt.py on a data set of data_prep.custom, with frozen encoders."""
    config = focalt.get_config()
    config.name = "finetune"
    config.workdir = "runs/finetune"

    data = config.data
    data.root = "data/mine/records"
    data.train = ("custom:train",)
    data.panoptic_eval = "custom:val"
    data.interactive_eval = "custom:val"
    data.referring_eval = ""  # such sets have no sentences; class names are the phrases
    data.min_scale, data.max_scale = 0.5, 2.0  # objects stay large enough to be learned from few
    data.batch_size = 8

    config.num_steps = 5000
    config.optimizer.learning_rate = 1e-5  # a tenth: the weights are good already
    config.checkpoint_every = 500
    return config
