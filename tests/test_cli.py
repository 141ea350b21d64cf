"""The commands as a user types them: answers, one-line errors, exit codes."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import yaml


@pytest.fixture
def home(world, tmp_path):
    return shutil.copytree(world, tmp_path / "home")


def test_second_run_does_nothing(apriel, home, tiny_recipe_file):
    code, out, _ = apriel("run", "--recipe", tiny_recipe_file, "--home", home, "--json")
    assert (code, json.loads(out)["ran"]) == (0, [])


def test_run_that_does_nothing_keeps_the_page_unless_a_table_is_another(apriel, home, tiny_recipe_file):
    def run(*more):
        assert apriel("run", "--recipe", tiny_recipe_file, "--home", home, *more)[0] == 0
        return (home / "report.html").stat().st_mtime_ns

    written = run()
    assert run() == written
    os.utime(next(home.glob("lake/evals/tiny/*.parquet")), (1, 1))  # by a clock that was set back
    assert run() > written


def test_plan_is_empty_when_up_to_date_and_full_on_an_empty_home(apriel, home, tiny_recipe_file, tmp_path):
    code, out, _ = apriel("plan", "--recipe", tiny_recipe_file, "--home", home, "--json")
    nothing = {"seconds": 0, "gpu_seconds": 0, "unknown": 0}
    empty = {"rows": [], "downstream": [], "totals": nothing, "downstream_totals": nothing}
    assert (code, json.loads(out)) == (0, empty)
    code, out, _ = apriel("plan", "--recipe", tiny_recipe_file, "--home", tmp_path / "new", "--json")
    rows = json.loads(out)["rows"]
    assert code == 0
    assert {row["reason"] for row in rows} == {"never built"}
    assert {row["asset"] for row in rows} >= {
        "teacher",
        "layer_scores",
        "h1/h3",
        "h1/merge",
        "leaderboard",
        "report",
    }
    assert set(rows[0]) == {
        "asset",
        "partition",
        "reason",
        "seconds",
        "gpu_seconds",
        "expected_from",
        "blocked",
    }


def test_dry_run_shows_the_plan_of_what_it_would_run_and_touches_nothing(apriel, home, tiny_recipe_file):
    edit = ("--set", "h1.schedule=[1,2,3,4]", "--set", "search.beam=3")
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*") if path.is_file()}
    arguments = ("--recipe", tiny_recipe_file, "--home", home, *edit, "--until", "h1/h4", "--json")
    code, out, _ = apriel("run", "--dry-run", *arguments)
    assert {row["asset"] for row in json.loads(out)["rows"]} == {"h1/probes/h4", "h1/h4", "placements"}
    assert (code, out) == (0, apriel("plan", *arguments)[1])
    after = {path: path.stat().st_mtime_ns for path in home.rglob("*") if path.is_file()}
    assert {
        path for path in after if before.get(path) != after[path] and "dagster" not in path.parts
    } == set()


def test_until_runs_up_to_the_asset_and_what_is_beside_it(apriel, home, tiny_recipe_file):
    edit = ("--set", "h1.merge.weight=0.25", "--set", "release.names={90: fast}")
    code, out, _ = apriel(
        "run", "--recipe", tiny_recipe_file, "--home", home, *edit, "--until", "h1/merge,matryoshka", "--json"
    )
    assert (code, json.loads(out)["ran"]) == (0, [["h1/merge", None], ["matryoshka", None]])
    code, _, err = apriel("run", "--recipe", tiny_recipe_file, "--home", home, "--until", "h1/h9")
    assert (code, "--until h1/h9: no asset" in err) == (2, True)


@pytest.mark.parametrize("output", ["table", "json", "csv"])
def test_query_formats(apriel, home, output):
    code, out, _ = apriel("query", "select * from evals limit 5", "--home", home, "--format", output)
    assert code == 0
    assert "accuracy" in out
    if output == "json":
        assert len(json.loads(out)) == 5


def test_report_is_one_file_that_needs_no_network(apriel, home, tiny_recipe_file):
    code, out, _ = apriel("report", "--recipe", tiny_recipe_file, "--home", home)
    page = Path(out.strip()).read_text()
    assert code == 0
    assert "merge" in page
    for loader in ('src="http', 'href="http://', "@import", "url(http"):
        assert loader not in page


BAD_RECIPES = {
    "unknown key": (["h1.shedule=[1]"], "did you mean schedule"),
    "unknown section": (["h2.x=1"], "h2"),
    "unknown key in a config": (["h1.distill.step=3"], "did you mean steps"),
    "unknown key of a step": (["h1.steps.h2.distill.step=3"], "did you mean steps"),
    "step that is not there": (["h1.steps.h9.distill.steps=3"], "h9"),
    "schedule not increasing": (["h1.schedule=[2,2]"], "increasing"),
    "schedule beyond the layers": (["h1.schedule=[1,2,9]"], "the teacher has 4"),
    "layers that do not exist": (["h1.order=[0,1,7]"], "7"),
    "a layer twice": (["h1.order=[0,1,1,2]"], "names a layer twice"),
    "order shorter than the schedule": (["h1.order=[0,1]"], "too few layers"),
    "pinned layer that does not exist": (["search.allocations.pinned={9: fa}"], "layers 0 to 3"),
    "pinned to a mixer that is not held": (["search.allocations.pinned={0: mamba}"], "supernet holds"),
    "unknown cost table": (["costs.table=nope"], "is no cost table"),
    "budget that is no number": (["search.budgets=[.nan]"], "positive numbers"),
    "name of a budget that is not there": (["search.budgets=[50.0]"], "drop that name"),
    "name with other letters": (["release.names={90.0: höher}"], "letters, digits"),
    "name of another model": (["release.names={90.0: teacher}"], "name of another model"),
    "supernet without full attention": (["supernet.mixers=[swa,gdn]"], "lacks fa"),
    "search without supernet": (["supernet=null"], "search needs supernet"),
    "store that cannot weigh": (["store.temperature=0.7"], "temperature 1"),
    "kept layer that does not exist": (["h1.keep_attention=[8]"], "8"),
    "unknown task": (["tasks.train=[recal]"], "recall"),
    "not a number": (["h1.distill.steps=many"], "steps"),
    "no key": (["h1.distill.steps"], "section.key=value"),
    "teacher that is not there": (["teacher.model=/no/such/model"], "/no/such/model"),
}


@pytest.mark.parametrize("case", BAD_RECIPES)
def test_bad_recipe_is_one_line_and_exit_2(case, apriel, home, tiny_recipe_file):
    overlays, expected = BAD_RECIPES[case]
    before = sorted(home.glob("artifacts/**/provenance.json"))
    arguments = [word for overlay in overlays for word in ("--set", overlay)]
    code, out, err = apriel("run", "--recipe", tiny_recipe_file, "--home", home, *arguments, "--json")
    assert (code, out) == (2, "")
    assert expected in err
    assert len(err.strip().splitlines()) == 1
    assert "Traceback" not in err
    assert set(before) <= set(home.glob("artifacts/**/provenance.json"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "--recipe", "nope"], "quickstart"),
        (["run", "--no-such-option"], "no-such-option"),
        (["frobnicate"], "frobnicate"),
        (["query", "select 1", "--format", "xml"], "table, json, csv"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_2(arguments, expected, apriel, tmp_path):
    code, _, err = (
        apriel(*arguments, "--home", tmp_path / "h") if arguments[0] != "frobnicate" else apriel(*arguments)
    )
    assert code == 2
    assert expected in err
    assert len(err.strip().splitlines()) == 1


def test_home_that_cannot_be_written(apriel, tiny_recipe_file, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = apriel("run", "--recipe", tiny_recipe_file, "--home", tmp_path / "file" / "home")
    assert code == 2
    assert "--home" in err


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", "has no rows"), ('{"prompt": "a", "trace": "b", "answer": "c"}\n{oops\n', "line 2")],
)
def test_bad_trace_file_names_the_line(text, expected, apriel, tiny_recipe_file, tmp_path):
    traces = tmp_path / "traces.jsonl"
    traces.write_text(text)
    overlay = f"tasks.train=[{{file: '{traces}'}}]"
    code, _, err = apriel(
        "run",
        "--recipe",
        tiny_recipe_file,
        "--home",
        tmp_path / "home",
        "--set",
        overlay,
        "--select",
        "traces",
        "--json",
    )
    assert code == 2
    assert expected in err
    assert len(err.strip().splitlines()) == 1


def test_full_disk_in_mid_run_is_one_line_and_loses_nothing(apriel, home, tiny_recipe_file, monkeypatch):
    from resources import artifact_store

    write = artifact_store.pq.write_table
    overlay = ("--set", "h1.sft.train.steps=3")

    def full(table, path):
        if "evals" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(table, path)

    monkeypatch.setattr(artifact_store.pq, "write_table", full)
    code, _, err = apriel("run", "--recipe", tiny_recipe_file, "--home", home, *overlay, "--json")
    assert code == 2
    assert "the disk takes no more" in err.splitlines()[-1]
    assert "Traceback" not in err
    monkeypatch.setattr(artifact_store.pq, "write_table", write)
    code, out, _ = apriel("run", "--recipe", tiny_recipe_file, "--home", home, *overlay, "--json")
    assert code == 0
    ran = {asset for asset, _ in json.loads(out)["ran"]}
    assert "evals/sft" in ran
    assert "h1/sft" not in ran


def test_recipes_that_ship_are_valid():
    from apriel_assets.recipe import load_recipe, shipped_recipes

    assert {"quickstart", "smollm2"} <= set(shipped_recipes())
    for name in shipped_recipes():
        recipe = load_recipe(name)
        assert yaml.safe_load(recipe.model_dump_json())["name"] == name
