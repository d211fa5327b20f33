"""The training step as a program, compiled from shapes while the state is still being made."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import jax
from jax.sharding import Mesh
from jax.stages import Compiled

from seem_jax import sharding
from seem_jax.config import Config
from seem_jax.models.seem import SEEM
from seem_jax.training import kept_program
from seem_jax.training import state as states
from seem_jax.training.step import make_train_step, vocabulary
from seem_jax.types import Array, Batch


@dataclasses.dataclass(frozen=True)
class Found:
    program: Compiled
    seconds: float
    to_keep: Path | None = None  # where a next start shall find it


class Compilation:
    """Runs in a thread of its own. A context manager: leaving it waits for the end, but for errors, which are
    told at once; the process then ends when XLA has."""

    def __init__(
        self,
        model: SEEM,
        config: Config,
        mesh: Mesh,
        batch: Batch,
        class_ids: Array,
        class_valid: Array,
    ):
        """batch holds the ShapeDtypeStructs of a global batch; the class names are as for `vocabulary`."""
        self._arguments = model, config, mesh, batch, class_ids, class_valid
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="compilation")
        self._found: concurrent.futures.Future[Found] | None = None
        self._lowered = threading.Event()

    def __enter__(self) -> Compilation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.shutdown(wait=error is None)

    def begin(self) -> None:
        self._found = self._thread.submit(_compile, *self._arguments, self._lowered.set)
        self._found.add_done_callback(lambda _: self._lowered.set())
        self._thread.submit(_keep, self._found)  # once that has ended: nobody waits for it

    def wait_until_lowered(self) -> None:
        """Waits, if the step was begun, until XLA has it: tracing is Python, and two threads of Python take
        longer than one after the other."""
        if self._found is not None:
            self._lowered.wait()

    def result(self) -> tuple[Compiled, float]:
        """(the program, the seconds that it took), once it is there; begins now if it did not before.

        The program is one of fixed shapes, so it cannot compile a second time.
        """
        if self._found is None:
            self.begin()
        found = self._found.result()
        return found.program, found.seconds


def _compile(
    model: SEEM,
    config: Config,
    mesh: Mesh,
    batch: Batch,
    class_ids: Array,
    class_valid: Array,
    lowered: Callable[[], None],
) -> Found:
    began = time.perf_counter()
    state = states.abstract(model, config, mesh)
    names = jax.eval_shape(
        lambda params: vocabulary(model, params, config, class_ids, class_valid),
        states.merge(state),
    )
    placed = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding.batch(mesh)), batch
    )
    arguments = (state, placed, names)
    path = kept_program.place(config, arguments, mesh, (type(model), make_train_step))
    if path is not None and path.exists():
        lowered()
        if (kept := kept_program.load(path, arguments, mesh)) is not None:
            return Found(kept, time.perf_counter() - began)
    with sharding.use(mesh):
        program = make_train_step(model, config, mesh).lower(*arguments)
        lowered()
        compiled = program.compile()
    return Found(compiled, time.perf_counter() - began, path)


def _keep(found: concurrent.futures.Future[Found]) -> None:
    if found.exception() is None and found.result().to_keep is not None:
        kept_program.keep(found.result().to_keep, found.result().program)
