"""Ends a run that hangs: says which process stopped making progress, where, and with which stack.

JAX notices a process that died, but waits for ever for one that is stuck. Here each process counts its
steps forward (`Watchdog.beat`) and tells the others its count every few seconds. The process that is
behind when progress ends is the one that holds up the rest. Nothing here runs on a device or waits for
one; the main thread may hang in a collective.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from seem_jax import processes
from seem_jax.config import FaultsConfig

EXIT_STUCK = 76  # a process stopped making progress or was lost; the same command continues
EXIT_ERROR = 1
STACK_CHARACTERS = 6000  # of a stack in messages


@dataclasses.dataclass(frozen=True)
class Said:
    """What a process tells the others about itself."""

    process: int
    host: str
    pid: int
    tick: int  # counts what it said, so that silence can be told from standing still
    count: int  # of `beat`; the same place of the program has the same count on all processes
    doing: str
    age: float  # seconds since the last beat
    stack: str = ""  # of its main thread, once it looks stuck

    def __str__(self) -> str:
        return f"process {self.process} (pid {self.pid} on {self.host})"


class Watchdog:
    """Watches while it is entered. A context manager.

    `folder` receives process_K.txt, the stacks of all threads of a stuck process.
    """

    def __init__(self, limits: FaultsConfig, folder: str | Path):
        self.limits = limits
        self.interval = min(5.0, max(limits.lost_seconds, 0.4) / 8)
        if limits.stall_seconds:
            self.interval = min(self.interval, limits.stall_seconds / 8)
        self._folder = Path(folder)
        self._main = threading.get_ident()
        self._lock = threading.Lock()
        self._beat = (0, "starting", limits.phase_seconds, 0.0)  # count, doing, limit, when
        self._clock, self._last = 0.0, time.monotonic()
        self._tick = 0
        self._peers: dict[int, tuple[Said, float]] = {}  # with the time their tick last changed
        self._answered = 0.0  # when the service last did
        self._failures: dict[int, tuple[int, str]] = {}  # exit code and text of the others' ends
        self._ended = threading.Event()

    def __enter__(self) -> Watchdog:
        self._judging = threading.Thread(target=self._judge, name="watchdog", daemon=True)
        self._judging.start()
        if processes.several():
            threading.Thread(target=self._talk, name="watchdog-talk", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._judging.join()  # it sets the timer that is taken off here
        faulthandler.cancel_dump_traceback_later()

    def beat(self, doing: str) -> None:
        """Says that the main thread got further, and what it does next within stall_seconds."""
        self._note(doing, self.limits.stall_seconds)

    def alive(self) -> None:
        """Starts the limit of the running phase again. For loops whose turns differ between processes,
        where `beat` would count differently."""
        with self._lock:
            count, doing, limit, _ = self._beat
            self._beat = (count, doing, limit, self._clock)

    @contextlib.contextmanager
    def phase(self, doing: str) -> Iterator[None]:
        """What is done inside may take phase_seconds."""
        self._note(doing, self.limits.phase_seconds)
        yield
        self._note(f"after {doing}", self.limits.stall_seconds)

    def failed(self, error: BaseException) -> None:
        """Ends this process of several after an error: the others are told, and end too.

        An error inside JAX's runtime is often only the echo of another process's end, so that one is
        waited for, and named instead.
        """
        echo = type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError")
        with self._lock:
            count, doing, _, when = self._beat
            self._beat = (count, f"{doing}, which failed", 0.0, when)
        if echo:
            self._ended.wait(
                self.limits.lost_seconds + 4 * self.interval
            )  # _judge may exit meanwhile
        text = "".join(traceback.format_exception(error))
        self._exit(EXIT_ERROR, f"{self._own()} failed in {doing!r}:\n{text}")

    def _note(self, doing: str, limit: float) -> None:
        with self._lock:
            self._beat = (self._beat[0] + 1, doing, limit, self._clock)

    def _own(self, *, stack: bool = False) -> Said:
        with self._lock:
            count, doing, limit, when = self._beat
        age = self._clock - when
        late = stack or (limit and age > limit / 2)
        return Said(
            process=processes.number(),
            host=os.uname().nodename,
            pid=os.getpid(),
            tick=self._tick,
            count=count,
            doing=doing,
            age=age,
            stack=self._stack() if late else "",
        )

    def _stack(self) -> str:
        frame = sys._current_frames().get(self._main)
        return "".join(traceback.format_stack(frame))[-STACK_CHARACTERS:] if frame else ""

    def _judge(self) -> None:
        """The thread that decides that it is over."""
        while not self._ended.wait(self.interval):
            self._pass_time()
            self._guard_against_a_stuck_interpreter()
            if self._failures:
                self._exit(*next(iter(self._failures.values())))
            if verdict := self._verdict():
                self._exit(EXIT_STUCK, verdict)

    def _pass_time(self) -> None:
        """Counts only time in which this process ran: one that was suspended is not late."""
        now = time.monotonic()
        self._clock += min(now - self._last, 2 * self.interval)
        self._last = now

    def _guard_against_a_stuck_interpreter(self) -> None:
        """Code that never gives the interpreter back stops this thread too; then a timer in C ends us."""
        if self.limits.phase_seconds:
            limit = self.limits.phase_seconds + 60
            faulthandler.dump_traceback_later(limit, exit=True, file=sys.__stderr__)

    def _verdict(self) -> str | None:
        """What is wrong, or None."""
        if lost := self._silent(self.limits.lost_seconds):
            return _lost(lost, self.limits.lost_seconds)
        if processes.several() and self._clock - self._answered > self.limits.lost_seconds:
            return (
                f"process 0, which holds the coordination service, did not answer for "
                f"{self.limits.lost_seconds:g} s: it is stopped or gone."
            )
        with self._lock:
            _, _, limit, when = self._beat
        if limit and self._clock - when > limit:
            self._write_stacks()
            # One that is stuck still speaks: its other threads run. One that is silent is worse off.
            if lost := self._silent(4 * self.interval):
                return _lost(lost, 4 * self.interval)
            return _behind(
                [self._own(stack=True), *(said for said, _ in list(self._peers.values()))], limit
            )
        return None

    def _silent(self, seconds: float) -> list[Said]:
        """The last words of the others that were not heard of for so long, if ever."""
        missing = set(range(processes.total())) - {processes.number(), *self._peers}
        never = [
            (Said(k, "an unknown host", 0, 0, 0, "starting", 0.0), 0.0) for k in sorted(missing)
        ]
        return [
            said
            for said, heard in [*list(self._peers.values()), *never]
            if self._clock - heard > seconds
        ]

    def _talk(self) -> None:
        """The thread that tells the others and listens to them; it may hang where process 0 does."""
        while not self._ended.is_set():
            try:
                self._exchange()
            except Exception as error:  # the service is away; _judge decides when that is too long
                if self._ended.is_set():
                    return
                print(f"the coordination service does not answer: {error}", file=sys.stderr)
            self._ended.wait(self.interval)

    def _exchange(self) -> None:
        self._tick += 1
        own = self._own()
        processes.client().key_value_set(
            f"watch/{own.process}", json.dumps(dataclasses.asdict(own)), allow_overwrite=True
        )
        for _, text in processes.client().key_value_dir_get("watch/"):
            said = Said(**json.loads(text))
            before = self._peers.get(said.process)
            if said.process != own.process and (before is None or before[0].tick != said.tick):
                self._peers[said.process] = (said, self._clock)
        for name, text in processes.client().key_value_dir_get("failed/"):
            process = int(name.rsplit("/", 1)[1])
            if process != own.process:
                code, _, text = text.partition(" ")
                self._failures[process] = (int(code), text)
        self._answered = self._clock

    def _write_stacks(self) -> None:
        """All threads of this process into a file, besides the main one in the message."""
        with contextlib.suppress(OSError):  # the disk may be what hangs or is full
            self._folder.mkdir(parents=True, exist_ok=True)
            with (self._folder / f"process_{processes.number()}.txt").open("w") as file:
                faulthandler.dump_traceback(file, all_threads=True)

    def _exit(self, code: int, text: str) -> None:
        """Tells the others why, and ends this process whatever its main thread does."""
        self._ended.set()
        print(text, file=sys.stderr)
        if code == EXIT_STUCK:
            print("The same command continues from the last checkpoint.", file=sys.stderr)
        sys.stderr.flush()
        if processes.several():
            told = threading.Thread(target=self._tell, args=(code, text), daemon=True)
            told.start()
            told.join(self.interval)
            if processes.number() == 0:  # with it the service ends; the others read it first
                time.sleep(4 * self.interval)
        sys.stdout.flush()
        os._exit(code)

    def _tell(self, code: int, text: str) -> None:
        with contextlib.suppress(Exception):  # the service may be what is gone
            processes.client().key_value_set(f"failed/{processes.number()}", f"{code} {text}")


def _lost(lost: list[Said], seconds: float) -> str:
    lines = [f"{said} was last heard of in {said.doing!r}" for said in lost]
    return f"no word for {seconds:g} s, stopped or gone: " + "; ".join(lines) + "."


def _behind(everyone: list[Said], limit: float) -> str:
    """Who holds up the others: the processes with the lowest count."""
    lowest = min(said.count for said in everyone)
    slow = [said for said in everyone if said.count == lowest]
    others = sorted({said.doing for said in everyone if said.count > lowest})
    lines = []
    for said in slow:
        lines.append(
            f"{said} made no progress for {said.age:.0f} s (limit {limit:g}) in {said.doing!r}."
        )
        if others:
            lines.append(f"The others wait in: {', '.join(others)}.")
        lines.append(f"Stack of its main thread:\n{said.stack or '  (it sent none)'}")
    return "\n".join(lines)
