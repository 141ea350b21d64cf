"""Single lives of `apriel run`: started, watched, and ended by a signal or a power cut at a given moment."""

import contextlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.soak.killed_run import PRELOADED, live, read_journal

ENDS = ("kill", "term", "power")
_PATIENCE_S = 1800.0  # for a run to end by itself, or after SIGTERM
_POLL_S = 0.03
_ENDED_AT_START = (
    0.2  # share of lives whose clock begins with the process; that of others with the first build
)


@dataclass
class Life:
    """One process, from its start to its end."""

    end: str  # kill, term, power, or none: it came to its own end
    code: int
    seconds: float  # of processor time
    stage: str  # what it was building when it ended
    events: list[dict[str, Any]] = field(repr=False)
    torn_files: int = 0
    undone_renames: int = 0
    problem: str | None = None  # of what it said


class Driver:
    """Starts lives of one recipe and ends them."""

    def __init__(
        self, recipe: Path, scratch: Path, *, seed: int, start: str = "fork", select: str = "*"
    ) -> None:
        self.recipe, self.scratch, self.start, self.select = recipe, scratch, start, select
        self.lot = random.Random(seed)
        self._lives = 0
        self._forks = multiprocessing.get_context("forkserver")
        self._forks.set_forkserver_preload(PRELOADED)

    def live(
        self, home: Path, end: str | None, moment_s: float, begun: Callable[[], bool] | None = None
    ) -> Life:
        """Let one process live; `end` it after so many processor seconds if it has not ended; None: let it be.

        `begun` tells whether its clock runs; None: with the first build, that of some with the process.
        """
        self._lives += 1
        journal, output = (self.scratch / f"{self._lives}.{kind}" for kind in ("journal", "output"))
        arguments = ["run", "--recipe", str(self.recipe), "--home", str(home), "--json"]
        arguments += ["--select", self.select]
        since_ns = time.time_ns()
        code, seconds = self._watched(arguments, journal, output, end, moment_s, begun)
        events = read_journal(journal)
        was_ended = code in (-signal.SIGKILL, -signal.SIGTERM, 130)
        found = Life(end if was_ended and end else "none", code, seconds, _stage(events), events)
        if found.end == "none" and code != 0:
            raise AssertionError(f"exit code {code}: {output.read_text()[-4000:]}")
        if found.end == "term" and "Traceback" in output.read_text():
            found.problem = f"SIGTERM left a traceback: {output.read_text()[-4000:]}"
        if found.end == "power":
            from tests.soak.power_loss import lose_power

            lost = lose_power(home, events, since_ns, self.lot)
            found.torn_files, found.undone_renames = lost["torn_files"], lost["undone_renames"]
        return found

    def _watched(
        self,
        arguments: list[str],
        journal: Path,
        output: Path,
        end: str | None,
        moment_s: float,
        begun: Callable[[], bool] | None,
    ) -> tuple[int, float]:
        """Start a process and end it in time; return its exit code and how many processor seconds it had."""
        number = signal.SIGTERM if end == "term" else signal.SIGKILL
        with self._started(arguments, journal, output, records_syncs=end == "power") as (pid, ended):
            until, had, since = time.monotonic() + _PATIENCE_S, 0.0, None
            if begun is None and self.lot.random() < _ENDED_AT_START:
                since = 0.0
            begun = begun or (lambda: journal.exists() and '"begin"' in journal.read_text())
            while (code := ended(_POLL_S)) is None:
                assert time.monotonic() < until, f"no end after {_PATIENCE_S:g} s"
                had = _processor_seconds(pid, had)
                if since is None and begun():
                    since = had
                if end and since is not None and had - since >= moment_s:
                    os.kill(pid, number)
                    code = ended(_PATIENCE_S)
                    assert code is not None, f"no end {_PATIENCE_S:g} s after signal {number}"
                    break
            return code, had

    @contextlib.contextmanager
    def _started(
        self, arguments: list[str], journal: Path, output: Path, *, records_syncs: bool
    ) -> Iterator[tuple[int, Callable[[float], int | None]]]:
        """Yield the process's id, and what waits so many seconds for its exit code."""
        if self.start == "fork":
            given = {"args": (arguments, journal, output), "kwargs": {"records_syncs": records_syncs}}
            own = self._forks.Process(target=live, **given)
            own.start()

            def ended(seconds: float) -> int | None:
                own.join(seconds)
                return own.exitcode

            yield own.pid or 0, ended
            own.close()
            return
        chosen = {"arguments": arguments, "journal": str(journal), "output": str(output)}
        order = json.dumps({**chosen, "records_syncs": records_syncs})
        process = subprocess.Popen([sys.executable, "-m", "tests.soak.killed_run", order])

        def waited(seconds: float) -> int | None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(seconds)
            return None

        yield process.pid, waited


def _processor_seconds(pid: int, before: float) -> float:
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return before  # it has ended
    return times.user + times.system


def _stage(events: list[dict[str, Any]]) -> str:
    """Return what was being built at the end of a life: a family of assets, `between` or `start`."""
    for own in reversed(events):
        if own["event"] == "begin":
            return own["asset"].split("/")[0]
        if own["event"] == "end":
            return "between"
    return "start"
