"""A run that hangs, or loses one of its processes, ends by itself and says which process and where."""

import ast
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from seem_jax import processes
from seem_jax.config import FaultsConfig
from seem_jax.training import watchdog
from seem_jax.training.watchdog import EXIT_STUCK, Said, Watchdog
from tests.test_processes import free_port

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 60  # seconds from the fault until all have left


def start(total, fault, module="tests.fake_watch", *arguments):
    """The processes of a run, each on one device."""
    port = free_port()
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    return [
        subprocess.Popen(
            [sys.executable, "-m", module, *map(str, (process, total, port, fault))],
            cwd=ROOT, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for process in range(total)
    ]  # fmt: skip


def wait_for(child, start_of_line):
    for line in child.stdout:
        if line.startswith(start_of_line):
            return
    raise AssertionError(f"it ended before {start_of_line!r}: {child.stderr.read()}")


def endings(children, begin):
    """(exit codes, what they said on stderr) once all have left, within LIMIT seconds of `begin`."""
    said = [
        child.communicate(timeout=max(begin + LIMIT - time.monotonic(), 1))[1] for child in children
    ]
    return [child.returncode for child in children], said


def test_a_stuck_process_is_named_with_its_stack_and_all_exit():
    children = start(2, "sleep")
    wait_for(children[0], "step 4")
    codes, said = endings(children, time.monotonic())
    assert codes == [EXIT_STUCK] * 2, said
    for text in said:
        assert "process 1 (pid " in text
        assert "made no progress for" in text
        assert "sleeps_for_ever" in text  # the stack, in the other process too
        assert "process 0 (pid" not in text


def test_a_killed_process_is_named_by_the_other():
    children = start(2, "none")
    wait_for(children[0], "step 5")
    children[1].kill()
    codes, said = endings(children, time.monotonic())
    assert codes == [EXIT_STUCK, -signal.SIGKILL], said
    assert f"process 1 (pid {children[1].pid} on " in said[0]
    assert "stopped or gone" in said[0]


@pytest.mark.slow
@pytest.mark.parametrize("total", [3, 4])
def test_a_suspended_process_is_named_and_ends_when_it_is_woken(total):
    children = start(total, "none")
    wait_for(children[0], "step 5")
    children[2].send_signal(signal.SIGSTOP)
    awake = [child for number, child in enumerate(children) if number != 2]
    codes, said = endings(awake, time.monotonic())
    assert codes == [EXIT_STUCK] * len(awake), said
    assert all(f"process 2 (pid {children[2].pid} on " in text for text in said)
    children[2].send_signal(signal.SIGCONT)
    assert endings(children[2:3], time.monotonic())[0] != [0]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_all_leave_when_the_process_with_the_coordination_service_is_gone(number):
    children = start(2, "none")
    wait_for(children[1], "step 5")
    children[0].send_signal(number)
    codes, _ = endings(children[1:], time.monotonic())
    assert codes[0] in (EXIT_STUCK, -signal.SIGABRT)  # JAX itself aborts where it notices first
    children[0].kill()
    children[0].communicate()


@pytest.mark.slow
def test_an_error_in_one_process_ends_all_and_is_told_to_all():
    children = start(2, "error")
    codes, said = endings(children, time.monotonic())
    assert codes == [1, 1], said
    assert all("ValueError: record 17 is bad" in text for text in said)


def test_processes_that_differ_are_refused_with_the_difference():
    children = start(2, "differs")
    codes, said = endings(children, time.monotonic())
    assert codes == [1, 1], said
    for text in said:
        assert "rate: 0.1 in process 0, 1.1 in process 1" in text
        assert "config.seed: " not in text


ALONE = """
import time
from seem_jax.config import FaultsConfig
from seem_jax.training.watchdog import Watchdog
def a_slow_disk(): time.sleep(600)
with Watchdog(FaultsConfig(stall_seconds=1, phase_seconds=2), "{folder}") as watchdog:
    watchdog.beat("waiting for the data of step 7")
    a_slow_disk()
"""


def test_one_process_alone_is_watched_too(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", ALONE.format(folder=tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == EXIT_STUCK
    assert "in 'waiting for the data of step 7'" in done.stderr
    assert "a_slow_disk" in done.stderr
    assert "a_slow_disk" in (tmp_path / "process_0.txt").read_text()


def said(process, count, doing, **more):
    return Said(process, "host", 100 + process, 1, count, doing, 9.0, **more)


def test_the_process_with_the_lowest_count_holds_up_the_others():
    everyone = [
        said(0, 8, "step 5"),
        said(1, 7, "waiting for data", stack="STACK"),
        said(2, 8, "step 5"),
    ]
    text = watchdog._behind(everyone, 6)
    assert text.startswith("process 1 (pid 101 on host) made no progress for 9 s (limit 6)")
    assert "The others wait in: step 5." in text
    assert "STACK" in text
    assert "process 0" not in text


def test_a_suspension_of_all_is_not_taken_for_a_stall(monkeypatch, tmp_path):
    """A laptop that slept for an hour: its watch thread did not run either."""
    now = [0.0]
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: now[0])
    dog = Watchdog(FaultsConfig(stall_seconds=60), tmp_path)
    dog.beat("step 1")
    dog._pass_time()
    now[0] += 3600
    dog._pass_time()
    assert dog._verdict() is None
    for _ in range(20):
        now[0] += 5
        dog._pass_time()
    assert "made no progress" in dog._verdict()


def test_meetings_of_one_process_need_nobody():
    processes.meet("alone", 0.1)
    assert processes.gather("alone", "x", 0.1) == ["x"]
    assert processes.from_first("alone", "y", 0.1) == "y"
    processes.agree("facts", {"a": (1, 2)}, 0.1)


class Service:
    """A coordination service in which not everybody came."""

    def __init__(self):
        self.store = {"seem/0/start/0": "here", "seem/0/start/2": "here"}

    def key_value_set(self, key, value):
        self.store[key] = value

    def key_value_dir_get(self, start):
        return [(key, value) for key, value in self.store.items() if key.startswith(start)]

    def wait_at_barrier(self, key, milliseconds):
        raise RuntimeError("DEADLINE_EXCEEDED")


def test_a_barrier_that_runs_out_names_who_is_late(monkeypatch):
    service = Service()
    monkeypatch.setattr(processes, "client", lambda: service)
    monkeypatch.setattr(processes, "several", lambda: True)
    monkeypatch.setattr(processes, "total", lambda: 4)
    monkeypatch.setattr(processes, "_calls", iter([0]))
    with pytest.raises(TimeoutError, match=r"up to 5 s .* at 'start': process 1, 3 did not come"):
        processes.meet("start", 5)


def test_no_barrier_of_ours_waits_without_a_limit():
    """multihost_utils waits for ever, on devices; processes.py is the one place for meetings."""
    for path in sorted((ROOT / "seem_jax").rglob("*.py")):
        names = {
            node.attr if isinstance(node, ast.Attribute) else node.id
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, (ast.Attribute, ast.Name))
        }
        forbidden = {
            "sync_global_devices",
            "process_allgather",
            "broadcast_one_to_all",
            "multihost_utils",
        }
        assert not names & forbidden, path
        if path.name != "processes.py":
            assert not names & {"wait_at_barrier", "blocking_key_value_get"}, path
