"""The step compiles in its own thread: when it was begun or is asked for, and its errors come out."""

import contextlib
import threading

import pytest

from seem_jax.training import compiling

ARGUMENTS = ("model", "config", "mesh", "batch", "ids", "valid")


def test_a_step_that_was_not_begun_is_compiled_when_it_is_asked_for(monkeypatch):
    monkeypatch.setattr(compiling, "_compile", lambda *given: compiling.Found(given[:-1], 1.0))
    with compiling.Compilation(*ARGUMENTS) as compilation:
        assert compilation.result() == (ARGUMENTS, 1.0)
        assert compilation.result() == (ARGUMENTS, 1.0)


def test_what_the_compiler_raises_is_raised_where_the_step_is_asked_for(monkeypatch):
    def fail(*given):
        raise ValueError("no such shape")

    monkeypatch.setattr(compiling, "_compile", fail)
    with compiling.Compilation(*ARGUMENTS) as compilation:
        compilation.begin()
        with pytest.raises(ValueError, match="no such shape"):
            compilation.result()


def test_an_error_meanwhile_does_not_wait_for_the_compiler(monkeypatch):
    end, ended = threading.Event(), threading.Event()

    def compile_long(*given):
        end.wait(60)
        ended.set()

    monkeypatch.setattr(compiling, "_compile", compile_long)
    with contextlib.suppress(ValueError), compiling.Compilation(*ARGUMENTS) as compilation:
        compilation.begin()
        raise ValueError("the weights do not fit")
    assert not ended.is_set()
    end.set()
    assert ended.wait(60)


@pytest.mark.parametrize("fails", [False, True])
def test_waiting_ends_when_the_step_is_lowered_or_has_failed(monkeypatch, fails):
    end = threading.Event()

    def compile_long(*given):
        if fails:
            raise ValueError("no such shape")
        given[-1]()
        end.wait(60)
        return compiling.Found(given, 1.0)

    monkeypatch.setattr(compiling, "_compile", compile_long)
    with compiling.Compilation(*ARGUMENTS) as compilation:
        compilation.wait_until_lowered()  # nothing was begun
        compilation.begin()
        compilation.wait_until_lowered()
        assert not end.is_set()
        end.set()
