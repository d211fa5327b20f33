"""The flags that several entry points share: --config=FILE.py, --config.FIELD=VALUE, and --distributed.

Defined once, since several entry points may be imported into one process.
"""

import dataclasses
import difflib
import re
import sys
from collections.abc import Callable

from absl import app, flags
from ml_collections import config_flags

from seem_jax import config as configuration

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


def run_program(main: Callable[[list[str]], int | None]) -> None:
    """absl's app.run, where a misspelt --config.FIELD ends in one line that says what there is."""
    app.run(main, flags_parser=_parse)


def _parse(arguments: list[str]) -> list[str]:
    try:
        return app.parse_flags_with_usage(arguments)
    except KeyError as error:
        place = r"Field (\w+) not found on dataclass <class 'seem_jax\.config\.(\w+)'>"
        found = re.fullmatch(place, str(error.args[0]))
        if found is None:
            raise
        name, part = found.groups()
        fields = [field.name for field in dataclasses.fields(getattr(configuration, part))]
        near = difflib.get_close_matches(name, fields, 1)
        hint = f" Is {near[0]!r} meant?" if near else ""
        sys.exit(f"--config: {part} has no field {name!r}; expected one of {fields}.{hint}")
