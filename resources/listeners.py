"""Carries progress from inside an asset to whoever watches: Dagster's event log always, a terminal if one listens."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from apriel_assets.progress import Progress

LOG_EVERY_S = 10.0


class Listener(Protocol):
    """Told of every progress call in this process: step name, done, total, figures."""

    def __call__(self, step: str, done: int, total: int, figures: dict[str, float], /) -> None: ...


_listeners: list[Listener] = []


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Call `listener` for all progress in this process until the block ends."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def reporter(step: str, log: logging.Logger) -> Progress:
    """Return a progress callback for one step: listeners hear each call, the log one line every ten seconds."""
    last = time.monotonic()

    def report(done: int, total: int, **figures: float) -> None:
        nonlocal last
        for listener in _listeners:
            listener(step, done, total, figures)
        if time.monotonic() - last >= LOG_EVERY_S:
            last = time.monotonic()
            shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
            log.info("%s: %d of %d%s", step, done, total, f" ({shown})" if shown else "")

    return report
