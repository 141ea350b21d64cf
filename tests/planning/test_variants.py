"""Variants of a recipe: what they share, what they build, what an edit damages, where their rows are."""

import json
import shutil

import pytest
import yaml
from written import artifacts_written, files_of

from apriel_assets.definitions import plan_assets, variant_assets
from apriel_assets.recipe import load_recipe
from apriel_assets.workspace import open_workspace
from resources.lake import Lake

SHORT = {"sft": None, "merge": None}
VARIANTS = {
    "forward_kl": {"h1": {"schedule": [1], "distill": {"loss": "forward_kl"}, **SHORT}},
    "more_steps": {"h1": {"schedule": [1], "distill": {"steps": 3}, **SHORT}},
}
OWN = {
    "forward_kl/h1/h1",
    "forward_kl/evals/h1",
    "forward_kl/throughput/h1",
    "forward_kl/ablation",
}
SHARED = {"teacher", "traces", "layer_scores", "evals/h1", "throughput/teacher"}


def with_variants(file, path, variants=VARIANTS, **changes):
    content = yaml.safe_load(file.read_text()) | {"variants": variants} | changes
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def recipe(tiny_recipe_file, tmp_path_factory):
    return with_variants(tiny_recipe_file, tmp_path_factory.mktemp("variants") / "tiny.yaml")


@pytest.fixture(scope="module")
def made(recipe, world, tmp_path_factory):
    """A home with the recipe and one of its variants up to date, what ran, and which artifacts it wrote."""
    home = shutil.copytree(world, tmp_path_factory.mktemp("varied") / "home")
    before = files_of(home)
    with open_workspace(str(recipe), home, write=True) as workspace:
        assert workspace.plan().rows == ()  # a variant is not made until it is asked for
        ran = [row.asset for row in workspace.run(variants=["forward_kl"])]
    return home, ran, artifacts_written(home, before)


def test_a_variant_builds_what_it_changes_and_nothing_else(made):
    _home, ran, written = made
    assert set(ran) == OWN
    assert written == {"h1/h1", "evals/h1", "throughput/h1", "forward_kl/ablation"}


def test_nothing_is_left_to_do_for_it_and_for_the_recipe(made, recipe):
    home, *_ = made
    with open_workspace(str(recipe), home) as workspace:
        assert workspace.plan(workspace.selection(None, None, ["forward_kl"])).rows == ()
        assert workspace.plan().rows == ()
        other = {row.asset for row in workspace.plan(workspace.selection(None, None, ["more_steps"])).rows}
    assert other == {key.replace("forward_kl", "more_steps") for key in OWN}


def test_its_artifacts_are_those_of_the_recipe_with_the_overlay(made, recipe):
    home, *_ = made
    overlays = ["h1.schedule=[1]", "h1.distill.loss=forward_kl", "h1.sft=null", "h1.merge=null"]
    with open_workspace(str(recipe), home, [*overlays, "variants={}"]) as workspace:
        rows = {row.asset: row for row in workspace.plan(workspace.selection(["h1/h1"], None)).rows}
    assert rows.keys() == {"h1/h1"}
    assert rows["h1/h1"].expected_from == "stored"


def test_two_variants_share_what_they_have_in_common(made, tiny_recipe_file, tmp_path):
    home = shutil.copytree(made[0], tmp_path / "home")
    overlay = VARIANTS["forward_kl"]
    deeper = {"h1": {**overlay["h1"], "schedule": [1, 2]}}
    recipe = with_variants(
        tiny_recipe_file, tmp_path / "tiny.yaml", {"forward_kl": overlay, "deeper": deeper}
    )
    with open_workspace(str(recipe), home) as workspace:
        plan = workspace.plan(workspace.selection(None, None, ["deeper"]))
    by_asset = {row.asset: row.expected_from for row in plan.rows}
    assert by_asset["deeper/h1/h1"] == by_asset["deeper/evals/h1"] == "stored"
    assert by_asset["deeper/h1/h2"] != "stored"


def stale(recipe, home, variant=None):
    with open_workspace(str(recipe), home) as workspace:
        plan = workspace.plan(workspace.selection(None, None, [variant] if variant else []))
        return {row.asset for row in plan.rows} | set(plan.downstream)


def test_an_edit_of_a_variant_damages_it_alone(made, tiny_recipe_file, tmp_path):
    edited = {
        **VARIANTS,
        "forward_kl": {"h1": {**VARIANTS["forward_kl"]["h1"], "probe_steps": 5, "init": "random"}},
    }
    recipe = with_variants(tiny_recipe_file, tmp_path / "tiny.yaml", edited)
    assert stale(recipe, made[0]) == set()
    assert stale(recipe, made[0], "forward_kl") == OWN


def test_an_edit_of_the_recipe_damages_what_depends_on_it_in_both(made, recipe, tiny_recipe_file, tmp_path):
    content = yaml.safe_load(tiny_recipe_file.read_text())
    h1 = {**content["h1"], "init": "random"}
    edited = with_variants(tiny_recipe_file, tmp_path / "tiny.yaml", h1=h1)
    assert stale(edited, made[0], "forward_kl") == OWN | {"h1/h1", "evals/h1"}
    later = {**content["h1"], "steps": {"h3": {"distill": {"steps": 3}}}}
    edited = with_variants(
        tiny_recipe_file,
        tmp_path / "later.yaml",
        {"forward_kl": {"h1": {**VARIANTS["forward_kl"]["h1"], "steps": None}}},
        h1=later,
    )
    assert stale(edited, made[0], "forward_kl") == set()
    assert "h1/h3" in stale(edited, made[0])


def test_rows_carry_the_variant_and_leave_the_recipes_alone(made, world):
    lake = Lake(made[0])
    assert (
        lake.read("evals", "tiny").sort_by("value").equals(Lake(world).read("evals", "tiny").sort_by("value"))
    )
    for table in (
        "evals",
        "eval_samples",
        "training",
        "checkpoints",
        "throughput",
        "leaderboard",
        "ablations",
    ):
        _, rows = lake.query(f"SELECT DISTINCT model, variant FROM {table} WHERE variant IS NOT NULL")
        assert rows == [("forward_kl/h1", "forward_kl")], table
    _, assets = lake.query("SELECT asset FROM builds WHERE variant = 'forward_kl' ORDER BY asset")
    assert {asset for (asset,) in assets} == OWN
    (row,) = lake.arrow("FROM checkpoints WHERE variant = 'forward_kl'").to_pylist()
    assert row["parent"] == "teacher"
    assert (made[0] / row["path"] / "config.json").is_file()
    (gain,) = lake.arrow("FROM step_gains WHERE model = 'forward_kl/h1'").to_pylist()
    assert gain["layers_replaced"] == 1
    assert gain["gpu_minutes"] > 0


def test_its_differences_are_those_that_compare_finds(made, apriel):
    code, out, _ = apriel("compare", "forward_kl/h1", "h1", "--home", made[0], "--json")
    assert code == 0
    found = {(row["task"], row["metric"]): row for row in json.loads(out)["rows"]}
    rows = Lake(made[0]).read("ablations", "tiny", variants=True).to_pylist()
    assert rows
    for row in rows:
        same = found[row["task"], row["metric"]]
        assert [row[key] for key in ("value", "base_value", "difference", "low", "high", "p_value")] == [
            same[key] for key in ("a", "b", "difference", "low", "high", "p_value")
        ]
    assert {row["model"] for row in rows} == {"forward_kl/h1"}
    assert {row["base_model"] for row in rows} == {"h1"}


def test_its_rows_stay_with_the_recipe_and_go_with_the_variant(made, recipe, tiny_recipe_file, tmp_path):
    home = shutil.copytree(made[0], tmp_path / "home")
    with open_workspace(str(recipe), home, write=True) as workspace:
        assert workspace.run() == []
    assert Lake(home).read("ablations", "tiny", variants=True).num_rows
    with open_workspace(str(tiny_recipe_file), home, write=True) as workspace:
        assert workspace.run() == []
    assert not Lake(home).read("ablations", "tiny", variants=True).num_rows


def test_a_command_runs_it_by_name_and_refuses_another(recipe, made, apriel):
    code, out, _ = apriel("plan", "--recipe", recipe, "--home", made[0], "--variants", "--json")
    assert code == 0
    assert {row["asset"].split("/")[0] for row in json.loads(out)["rows"]} == {"more_steps"}
    code, out, _ = apriel(
        "plan",
        "--recipe",
        recipe,
        "--home",
        made[0],
        "--variant",
        "more_steps",
        "--select",
        "h1/h1",
        "--json",
    )
    assert code == 0
    assert [row["asset"] for row in json.loads(out)["rows"]] == ["more_steps/h1/h1"]
    code, _, err = apriel("run", "--recipe", recipe, "--home", made[0], "--variant", "forward_kll")
    assert (code, err.count("\n")) == (2, 1)
    assert "did you mean forward_kl?" in err
    code, _, err = apriel("plan", "--recipe", recipe, "--home", made[0], "--select", "*")
    assert code == 0


def test_order_of_keys_changes_no_address(tiny_recipe_file, tmp_path):
    def versions(recipe):
        loaded = load_recipe(str(recipe))
        return {key: own.code_version for key, own in variant_assets(loaded, plan_assets(loaded)).items()}

    plain = with_variants(tiny_recipe_file, tmp_path / "one.yaml", name="tiny")
    turned = {
        name: {key: dict(reversed(list(own.items()))) for key, own in overlay.items()}
        for name, overlay in reversed(VARIANTS.items())
    }
    other = with_variants(tiny_recipe_file, tmp_path / "other.yaml", turned, name="tiny")
    text = yaml.safe_load(other.read_text())
    other.write_text(yaml.safe_dump(text, sort_keys=False))
    assert versions(plain) == versions(other)
    assert versions(plain).keys() >= OWN
