"""What the UI shows of every asset of the shipped recipe before anything is built."""

import inspect
from datetime import timedelta
from pathlib import Path

import pytest

from apriel_assets.assets.described import column_schema, description
from apriel_assets.assets.materialize import to_dagster
from apriel_assets.definitions import all_assets, build_defs, plan_assets
from apriel_assets.recipe import Recipe, load_recipe
from apriel_assets.tables.schemas import TABLES


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe("quickstart", ["owners=['team:research', 'who@example.org']"])


@pytest.fixture(scope="module")
def plans(recipe):
    return plan_assets(recipe)


@pytest.fixture(scope="module")
def specs(recipe, tmp_path_factory):
    defs = build_defs(recipe, tmp_path_factory.mktemp("home"))
    return {spec.key.to_user_string(): spec for spec in defs.resolve_all_asset_specs()}


def test_every_asset_says_what_it_is_made_from_and_what_it_reads(plans):
    for key, plan in plans.items():
        text = description(plan)
        assert text.split("\n\n")[0].strip(), key
        assert ("Made from" in text) == bool(plan.inputs), key
        assert all(f"`{name}`" in text for name in plan.reads), key
    assert "`teacher`, `traces`" in description(plans["layer_scores"])
    assert " more." in description(plans["report"])


def test_every_asset_has_owners_tags_kinds_and_a_group(specs, recipe):
    for key, spec in specs.items():
        assert list(spec.owners) == list(recipe.owners), key
        assert spec.tags["procedure"] in ("progressive", "search", "both"), key
        assert spec.tags["recipe"] == "quickstart", key
        assert spec.kinds, key
        assert spec.group_name != "default", key
    assert specs["h1/merge"].tags["procedure"] == "progressive"
    assert specs["supernet"].tags["procedure"] == "search"


def test_code_references_lead_to_the_builder(specs, plans):
    for key, plan in plans.items():
        (source,) = specs[key].metadata["dagster/code_references"].code_references
        assert Path(source.file_path) == Path(inspect.getsourcefile(plan.build)).resolve(), key
        line = Path(source.file_path).read_text().splitlines()[source.line_number - 1]
        assert line.startswith(f"def {plan.build.__name__}("), key


def test_columns_have_types_and_meaning(specs):
    columns = specs["evals/teacher"].metadata["dagster/column_schema"].columns
    assert [(column.name, column.description) for column in columns] == [
        # Angle brackets would be taken for HTML; as code they are shown.
        (name, meaning.replace("h<k>", "`h<k>`").replace("b<budget>", "`b<budget>`"))
        for name, (_, meaning) in TABLES["evals"].items()
    ]
    assert {column.type for column in columns} == {"string", "double", "int64"}
    assert column_schema("evals") is column_schema("evals")


def test_assets_name_the_tables_that_they_wrote(world, tiny_recipe_file):
    for key, plan in plan_assets(load_recipe(str(tiny_recipe_file))).items():
        for path in (world / "artifacts" / key).glob("*/provenance.json"):
            written = {table.stem for table in path.parent.glob("tables/*.parquet")}
            assert written == set(plan.tables), key


def test_owners_change_no_code_version(plans):
    other = plan_assets(load_recipe("quickstart"))
    assert {key: plan.code_version for key, plan in plans.items()} == {
        key: plan.code_version for key, plan in other.items()
    }


@pytest.mark.parametrize("owner", ["modelling", "team:", "team:a b", "someone@", "a@b"])
def test_bad_owner_is_refused(owner):
    from apriel_assets.errors import UserError

    with pytest.raises(UserError, match="owners"):
        load_recipe("quickstart", [f"owners=['{owner}']"])


def test_checks_are_listed_before_anything_is_built(recipe, tmp_path):
    graph = build_defs(recipe, tmp_path).resolve_asset_graph()
    names = {(key.asset_key.to_user_string(), key.name) for key in graph.asset_check_keys}
    assert {
        ("supernet", "all_fa_equals_teacher"),
        ("matryoshka", "placements_equal_supernet"),
        ("h1/h6", "loss_is_finite"),
        ("h1/merge", "checkpoint_loads"),
        ("evals/teacher", "rows_complete"),
        ("leaderboard", "every_model_and_task"),
        ("placements", "ess_above_floor"),
    } <= names


def test_what_is_evaluated_on_a_schedule_is_overdue_after_a_missed_tick():
    recipe = load_recipe("quickstart", ["evals.cron='0 3 * * *'"])
    policies = {
        key: next(iter(to_dagster(plan).specs)).freshness_policy for key, plan in all_assets(recipe).items()
    }
    due = {key: policy for key, policy in policies.items() if policy is not None}
    assert due.keys() == {key for key in policies if "reevals/" in key} != set()
    assert {(own.deadline_cron, own.lower_bound_delta) for own in due.values()} == {
        ("0 3 * * *", timedelta(days=1))
    }
