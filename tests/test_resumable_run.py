"""How a call of a resumable program begins: with the home that was carried, and what other homes have."""

import argparse
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from resumable_run import Clock, Stage, bring_forward, open_home

from resources.artifact_store import ArtifactStore
from resources.packed_home import pack_home


def make_home(home, asset):
    with ArtifactStore(home).create(asset, "a1", {"recipe": "r"}) as draft:
        (draft.path / "said.txt").write_text(asset)
    (home / "dagster").mkdir()
    (home / "lake").mkdir()
    return home


def options(home, **changes):
    plain = {
        "recipe": "quickstart",
        "carry": None,
        "out": None,
        "pictures": None,
        "join": [],
        "overlays": ["mixers.mamba.kernel=torch"],
    }
    return argparse.Namespace(home=home, **{**plain, **changes})


def has(home, asset):
    return ArtifactStore(home).find(asset, "a1") is not None


def test_others_are_joined_to_the_home_that_was_carried(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pack_home(make_home(tmp_path / "first", "h1/h2"), tmp_path / "first.packed", set())
    for asset in ("supernet", "audit"):
        make_home(tmp_path / asset, asset)
    given = options(Path("home"), carry=Path("first.packed"), join=[Path("supernet"), Path("audit")])
    home = open_home(given, Clock(1))
    assert home == tmp_path / "home"
    assert all(has(home, asset) for asset in ("h1/h2", "supernet", "audit"))


def test_what_is_no_home_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_home(tmp_path / "home", "h1/h2")
    with pytest.raises(SystemExit, match=r"empty is no home with artifacts") as error:
        open_home(options(Path("home"), join=[Path("empty")]), Clock(1))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("recipe", "overlays", "said"),
    [("nope", [], "recipe nope: no such file"), ("quickstart", ["h1.schedul=[6]"], "h1.schedul")],
)
def test_a_recipe_that_is_none_is_one_line_before_anything_is_trained(tmp_path, recipe, overlays, said):
    with pytest.raises(SystemExit, match=said) as error:
        open_home(options(tmp_path / "home", recipe=recipe, overlays=overlays), Clock(1))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "home").exists()


def test_a_selection_of_nothing_is_a_line_and_no_traceback(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert (
        bring_forward(tmp_path / "home", [Stage(recipe="quickstart", select=("nope",))], Clock(1)) == "failed"
    )
    shown = capsys.readouterr()
    assert "--select nope: no asset or group of that name" in shown.out
    assert "Traceback" not in shown.out + shown.err
