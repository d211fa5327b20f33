"""The programs of the training steps, compiled from shapes while the state is still being made.

A run has up to two: the first config.encoder_steps steps have no decoder, and their program compiles in half
the time. The other one compiles while they run.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import threading
from pathlib import Path
from types import TracebackType

import jax
from jax.stages import Compiled

from seem_jax import processes, sharding
from seem_jax.config import Config
from seem_jax.models.seem import SEEM
from seem_jax.training import kept_program
from seem_jax.training import state as states
from seem_jax.training.ledger import FROM_CACHE, EventCounter
from seem_jax.training.step import make_train_step, vocabulary
from seem_jax.types import Array, Batch

THREAD = "compilation"


@dataclasses.dataclass(frozen=True)
class Found:
    program: Compiled
    to_keep: Path | None = None  # where a next start shall find it


@dataclasses.dataclass
class Compilation:
    """Compiles in a thread of its own, one program after the other.

    A context manager. Leaving it does not wait: XLA cannot be interrupted. `unfinished` says whether it is
    still at it; a process that then wants to end must do so by `os._exit`.
    """

    model: SEEM
    config: Config
    state: states.TrainState  # ShapeDtypeStructs with shardings
    batch: Batch  # ShapeDtypeStructs of a global batch
    class_ids: Array  # class names as for `vocabulary`
    class_valid: Array

    def __post_init__(self):
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix=THREAD)
        self._found: dict[bool, concurrent.futures.Future[Found]] = {}  # by: has the decoder

    def __enter__(self) -> Compilation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def begin(self, step: int) -> None:
        """Begins with the program of this step; then comes that of later steps, if it is another one."""
        for number in (step, self.config.num_steps):
            self._begin(self._has_decoder(number))

    def ready(self, step: int) -> bool:
        """Whether `program` would not wait. Begins what it would begin."""
        self.begin(step)
        needed = (
            self._found.values() if processes.several() else [self._found[self._has_decoder(step)]]
        )
        return all(found.done() for found in needed)

    def program(self, step: int) -> Compiled:
        """What runs this step, once it is there; begins now if it did not before.

        It is a program of fixed shapes, so it cannot compile a second time. Raises what went wrong with the
        other program, too, as soon as that is known. With several processes it waits for both, since XLA
        may let the processes talk to each other while it compiles.
        """
        self.begin(step)
        for found in self._found.values():
            if found.done() or processes.several():
                found.result()
        return self._found[self._has_decoder(step)].result().program

    def _has_decoder(self, step: int) -> bool:
        return step > self.config.encoder_steps

    def _begin(self, decoder: bool) -> None:
        if decoder not in self._found:
            found = self._thread.submit(self._compile, decoder)
            self._found[decoder] = found
            self._thread.submit(_keep, found)  # once that has ended: nobody waits for it

    def _compile(self, decoder: bool) -> Found:
        model, config, state = self.model, self.config, self.state
        mesh = state.step.sharding.mesh
        names = jax.eval_shape(
            lambda params: vocabulary(model, params, config, self.class_ids, self.class_valid),
            states.merge(state),
        )
        placed = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding.batch(mesh)),
            self.batch,
        )
        arguments = (state, placed, names)
        made_by = (type(model), make_train_step)
        path = kept_program.place(config, arguments, mesh, made_by, decoder=decoder)
        if path is not None and (kept := kept_program.load(path, arguments, mesh)) is not None:
            return Found(kept)
        with sharding.use(mesh):
            lowered = make_train_step(model, config, state, decoder=decoder).lower(*arguments)
            with EventCounter(FROM_CACHE) as found_in_cache:
                compiled = lowered.compile()
        return Found(compiled, None if found_in_cache.count else path)


def unfinished() -> bool:
    """Whether a thread of this process still compiles. One that does not ends when its `Compilation` is left."""
    threads = [each for each in threading.enumerate() if each.name.startswith(THREAD)]
    for thread in threads:
        thread.join(timeout=1.0)
    return any(thread.is_alive() for thread in threads)


def _keep(found: concurrent.futures.Future[Found]) -> None:
    if found.exception() is None and found.result().to_keep is not None:
        kept_program.keep(found.result().to_keep, found.result().program)
