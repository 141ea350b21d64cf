"""No Ctrl-C is lost and none is mistaken for a failure, whoever stands between the signal and the command line."""

import signal
import subprocess
import sys
import textwrap
import weakref

import pytest
from dagster._core.errors import DagsterExecutionInterruptedError
from dagster._utils.interrupts import raise_interrupts_as

from apriel_assets import interrupts


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ignored_signals_interrupt_again_and_only_here(number):
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with pytest.raises(KeyboardInterrupt), interrupts.caught():
            signal.raise_signal(number)
        assert signal.getsignal(number) == signal.SIG_IGN
        interrupts.heed()
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_another_handler_swallowed_is_heeded_once(number):
    with interrupts.caught():
        interrupts.heed("h1/h4", 1, 2, {})
        signal.signal(number, lambda *_: None)
        signal.raise_signal(number)
        with pytest.raises(KeyboardInterrupt):
            interrupts.heed()
        interrupts.heed()


def test_an_interrupt_in_a_destructor_is_quiet_and_not_lost(capfd):
    class Interrupted:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal  # noqa: B018 - the handler runs here

    class Broken:
        def __del__(self):
            raise ValueError("told")

    with interrupts.caught():
        del (own := [Interrupted(), Broken()])[:]
        assert own == []
        with pytest.raises(KeyboardInterrupt):
            interrupts.heed()
    err = capfd.readouterr().err
    assert "told" in err
    assert "KeyboardInterrupt" not in err


def test_what_dagster_makes_of_an_interrupt_is_as_quiet_and_not_lost(capfd):
    def interrupted(_):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal  # noqa: B018 - the handler runs here

    class Watched:
        pass

    with interrupts.caught():
        with raise_interrupts_as(DagsterExecutionInterruptedError):
            watched = Watched()
            reference = weakref.ref(watched, interrupted)
            del watched
            assert reference() is None
        with pytest.raises(KeyboardInterrupt):
            interrupts.heed()
    assert capfd.readouterr().err == ""


def test_other_signals_go_unheeded():
    kept = signal.signal(signal.SIGCHLD, lambda *_: None)
    try:
        with interrupts.caught():
            signal.raise_signal(signal.SIGCHLD)
            interrupts.heed()
    finally:
        signal.signal(signal.SIGCHLD, kept)


def test_interrupt_that_a_library_renamed_is_one():
    """DuckDB ends a query on Ctrl-C with a RuntimeError."""
    code = textwrap.dedent("""
        import os, signal, threading, duckdb
        from apriel_assets import cli, interrupts
        with interrupts.caught(), cli.exit_codes(), duckdb.connect() as connection:
            connection.execute("set threads = 1")
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
            connection.execute("select sum(range * range % 7) from range(1000000000000)")
    """)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 130
    assert done.stderr.startswith("apriel: interrupted")


def test_failures_are_no_interrupts_even_in_a_circle():
    error, cause = ValueError("wrapped"), OSError("disk")
    error.__cause__, cause.__context__ = cause, error
    assert not interrupts.caused(error)
