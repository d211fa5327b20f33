"""The flag --config=FILE.py, and --config.FIELD=VALUE, of every entry point.

Defined once, since several entry points may be imported into one process.
"""

from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A file of configs/; its fields are flags too.", lock_config=True
)
