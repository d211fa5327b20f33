"""The flags that several entry points share: --config=FILE.py, --config.FIELD=VALUE, and --distributed.

Defined once, since several entry points may be imported into one process.
"""

from absl import flags
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A file of configs/; its fields are flags too.", lock_config=True
)
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "One of several processes; find the others.")
COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes, with --coordinator.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "This process, with --coordinator.")


def join_processes() -> None:
    """Joins the other processes of this run, if the flags say that there are any.

    To be called before JAX is used in any other way. Raises ValueError for half of an address.
    """
    import jax  # here, since a command that refuses its input need not wait for it

    given = (COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    if any(value is not None for value in given):
        if None in given:
            raise ValueError(
                f"--coordinator={given[0]} --num_processes={given[1]} --process_id={given[2]}: "
                "expected all three, or --distributed alone."
            )
        jax.distributed.initialize(*given)
    elif DISTRIBUTED.value:
        jax.distributed.initialize()
