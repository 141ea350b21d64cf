"""Kill `apriel run` at random moments, over and over, and look whether anything is lost, torn or done twice.

    python -m tests.soak.kills --kills 200

Each life of the run ends by SIGKILL, by SIGTERM or by a power cut (SIGKILL, then everything that was not flushed is
lost by lot), until one gets to the end; then the next round begins with an empty home. After each life the whole home
is verified. After each round its tables are compared with those of a run that nobody disturbed, and its journals say
what was done more than once. Lives are as long as atoms': each moment of them is as likely the last as any other, most
from the first thing that they build on, some from their start. They are counted in processor seconds, so that a busy
machine does not move the ends to the start. Lives are forked from a process that has loaded torch already;
`--start exec` loads it each time.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.soak.killed_run import PRELOADED, live, read_journal

ENDS = ("kill", "term", "power")
RESULTS = Path(__file__).parent.parent.parent / "benchmarks" / "results" / "soak_kills.json"
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


@dataclass
class Findings:
    """What all rounds found; every list is empty if promises hold."""

    kills: Counter = field(default_factory=Counter)
    rounds: int = 0
    stages: Counter = field(default_factory=Counter)
    verified_artifacts: int = 0
    torn_files: int = 0
    undone_renames: int = 0
    repeated_steps: int = 0
    most_repeated_steps_per_kill: float = 0.0
    problems: list[str] = field(default_factory=list)


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

    def live(self, home: Path, end: str | None, moment_s: float) -> Life:
        """Let one process live; `end` it after so many processor seconds if it has not ended; None: let it be."""
        self._lives += 1
        journal, output = (self.scratch / f"{self._lives}.{kind}" for kind in ("journal", "output"))
        arguments = ["run", "--recipe", str(self.recipe), "--home", str(home), "--json"]
        arguments += ["--select", self.select]
        since_ns = time.time_ns()
        code, seconds = self._watched(arguments, journal, output, end, moment_s)
        events = read_journal(journal)
        was_ended = code in (-signal.SIGKILL, -signal.SIGTERM, 130)
        found = Life(end if was_ended and end else "none", code, seconds, _stage(events), events)
        if found.end == "none" and code != 0:
            raise AssertionError(f"exit code {code}: {output.read_text()[-4000:]}")
        if found.end == "term" and "Traceback" in output.read_text():
            raise AssertionError(f"SIGTERM left a traceback: {output.read_text()[-4000:]}")
        if found.end == "power":
            from tests.soak.power_loss import lose_power

            lost = lose_power(home, events, since_ns, self.lot)
            found.torn_files, found.undone_renames = lost["torn_files"], lost["undone_renames"]
        return found

    def _watched(
        self, arguments: list[str], journal: Path, output: Path, end: str | None, moment_s: float
    ) -> tuple[int, float]:
        """Start a process and end it in time; return its exit code and how many processor seconds it had."""
        number = signal.SIGTERM if end == "term" else signal.SIGKILL
        with self._started(arguments, journal, output, records_syncs=end == "power") as (pid, ended):
            until, had, since = time.monotonic() + _PATIENCE_S, 0.0, None
            if self.lot.random() < _ENDED_AT_START:
                since = 0.0
            while (code := ended(_POLL_S)) is None:
                assert time.monotonic() < until, f"no end after {_PATIENCE_S:g} s"
                had = _processor_seconds(pid, had)
                if since is None and journal.exists() and '"begin"' in journal.read_text():
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


def work_done(lives: list[Life]) -> Counter:
    """Return how often each unit of progress was reported, by (step, done of all)."""
    return Counter(
        (own["step"], own["done"], own["total"])
        for life in lives
        for own in life.events
        if own["event"] == "progress"
    )


def visible(home: Path) -> set[tuple[str, str]]:
    """Return the asset and address of every artifact that a reader would find."""
    found = home.glob("artifacts/**/provenance.json")
    own = [path.parent.relative_to(home / "artifacts") for path in found]
    return {(str(path.parent), path.name) for path in own if not path.name.startswith(".")}


def home_problems(home: Path) -> tuple[list[str], int]:
    """Return what is wrong with a home that nobody works on, and how many artifacts were verified."""
    from resources.verification import verify_home
    from tests.soak.same_tables import unseen_rows

    found = verify_home(home)
    problems = [f"{damage.path}: {damage.what}" for damage in found.damage]
    if (home / "lake").is_dir():
        problems += unseen_rows(home)
    return problems, found.num_artifacts


def one_round(
    driver: Driver, home: Path, found: Findings, mean_s: float, most_kills: int, undisturbed: list[Life]
) -> None:
    """Kill a run on an empty home until it gets to its end, or there were enough kills: then let it end."""
    lives: list[Life] = []
    while not lives or lives[-1].end != "none":
        before = visible(home)
        end = driver.lot.choice(ENDS) if found.kills.total() < most_kills else None
        life = driver.live(home, end, driver.lot.expovariate(1 / mean_s))
        lives.append(life)
        again = {(own["asset"], own["address"]) for own in life.events if own["event"] == "begin"} & before
        found.problems += [f"finished and built again: {asset}/{address}" for asset, address in sorted(again)]
        if life.end != "none":
            found.kills[life.end] += 1
            found.stages[life.stage] += 1
            found.torn_files += life.torn_files
            found.undone_renames += life.undone_renames
        problems, artifacts = home_problems(home)
        found.problems += [f"after {life.end} in {life.stage}: {problem}" for problem in problems]
        found.verified_artifacts += artifacts
        print(f"{found.kills.total()} {life.end} after {life.seconds:.1f} s in {life.stage}", flush=True)
    found.rounds += 1
    _count_repeated(driver, lives, undisturbed, found)


def _count_repeated(driver: Driver, lives: list[Life], undisturbed: list[Life], found: Findings) -> None:
    """Compare what trainings reported with the undisturbed run: at most one interval more per kill in them."""
    from apriel_assets.recipe import load_recipe

    interval = max(_save_intervals(load_recipe(str(driver.recipe)).model_dump()))
    trained = {
        own["asset"]
        for life in undisturbed
        for own in life.events
        if own["event"] == "begin" and _trains(own["asset"])
    }
    done, once = work_done(lives), work_done(undisturbed)
    for asset in trained:
        more = sum(count - once[unit] for unit, count in done.items() if unit[0] == asset)
        kills = sum(_was_building(life, asset) for life in lives if life.end != "none")
        found.repeated_steps += more
        if kills:
            found.most_repeated_steps_per_kill = max(found.most_repeated_steps_per_kill, more / kills)
        if not 0 <= more <= kills * interval:
            found.problems.append(f"{asset}: {more} steps more than once, {kills} kills, interval {interval}")
        if set(once) - set(done) and {unit for unit in once if unit[0] == asset} - set(done):
            found.problems.append(f"{asset}: steps of the undisturbed run are missing")


def _trains(asset: str) -> bool:
    return asset in ("supernet", "h1/sft", "release/sft") or (
        asset.startswith("h1/h") and asset.count("/") == 1
    )


def _was_building(life: Life, asset: str) -> bool:
    own = [event for event in life.events if event.get("asset") == asset]
    return bool(own) and own[-1]["event"] == "begin"


def _save_intervals(values: Any) -> list[int]:
    if not isinstance(values, dict):
        return []
    own = [values["save_every"]] if "save_every" in values else []
    return own + [number for value in values.values() for number in _save_intervals(value)]


def soak(driver: Driver, kills: int, mean_s: float, most_rounds: int = 10_000) -> Findings:
    """Run rounds until there were enough kills, or so many rounds; return what was found."""
    from apriel_assets.recipe import load_recipe
    from tests.soak.same_tables import differing_tables

    found, whole = Findings(), driver.scratch / "undisturbed"
    journal = driver.scratch / "undisturbed.journal"
    if not journal.exists():  # else of an earlier soak in the same place
        driver.live(whole, None, 0.0)
        (driver.scratch / "1.journal").rename(journal)
    undisturbed = [Life("none", 0, 0.0, "between", read_journal(journal))]
    name = load_recipe(str(driver.recipe)).name
    while found.kills.total() < kills and found.rounds < most_rounds:
        home = driver.scratch / f"round-{found.rounds}"
        one_round(driver, home, found, mean_s, kills, undisturbed)
        different = differing_tables(whole, home, name)
        found.problems += [f"round {found.rounds}: not as undisturbed: {table}" for table in different]
        again = driver.live(home, None, 0.0)
        if any(own["event"] == "begin" for own in again.events):
            found.problems.append(f"round {found.rounds}: a further run built something")
        if found.problems:
            break  # the home stays as it is, to be looked at
        shutil.rmtree(home)
    return found


def main() -> int:
    """Soak, write the result file; 1 if anything was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipe", type=Path, help="default: a tiny one that has every stage")
    parser.add_argument(
        "--mean",
        type=float,
        default=0.6,
        help="mean life of what is killed, processor seconds",
    )
    parser.add_argument("--start", choices=("fork", "exec"), default="fork")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--scratch", type=Path, help="where homes are made; kept if given")
    given = parser.parse_args()
    scratch = given.scratch or Path(tempfile.mkdtemp(prefix="apriel-kills-"))
    scratch.mkdir(parents=True, exist_ok=True)
    if given.recipe is None:
        from tests.soak.soak_recipe import write_soak_recipe

        given.recipe = write_soak_recipe(scratch)
    began = time.monotonic()
    found = soak(Driver(given.recipe, scratch, seed=given.seed, start=given.start), given.kills, given.mean)
    report = {
        "command": f"python -m tests.soak.kills --kills {given.kills} --seed {given.seed} --mean {given.mean:g} "
        f"--start {given.start}",
        "recipe": given.recipe.name,
        "minutes": round((time.monotonic() - began) / 60, 1),
        **{name: dict(own) if isinstance(own, Counter) else own for name, own in vars(found).items()},
    }
    given.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    if not given.scratch and not found.problems:
        shutil.rmtree(scratch)
    return 1 if found.problems else 0


if __name__ == "__main__":
    sys.exit(main())
