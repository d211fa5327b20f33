"""What the processes of a run say to each other beside their JAX programs. Every wait has a limit.

JAX's coordination service carries it (process 0 holds it), so no device takes part, and it goes on
while a program hangs. All processes make the same calls in the same order; one process alone talks to
nobody.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from typing import Any

from jax._src import distributed  # JAX has no public door to its coordination service

PIECE = 1 << 20  # characters in one message; gRPC refuses those above 4 MB
SHOWN = 20  # differences in a message
_read_by_all: list[str] = []  # folders of keys of this process in the last `gather`
_calls = itertools.count()  # names of meetings are never used twice, as the service asks


def several() -> bool:
    """Whether this run has more than one process."""
    return (
        distributed.global_state.client is not None and distributed.global_state.num_processes > 1
    )


def number() -> int:
    """This process's number; known without starting a backend."""
    return distributed.global_state.process_id


def total() -> int:
    return distributed.global_state.num_processes


def client() -> Any:
    """JAX's client of the coordination service: a store of keys, and barriers."""
    return distributed.global_state.client


def meet(what: str, seconds: float) -> None:
    """Returns when all processes are here. TimeoutError naming those that did not come in time."""
    if not several():
        return
    key = f"seem/{next(_calls)}/{what}"
    client().key_value_set(f"{key}/{number()}", "here")
    try:
        client().wait_at_barrier(key, int(seconds * 1000))
    except Exception as error:
        raise _late(what, key, seconds) from error


def gather(what: str, text: str, seconds: float) -> list[str]:
    """The texts of all processes, by number. TimeoutError naming those that did not give theirs."""
    if not several():
        return [text]
    key = f"seem/{next(_calls)}/{what}"
    pieces = [text[i : i + PIECE] for i in range(0, len(text), PIECE)]
    for i, piece in enumerate(pieces):
        client().key_value_set(f"{key}/pieces/{number()}/{i}", piece)
    client().key_value_set(f"{key}/{number()}", str(len(pieces)))
    try:
        client().wait_at_barrier(key, int(seconds * 1000))
    except Exception as error:
        raise _late(what, key, seconds) from error
    # All came here, so all have read what was gathered before this: it may go.
    for old in _read_by_all:
        client().key_value_delete(old)
    _read_by_all[:] = [f"{key}/pieces/{number()}"]
    limit = int(seconds * 1000)
    return [
        "".join(
            client().blocking_key_value_get(f"{key}/pieces/{process}/{i}", limit)
            for i in range(int(client().blocking_key_value_get(f"{key}/{process}", limit)))
        )
        for process in range(total())
    ]


def from_first(what: str, text: str, seconds: float) -> str:
    """What process 0 says, on all; the text of the others does not count."""
    return gather(what, text if number() == 0 else "", seconds)[0]


def agree(what: str, facts: dict[str, object], seconds: float) -> None:
    """ValueError on all processes, with what differs, unless all have the same facts."""
    mine = json.dumps(facts, sort_keys=True)
    digests = gather(what, hashlib.sha256(mine.encode()).hexdigest(), seconds)
    if len(set(digests)) == 1:  # a pod of hundreds of hosts need not exchange everything
        return
    first, *others = (json.loads(text) for text in gather(what, mine, seconds))
    lines = [
        f"{name}: {first.get(name)!r} in process 0, {other.get(name)!r} in process {process}"
        for process, other in enumerate(others, 1)
        for name in sorted({*first, *other})
        if first.get(name) != other.get(name)
    ]
    shown = lines[:SHOWN] + ([f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else [])
    raise ValueError(
        f"the processes of this run differ in their {what}:\n  "
        + "\n  ".join(shown)
        + "\nStart the same command with the same code and data on every host."
    )


def _late(what: str, key: str, seconds: float) -> TimeoutError:
    """Who did not come, as far as the service still answers."""
    try:
        came = {
            int(name.rsplit("/", 1)[1])
            for name, _ in client().key_value_dir_get(key + "/")
            if "/pieces/" not in name
        }
        missing = sorted(set(range(total())) - came)
        who = f"process {', '.join(map(str, missing))} did not come" if missing else "all had come"
    except Exception as error:  # the process that holds the service is gone, or the service ended
        who = f"process 0, which holds the coordination service, does not answer ({error})"
    return TimeoutError(f"waited up to {seconds:g} s for all processes at {what!r}: {who}.")
