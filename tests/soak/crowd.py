"""Several builders and readers on one home at once, on two pretended hosts, while builders are killed.

    python -m tests.soak.crowd --kills 10

One `apriel run`, and two builders that work as a daemon's runs do: without the home's run lock. One of these believes
to be on another host, with the same locks, as storage shared by a cluster has them, and there each flush to the disk is
slow. Beside them readers ask, plan, verify and write the report, one command after the other. In the end the tables
must be those of an undisturbed run, and nothing built twice.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.soak.killed_run import PRELOADED, Journal, builds_told, live, read_journal
from tests.soak.kills import home_problems

RESULTS = Path(__file__).parent.parent.parent / "benchmarks" / "results" / "soak_crowd.json"
OTHER_HOST, SLOW_FLUSH_S = "other-host", 0.1
READERS = (
    ("query", "select model, count(*) as n from evals group by model", "--json"),
    ("plan", "--json"),
    ("verify", "--json"),
    ("query", "from ranking", "--json"),
    ("report", "--json"),
)
_NOT_YET = ("no results in", "SQL refused: Catalog Error")


def build_as_a_daemon(recipe: Path, home: Path, journal: Path, output: Path, host: str) -> None:
    """Bring a home up to date without its run lock, from a host of this name."""
    with output.open("ab") as stream:
        for number in (1, 2):
            os.dup2(stream.fileno(), number)
    import torch

    torch.set_num_threads(1)
    socket.gethostname = lambda: host
    from apriel_assets import cli, interrupts
    from apriel_assets.workspace import open_workspace

    if host == OTHER_HOST:
        fsync = os.fsync
        os.fsync = lambda handle: (time.sleep(SLOW_FLUSH_S), fsync(handle))[1]
    with (
        builds_told(Journal(journal)),
        interrupts.caught(),
        cli.exit_codes(),
        open_workspace(str(recipe), home) as workspace,
    ):
        workspace.run()


class Crowd:
    """Builders and readers of one home."""

    def __init__(self, recipe: Path, home: Path, scratch: Path, seed: int) -> None:
        self.recipe, self.home, self.scratch, self.lot = recipe, home, scratch, random.Random(seed)
        self._forks = multiprocessing.get_context("forkserver")
        self._forks.set_forkserver_preload(PRELOADED)
        self._started = 0
        self.builders: dict[str, Any] = {}
        self.read: Counter[str] = Counter()
        self.kills: Counter[str] = Counter()
        self.problems: list[str] = []

    def _start(self, target: Any, *given: Any, **named: Any) -> Any:
        self._started += 1
        journal, output = (self.scratch / f"{self._started}.{kind}" for kind in ("journal", "output"))
        process = self._forks.Process(target=target, args=(*given, journal, output), kwargs=named)
        process.start()
        process.output = output  # type: ignore[attr-defined]
        return process

    def start_builder(self, name: str) -> None:
        """Start one that is not there; `run` is the command, the others are as a daemon's runs."""
        if name == "run":
            arguments = ["run", "--recipe", str(self.recipe), "--home", str(self.home), "--json"]
            own = self._start(live, arguments, records_syncs=False)
        else:
            own = self._start(build_as_a_daemon, self.recipe, self.home, host=name)
        self.builders[name] = own

    def look_after_builders(self) -> bool:
        """Start again what was killed; return whether every builder came to its end."""
        for name, own in self.builders.items():
            if own.exitcode == -signal.SIGKILL:
                self.start_builder(name)
            elif own.exitcode not in (None, 0):
                said = own.output.read_text()[-1500:]
                raise AssertionError(f"builder {name} ended with {own.exitcode}: {said}")
        return all(own.exitcode == 0 for own in self.builders.values())

    def kill_one(self) -> None:
        """Kill some builder that is at work."""
        working = [name for name, own in self.builders.items() if own.is_alive()]
        if working:
            name = self.lot.choice(working)
            self.builders[name].kill()
            self.builders[name].join()
            self.kills[name] += 1

    def read_once(self) -> None:
        """Carry out a reader's command to its end."""
        words = READERS[self.read.total() % len(READERS)]
        recipe = ["--recipe", str(self.recipe)] if words[0] in ("plan", "report") else []
        own = self._start(live, [*words, *recipe, "--home", str(self.home)], records_syncs=False)
        own.join(900)
        said = own.output.read_text()
        self.read[words[0]] += 1
        if own.exitcode != 0 and not (own.exitcode == 2 and any(text in said for text in _NOT_YET)):
            self.problems.append(f"{' '.join(words)} ended with {own.exitcode}: {said[-1500:]}")
        elif "Traceback" in said:
            self.problems.append(f"{' '.join(words)} said: {said[-1500:]}")

    def twice_built(self) -> list[str]:
        """Return the artifacts that more than one builder finished."""
        ends = Counter(
            f"{own['asset']}/{own['address']}"
            for path in self.scratch.glob("*.journal")
            for own in read_journal(path)
            if own["event"] == "end"
        )
        return sorted(name for name, count in ends.items() if count > 1)


def gather(recipe: Path, scratch: Path, kills: int, seed: int) -> dict[str, Any]:
    """Let the crowd work until all builders have come to their end; return what was found."""
    from apriel_assets.recipe import load_recipe
    from tests.soak.same_tables import differing_tables

    (scratch / "whole").mkdir(parents=True, exist_ok=True)
    alone = Crowd(recipe, scratch / "undisturbed", scratch / "whole", seed)
    if not alone.home.exists():  # else of an earlier soak in the same place
        alone.start_builder("run")
        alone.builders["run"].join()
        assert alone.builders["run"].exitcode == 0, alone.builders["run"].output.read_text()
    crowd = Crowd(recipe, scratch / "home", scratch, seed)
    for name in ("run", "this-host", OTHER_HOST):
        crowd.start_builder(name)
    next_kill = time.monotonic() + crowd.lot.uniform(2, 20)
    try:
        while not crowd.look_after_builders():
            crowd.read_once()
            if time.monotonic() > next_kill and crowd.kills.total() < kills:
                crowd.kill_one()
                next_kill = time.monotonic() + crowd.lot.uniform(2, 20)
    finally:
        for own in crowd.builders.values():
            own.kill()
    problems, artifacts = home_problems(crowd.home)
    different = differing_tables(alone.home, crowd.home, load_recipe(str(recipe)).name)
    return {
        "kills": dict(crowd.kills),
        "reads": dict(crowd.read),
        "artifacts": artifacts,
        "problems": [*crowd.problems, *problems, *different],
        "built_twice": crowd.twice_built(),
    }


def main() -> int:
    """Gather, write the result file; 1 if anything was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--scratch", type=Path, help="where homes are made; kept if given")
    given = parser.parse_args()
    from tests.soak.soak_recipe import write_soak_recipe

    scratch = given.scratch or Path(tempfile.mkdtemp(prefix="apriel-crowd-"))
    recipe = scratch / "soak.yaml"
    found = gather(
        recipe if recipe.exists() else write_soak_recipe(scratch), scratch, given.kills, given.seed
    )
    report = {"command": f"python -m tests.soak.crowd --kills {given.kills} --seed {given.seed}", **found}
    given.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    failed = bool(found["problems"] or found["built_twice"])
    if not failed and not given.scratch:
        shutil.rmtree(scratch)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
