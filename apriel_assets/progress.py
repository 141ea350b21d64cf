"""How compute tells how far it is, without knowing who listens (a terminal bar, Dagster's event log, nobody)."""

from typing import Protocol


class Progress(Protocol):
    """Called with work done and total, in the same unit, and current figures (names carry their units)."""

    def __call__(self, done: int, total: int, **figures: float) -> None: ...


def silent(done: int, total: int, **figures: float) -> None:
    """Ignore progress: the default for library use and tests."""
