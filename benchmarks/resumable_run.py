"""Bring a home forward for some minutes and stop so that the next call goes on, on this machine or another.

    python benchmarks/resumable_run.py --recipe h100-smollm2 --home H --minutes 8 --carry home.packed --out result.json

Finished assets are kept, a training that was cut goes on from its last saved state. `--carry` names one file: where it
exists and the home does not, the home is made of it, and at the end it is written again (`resources/packed_home.py`:
without training states, and without weights that nothing unfinished reads). `--join` takes over what other homes of
the same recipe have. Exit code 0: all is up to date and `--out` is written; 75: to be continued by the same command; 1:
the input is wrong or a step failed, what was finished before is kept and packed.
"""

import argparse
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from home_results import write_results

from apriel_assets import interrupts
from apriel_assets.errors import UserError
from apriel_assets.hybrid.mixers.kernels import FLA, MAMBA_SSM, find_library
from apriel_assets.planning.plan import Plan
from apriel_assets.recipe import load_recipe
from apriel_assets.workspace import open_workspace
from resources import listeners
from resources.joined_home import join_home
from resources.packed_home import pack_home, unpack_home

Outcome = Literal["done", "cut", "failed"]
EXIT_CODES: Mapping[Outcome, int] = {"done": 0, "cut": 75, "failed": 1}  # 75: EX_TEMPFAIL
LINE_EVERY_S = 15.0


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Some assets of a recipe, with all that they need."""

    recipe: str
    select: tuple[str, ...] = ()  # names, patterns, groups; none: all
    overlays: tuple[str, ...] = ()


class Clock:
    """How long this call may still work."""

    def __init__(self, minutes: float) -> None:
        self._started = time.monotonic()
        self._ends = self._started + 60 * minutes

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    @property
    def left_s(self) -> float:
        return self._ends - time.monotonic()

    def say(self, text: str) -> None:
        """Print a line with the time since the start."""
        print(f"[{self.seconds:6.1f} s] {text}", flush=True)


def bring_forward(home: Path, stages: Sequence[Stage], clock: Clock) -> Outcome:
    """Run stage after stage until all are up to date, time is up or one fails.

    Of what the user can mend one line is printed, of all else the traceback.
    """
    try:
        with interrupts.caught(), _ended_at(clock), listeners.listening(interrupts.heed):
            for stage in stages:
                _run(home, stage, clock)
    except UserError as error:
        clock.say(str(error))
        return "failed"
    except (Exception, KeyboardInterrupt) as error:
        if interrupts.caused(error):
            clock.say("time is up, or interrupted: finished work is kept")
            return "cut"
        traceback.print_exc()
        return "failed"
    return "done"


def _run(home: Path, stage: Stage, clock: Clock) -> None:
    def on_plan(plan: Plan) -> None:
        interrupts.heed()
        if plan.ready:
            names = [row.asset + (f"[{row.partition}]" if row.partition else "") for row in plan.ready]
            clock.say(f"{stage.recipe}: {len(names)} stale, next {', '.join(names[:4])}")

    opened = open_workspace(stage.recipe, home, stage.overlays, write=True)
    with opened as workspace, listeners.listening(_lines(clock)):
        workspace.run(list(stage.select) or None, on_plan=on_plan)


def _lines(clock: Clock) -> Callable[[str, int, int, dict[str, float]], None]:
    """Return a listener that prints a line of a step now and then, and its last."""
    last: dict[str, float] = {}

    def tell(step: str, done: int, total: int, figures: dict[str, float]) -> None:
        if clock.seconds - last.get(step, -LINE_EVERY_S) >= LINE_EVERY_S or done == total:
            last[step] = clock.seconds
            shown = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
            clock.say(f"{step}: {done} of {total}  {shown}".rstrip())

    return tell


@contextmanager
def _ended_at(clock: Clock) -> Iterator[None]:
    """Let this process be interrupted, as by `kill`, when time is up."""
    timer = threading.Timer(max(0.0, clock.left_s), os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def pack(home: Path, carry: Path, stages: Sequence[Stage], clock: Clock) -> None:
    """Write the home as one file, with the weights that any of the stages will still read."""
    needed: set[Path] = set()
    for stage in stages:
        with open_workspace(stage.recipe, home, stage.overlays) as workspace:
            needed |= workspace.needed_artifacts(stage.select or None)
    size = pack_home(home, carry, needed)
    clock.say(
        f"packed {carry}: {size.file_bytes / 1e6:.1f} MB for {size.weight_bytes / 1e6:.1f} MB of weights and "
        f"{size.other_bytes / 1e6:.1f} MB of other files; {size.left_out_bytes / 1e6:.1f} MB of weights stayed behind"
    )


def arguments(description: str | None, recipe: str | None = None) -> argparse.ArgumentParser:
    """Return the options that all resumable benchmarks share; `recipe` is the default one."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--recipe", default=recipe, required=recipe is None)
    parser.add_argument("--set", dest="overlays", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="of this call; start and packing come on top"
    )
    parser.add_argument("--carry", type=Path, help="the home as one file, read and written")
    parser.add_argument(
        "--join", type=Path, nargs="+", default=[], help="homes of the same recipe: take what they have"
    )
    parser.add_argument("--out", type=Path, help="result file, written when all is done")
    parser.add_argument("--pictures", type=Path, help="directory for pictures, drawn when all is done")
    return parser


def open_home(given: argparse.Namespace, clock: Clock) -> Path:
    """Make the options' paths absolute, unpack the home if there is only its packed form, and work in it from now on.

    What a recipe names by a relative path lies in the home, so that the home may be moved.

    Raises:
        SystemExit: a kernel library is missing, the recipe is none, or a home cannot be joined.
    """
    _check_kernels(given.overlays)
    try:
        load_recipe(given.recipe, given.overlays)  # before a teacher is trained for it
    except UserError as error:
        raise SystemExit(str(error)) from error
    for name in ("home", "carry", "out", "pictures"):
        if (path := getattr(given, name)) is not None:
            setattr(given, name, path.absolute())
    if given.carry is not None and given.carry.is_file() and not (given.home / "dagster").is_dir():
        unpack_home(given.carry, given.home)
        clock.say(f"unpacked {given.carry}")
    given.home.mkdir(parents=True, exist_ok=True)
    try:
        for other in given.join:
            clock.say(f"{join_home(other.absolute(), given.home)} artifacts from {other}")
    except UserError as error:
        raise SystemExit(str(error)) from error
    os.chdir(given.home)
    return given.home


def _check_kernels(overlays: Sequence[str]) -> None:
    """Refuse to train on a GPU without kernels: that takes 30 to over 100 times as long (docs/kernels.md)."""
    if not torch.cuda.is_available() or any("kernel=torch" in overlay for overlay in overlays):
        return
    if missing := [own.distribution for own in (FLA, MAMBA_SSM) if find_library(own) is None]:
        raise SystemExit(
            f"{' and '.join(missing)} not installed: pip install -e .[gpu], or give --set mixers.mamba.kernel=torch to "
            "go on without, if there is no hurry"
        )


def finish(given: argparse.Namespace, outcome: Outcome, stages: Sequence[Stage], clock: Clock) -> int:
    """Pack the home, write the results of the last stage's recipe if all is done, and return the exit code."""
    if given.carry is not None:
        pack(given.home, given.carry, stages, clock)
    if outcome == "done" and given.out is not None:
        names = list(dict.fromkeys(load_recipe(own.recipe, own.overlays).name for own in reversed(stages)))
        write_results(given.home, names[0], given.out, given.pictures, names[1:])
        clock.say(f"wrote {given.out}")
    return say_outcome(outcome, clock)


def say_outcome(outcome: Outcome, clock: Clock) -> int:
    """Print what to do next and return the exit code."""
    clock.say(
        {"done": "done", "cut": "to be continued: run the same command again", "failed": "failed"}[outcome]
    )
    return EXIT_CODES[outcome]


def main() -> int:
    """Run a recipe, whole if nothing is selected."""
    parser = arguments(__doc__)
    parser.add_argument("--select", nargs="+", default=[], help="assets or patterns; all if not given")
    given = parser.parse_args()
    clock = Clock(given.minutes)
    home = open_home(given, clock)
    stage = Stage(recipe=given.recipe, select=tuple(given.select), overlays=tuple(given.overlays))
    return finish(given, bring_forward(home, [stage], clock), [stage], clock)


if __name__ == "__main__":
    sys.exit(main())
