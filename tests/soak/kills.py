"""Kill `apriel run` at random moments, over and over, and look whether anything is lost, torn or done twice.

    python -m tests.soak.kills --kills 200
    python -m tests.soak.kills --kills 200 --recipe quickstart --mean 4

Each life of the run ends by SIGKILL, by SIGTERM or by a power cut (SIGKILL, then everything that was not flushed is
lost by lot), until one gets to the end; then the next round begins with an empty home. After each life the whole home
is verified. After each round its tables are compared with those of a run that nobody disturbed, and its journals say
what was done more than once. Lives are as long as atoms': each moment of them is as likely the last as any other, most
from the first thing that they build on, some from their start. A step that always begins again would never end so:
after a life that left nothing behind to go on from, the next one's mean is twice as long, and after three of them the
clock of the next begins when it has left something. Lives are counted in processor seconds, so that a busy machine does
not move the ends to the start. They are forked from a process that has loaded torch already; `--start exec` loads it
each time.

A recipe that measures costs leads each run elsewhere. There a round is compared with an undisturbed run that was given
the round's costs (`measured_costs.py`).
"""

import argparse
import contextlib
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.soak.killed_run import read_journal
from tests.soak.lives import ENDS, Driver, Life
from tests.soak.measured_costs import measures_costs, with_costs_of
from tests.soak.repeated_work import repeated_work

RESULTS = Path(__file__).parent.parent.parent / "benchmarks" / "results" / "soak_kills.json"

_FRUITLESS = 3  # lives in a row that may leave nothing behind


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


def visible(home: Path) -> set[tuple[str, str]]:
    """Return the asset and address of every artifact that a reader would find."""
    found = home.glob("artifacts/**/provenance.json")
    own = [path.parent.relative_to(home / "artifacts") for path in found]
    return {(str(path.parent), path.name) for path in own if not path.name.startswith(".")}


def footholds(home: Path) -> set[tuple[str, int]]:
    """Return what a further run goes on from: artifacts, saved training states, kept scores, by name and size."""
    patterns, found = ("artifacts/**/provenance.json", "work/**/step-*/state.json", "scores/**/*.*"), set()
    for path in (path for pattern in patterns for path in home.glob(pattern)):
        with contextlib.suppress(FileNotFoundError):  # replaced just now
            found.add((str(path), path.stat().st_size))
    return found


def leaving(home: Path, held: set[tuple[str, int]]) -> Callable[[], bool]:
    """Return what tells whether there is more to go on from by now."""
    return lambda: bool(footholds(home) - held)


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
    """Kill a run on an empty home until it gets to its end, and compare what it did with the undisturbed one."""
    lives = killed_lives(driver, home, found, mean_s, most_kills)
    found.rounds += 1
    repeated = repeated_work(driver.recipe, lives, undisturbed)
    found.repeated_steps += repeated.steps
    found.most_repeated_steps_per_kill = max(found.most_repeated_steps_per_kill, repeated.most_per_kill)
    found.problems += repeated.problems


def killed_lives(driver: Driver, home: Path, found: Findings, mean_s: float, most_kills: int) -> list[Life]:
    """Kill a run on an empty home until it gets to its end, or there were enough kills: then let it end."""
    lives: list[Life] = []
    fruitless = 0
    while not lives or lives[-1].end != "none":
        before, held = visible(home), footholds(home)
        end = driver.lot.choice(ENDS) if found.kills.total() < most_kills else None
        patient = fruitless == _FRUITLESS
        moment_s = driver.lot.expovariate(1 / (mean_s if patient else mean_s * 2**fruitless))
        life = driver.live(home, end, moment_s, leaving(home, held) if patient else None)
        lives.append(life)
        again = {(own["asset"], own["address"]) for own in life.events if own["event"] == "begin"} & before
        problems, artifacts = home_problems(home)
        problems = [f"after {life.end} in {life.stage}: {own}" for own in (life.problem, *problems) if own]
        problems += [f"finished and built again: {asset}/{address}" for asset, address in sorted(again)]
        _count(life, problems, artifacts, found)
        if footholds(home) - held:
            fruitless = 0
        elif life.stage not in ("start", "between"):
            fruitless = min(fruitless + 1, _FRUITLESS)
        print(
            found.kills.total(),
            life.end,
            f"after {life.seconds:.1f} s in {life.stage}",
            *problems,
            flush=True,
        )
    return lives


def _count(life: Life, problems: list[str], num_artifacts: int, found: Findings) -> None:
    found.problems += problems
    found.verified_artifacts += num_artifacts
    if life.end == "none":
        return
    found.kills[life.end] += 1
    found.stages[life.stage] += 1
    found.torn_files += life.torn_files
    found.undone_renames += life.undone_renames


def soak(driver: Driver, kills: int, mean_s: float, most_rounds: int = 10_000) -> Findings:
    """Run rounds until there were enough kills, or so many rounds; return what was found."""
    found, whole = Findings(), driver.scratch / "undisturbed"
    journal = driver.scratch / "undisturbed.journal"
    if not journal.exists():  # else of an earlier soak in the same place
        driver.live(whole, None, 0.0)
        (driver.scratch / "1.journal").rename(journal)
    undisturbed = [Life("none", 0, 0.0, "between", read_journal(journal))]
    while found.kills.total() < kills and found.rounds < most_rounds:
        home = driver.scratch / f"round-{found.rounds}"
        one_round(driver, home, found, mean_s, kills, undisturbed)
        found.problems += compared(driver, whole, home)
        again = driver.live(home, None, 0.0)
        if any(own["event"] == "begin" for own in again.events):
            found.problems.append(f"{home.name}: a further run built something")
        if found.problems:
            break  # the home stays as it is, to be looked at
        shutil.rmtree(home)
    return found


def compared(driver: Driver, undisturbed: Path, home: Path) -> list[str]:
    """Return in which tables a round differs from an undisturbed run, with the same costs if they were measured."""
    from apriel_assets.recipe import load_recipe
    from tests.soak.same_tables import differing_tables

    if measures_costs(undisturbed):
        undisturbed = with_costs_of(undisturbed, home, driver.scratch / f"{home.name}-undisturbed")
        driver.live(undisturbed, None, 0.0)
    different = differing_tables(undisturbed, home, load_recipe(str(driver.recipe)).name)
    return [f"{home.name}: not as undisturbed: {table}" for table in different]


def main() -> int:
    """Soak, write the result file; 1 if anything was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--recipe", type=Path, help="file or shipped name; default: a tiny one that has every stage"
    )
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
    recipe = "" if given.recipe is None else f" --recipe {given.recipe.name}"
    if given.recipe is None:
        from tests.soak.soak_recipe import write_soak_recipe

        given.recipe = write_soak_recipe(scratch)
    began = time.monotonic()
    found = soak(Driver(given.recipe, scratch, seed=given.seed, start=given.start), given.kills, given.mean)
    report = {
        "command": f"python -m tests.soak.kills --kills {given.kills} --seed {given.seed} --mean {given.mean:g} "
        f"--start {given.start}{recipe}",
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
