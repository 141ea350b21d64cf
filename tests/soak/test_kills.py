"""The short version of the kill driver: a few kills of each kind, of a run up to its first trained checkpoint."""

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest

from resources.atomic import created_directory, replaced_file
from tests.soak.killed_run import Journal, read_journal
from tests.soak.kills import Findings, killed_lives, soak, visible
from tests.soak.lives import ENDS, Driver, Life
from tests.soak.measured_costs import with_costs_of
from tests.soak.power_loss import lose_power, syncs_told
from tests.soak.soak_recipe import write_soak_recipe

FORKED = multiprocessing.get_context("fork")


def test_a_run_that_is_killed_again_and_again_ends_as_if_it_had_not(tmp_path):
    recipe = write_soak_recipe(tmp_path, steps=6, save_every=2)
    driver = Driver(recipe, tmp_path, seed=3, select="h1/h1")
    found = soak(driver, kills=2, mean_s=2.0, most_rounds=1)
    assert found.problems == []
    assert found.kills.total() > 0
    assert set(found.kills) <= set(ENDS)


def write_artifacts(home: Path, **inputs: list[str]) -> None:
    for asset, own in inputs.items():
        path = home / "artifacts" / asset.replace("_of_", "/") / "a1"
        path.mkdir(parents=True)
        content = {"home": home.name, "inputs": dict.fromkeys(own, "version")}
        (path / "provenance.json").write_text(json.dumps(content))


def test_what_follows_from_costs_is_built_anew_from_the_costs_of_another(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    followers = {"model": ["costs/gdn"], "search": ["model@0.5", "traces"], "evals_of_b": ["search@0.5"]}
    write_artifacts(
        one, costs_of_gdn=["teacher"], teacher=[], traces=[], evals_of_teacher=["teacher"], **followers
    )
    write_artifacts(other, costs_of_gdn=["teacher"], teacher=[])
    home = with_costs_of(one, other, tmp_path / "home")
    kept = {
        own.parent.parent.name: json.loads(own.read_text())["home"] for own in home.rglob("provenance.json")
    }
    assert kept == {"gdn": "other", "teacher": "one", "traces": "one"}
    assert {asset for asset, _ in visible(home)} == {"costs/gdn", "teacher", "traces", "evals/teacher"}


def test_a_step_that_is_longer_than_lives_comes_to_its_end(tmp_path):
    """Lives that leave nothing behind do not go on for ever: after three the next one is let get on."""
    asked, home = [], tmp_path / "home"

    class MadeUp:
        recipe, lot = tmp_path, random.Random(0)

        def live(self, home, end, moment_s, begun=None):
            asked.append((moment_s, begun is not None))
            if begun is not None:
                (home / "artifacts" / "long" / "a1").mkdir(parents=True)
                (home / "artifacts" / "long" / "a1" / "provenance.json").write_text("{}")
                assert begun()
                return Life("none", 0, 1.0, "between", [])
            return Life("kill", -9, 1.0, "long", [])

    home.mkdir()
    lives = killed_lives(MadeUp(), home, Findings(), mean_s=1.0, most_kills=100)
    assert [life.end for life in lives] == ["kill"] * 3 + ["none"]
    assert [patient for _, patient in asked] == [False] * 3 + [True]


def whole(path: Path) -> None:
    number = 0
    while True:
        number += 1
        with replaced_file(path / "table") as temporary:
            temporary.write_bytes(number.to_bytes(2, "big") * 4000)
        with created_directory(path / f"artifact-{number}") as temporary:
            (temporary / "weights").write_bytes(bytes([number % 256]) * 9000)


def careless(path: Path) -> None:
    number = 0
    while True:
        number += 1
        (path / "draft").write_bytes(number.to_bytes(2, "big") * 4000)
        os.replace(path / "draft", path / "table")


def written_until_killed(write, home: Path, journal: Path) -> None:
    with syncs_told(Journal(journal).write):
        write(home)


def after_power_loss(write, home: Path, journal: Path, lot: random.Random) -> int:
    """Let a process write, kill it at some moment, lose power; return how many files were torn."""
    journal.unlink(missing_ok=True)
    since_ns = time.time_ns()
    writer = FORKED.Process(target=written_until_killed, args=(write, home, journal))
    writer.start()
    wanted = lot.randrange(2, 40)
    while len(read_journal(journal)[:wanted] if journal.exists() else []) < wanted:
        time.sleep(0.001)
    os.kill(writer.pid or 0, signal.SIGKILL)
    writer.join()
    return lose_power(home, read_journal(journal), since_ns, lot)["torn_files"]


def is_whole(home: Path) -> bool:
    table = home / "table"
    content = table.read_bytes() if table.exists() else None
    artifacts = [path.read_bytes() for path in home.glob("artifact-*/weights")]
    return (content is None or content == content[:2] * 4000 != b"\0\0" * 4000) and all(
        own == own[:1] * 9000 for own in artifacts
    )


@pytest.mark.parametrize(("write", "expected"), [(whole, True), (careless, False)])
def test_only_what_was_flushed_before_its_rename_outlives_a_power_cut(write, expected, tmp_path):
    lot, seen = random.Random(1), []
    for _ in range(12 if expected else 30):
        after_power_loss(write, tmp_path, tmp_path.with_suffix(".journal"), lot)
        seen.append(is_whole(tmp_path))
        (tmp_path / "table").unlink(missing_ok=True)
    assert all(seen) == expected
