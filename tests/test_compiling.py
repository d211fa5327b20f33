"""Steps compile in a thread of their own: when they were begun or are asked for, and errors come out."""

import contextlib
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest

from seem_jax.training import compiling

ENCODER_STEPS, NUM_STEPS = 3, 9


def make(monkeypatch, compile_one, *, encoder_steps=0):
    monkeypatch.setattr(compiling.Compilation, "_compile", compile_one)
    config = types.SimpleNamespace(encoder_steps=encoder_steps, num_steps=NUM_STEPS)
    return compiling.Compilation("model", config, "mesh", "batch", "ids", "valid")


def program(decoder):
    return f"decoder: {decoder}"


def test_a_step_that_was_not_begun_is_compiled_when_it_is_asked_for_and_once(monkeypatch):
    compiled = []

    def compile_one(self, decoder):
        compiled.append(decoder)
        return compiling.Found(program(decoder))

    with make(monkeypatch, compile_one) as compilation:
        assert compilation.program(1) == compilation.program(NUM_STEPS) == program(True)
        assert compilation.ready(1) and compiled == [True]


def test_first_the_program_of_the_next_step_then_that_of_later_ones(monkeypatch):
    compiled, may_end = [], threading.Event()

    def compile_one(self, decoder):
        compiled.append(decoder)
        if decoder:
            may_end.wait(60)
        return compiling.Found(program(decoder))

    with make(monkeypatch, compile_one, encoder_steps=ENCODER_STEPS) as compilation:
        compilation.begin(1)
        assert compilation.program(ENCODER_STEPS) == program(False)
        assert compilation.ready(ENCODER_STEPS) and not compilation.ready(ENCODER_STEPS + 1)
        may_end.set()
        assert compilation.program(ENCODER_STEPS + 1) == program(True)
    assert compiled == [False, True]


def test_a_run_behind_the_first_steps_compiles_one_program(monkeypatch):
    compiled = []

    def compile_one(self, decoder):
        compiled.append(decoder)
        return compiling.Found(program(decoder))

    with make(monkeypatch, compile_one, encoder_steps=ENCODER_STEPS) as compilation:
        compilation.begin(ENCODER_STEPS + 1)
        assert compilation.program(ENCODER_STEPS + 1) == program(True)
        assert compiled == [True]
        assert compilation.program(ENCODER_STEPS) == program(False)  # rolled back


def test_what_the_compiler_raises_is_raised_where_the_step_is_asked_for(monkeypatch):
    def fail(self, decoder):
        raise ValueError("no such shape")

    with make(monkeypatch, fail) as compilation:
        compilation.begin(1)
        with pytest.raises(ValueError, match="no such shape"):
            compilation.program(1)


def test_an_error_of_later_steps_is_raised_in_the_next_one(monkeypatch):
    failed = threading.Event()

    def compile_one(self, decoder):
        if decoder:
            failed.wait(60)
            raise ValueError("no such shape")
        return compiling.Found(program(decoder))

    with make(monkeypatch, compile_one, encoder_steps=ENCODER_STEPS) as compilation:
        compilation.begin(1)
        assert compilation.program(1) == program(False)
        failed.set()
        with pytest.raises(ValueError, match="no such shape"):
            compilation.program(ENCODER_STEPS + 1)
        with pytest.raises(ValueError, match="no such shape"):
            compilation.program(2)


def test_several_processes_wait_for_both_programs(monkeypatch):
    def compile_one(self, decoder):
        return compiling.Found(program(decoder))

    monkeypatch.setattr(compiling.processes, "several", lambda: True)
    with make(monkeypatch, compile_one, encoder_steps=ENCODER_STEPS) as compilation:
        compilation.begin(1)
        assert compilation.program(1) == program(False)
        assert compilation.ready(NUM_STEPS)


@pytest.mark.parametrize("error", [False, True])
def test_leaving_does_not_wait_for_the_compiler(monkeypatch, error):
    may_end, ended = threading.Event(), threading.Event()

    def compile_long(self, decoder):
        may_end.wait(60)
        ended.set()
        return compiling.Found(program(decoder))

    with contextlib.suppress(ValueError), make(monkeypatch, compile_long) as compilation:
        compilation.begin(1)
        if error:
            raise ValueError("the weights do not fit")
    assert not ended.is_set() and compiling.unfinished()
    may_end.set()
    assert ended.wait(60)


STUCK_COMPILER = """
import sys, time
from tests import fake_train, toy_model
from seem_jax.training import compiling

toy_model.install()
compile_one = compiling.Compilation._compile

def compile_slowly(self, decoder):
    if decoder:
        time.sleep(600)
    return compile_one(self, decoder)

compiling.Compilation._compile = compile_slowly
sys.exit(fake_train.main(sys.argv[1], 0, 300))
"""


def test_a_run_told_to_stop_does_not_wait_for_the_program_of_later_steps(tmp_path):
    root = Path(__file__).resolve().parents[1]
    child = subprocess.Popen(
        [sys.executable, "-c", STUCK_COMPILER, str(tmp_path)],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    seen = []
    for line in child.stdout:
        seen.append(line)
        if line.startswith("step 2/"):
            child.send_signal(signal.SIGTERM)
            told = time.monotonic()
            break
    rest, _ = child.communicate(timeout=120)
    assert child.returncode == 75, "".join(seen) + rest
    assert "told to stop: saved at step" in rest
    assert time.monotonic() - told < 60
