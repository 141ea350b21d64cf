"""Ctrl-C and SIGTERM of the command line, so that neither is ignored and neither is lost."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_arrived: int | None = None  # pipe that the interpreter itself writes the number of each signal into


@contextmanager
def caught() -> Iterator[None]:
    """Let both raise KeyboardInterrupt in the main thread of this process, and be noted for `heed`.

    A script's shell starts `apriel run &` with SIGINT ignored, and Dagster gives SIGTERM whatever handler SIGINT has:
    without this `kill` would do nothing to such a run.
    """
    global _arrived
    _arrived, written = os.pipe()
    for end in (_arrived, written):
        os.set_blocking(end, False)
    before, hook = signal.set_wakeup_fd(written, warn_on_full_buffer=False), sys.unraisablehook
    sys.unraisablehook = _quiet_about_interrupts
    handlers = {number: signal.signal(number, signal.default_int_handler) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before)
        sys.unraisablehook = hook
        for end in (_arrived, written):
            os.close(end)
        _arrived = None


def _quiet_about_interrupts(unraisable: "sys.UnraisableHookArgs") -> None:
    # One that arrives in a destructor goes no further; it is not lost, since `heed` will find it. Dagster's is no
    # KeyboardInterrupt, but no Exception either.
    if issubclass(unraisable.exc_type, Exception):
        sys.__unraisablehook__(unraisable)


def heed(*_: object) -> None:
    """Raise KeyboardInterrupt if one of them ever came; takes and ignores what a listener is told.

    Dagster holds signals back around its own bookkeeping and forgets some that come there, so whoever runs for long
    asks again between two pieces of work.
    """
    if _arrived is None:
        return
    try:
        arrived = os.read(_arrived, 1024)
    except BlockingIOError:
        return
    if any(number in _SIGNALS for number in arrived):
        raise KeyboardInterrupt


def caused(error: BaseException | None) -> bool:
    """Whether an interrupt is at the bottom of an error: DuckDB, for one, raises a RuntimeError of its own instead."""
    seen = set()
    while error is not None and id(error) not in seen:  # Dagster makes chains that come back to their start
        if not isinstance(error, Exception):  # KeyboardInterrupt, Dagster's DagsterExecutionInterruptedError
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False
