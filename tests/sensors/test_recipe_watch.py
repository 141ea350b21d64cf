"""A recipe that does not load is said so in the UI; what was loaded stays, whole, also in the runs of it."""

import dagster as dg
import pytest
import yaml
from dagster._core.definitions.definitions_load_context import DefinitionsLoadContext, DefinitionsLoadType
from dagster._core.definitions.metadata.metadata_value import CodeLocationReconstructionMetadataValue
from dagster._core.definitions.repository_definition import RepositoryLoadData

from apriel_assets.definitions import code_location, plan_assets
from apriel_assets.errors import UserError
from apriel_assets.loaded_recipe import load_for_code_location
from resources.home import prepare_home


@pytest.fixture
def file(tiny_recipe_file, tmp_path, monkeypatch):
    path = tmp_path / "recipe.yaml"
    path.write_text(tiny_recipe_file.read_text())
    monkeypatch.setenv("APRIEL_RECIPE", str(path))
    return path


@pytest.fixture
def empty_home(tmp_path):
    prepare_home(tmp_path / "home")
    return tmp_path / "home"


def unchanged(loaded):
    return loaded


def load(home):
    return load_for_code_location(home, plan_assets, unchanged)


def edit(file, change):
    content = yaml.safe_load(file.read_text())
    change(content)
    file.write_text(yaml.safe_dump(content))


def break_it(content):
    content["h1"]["shedule"] = [1]


def test_a_broken_recipe_leaves_the_last_good_one_whole_and_says_why(file, empty_home):
    good = load(empty_home)
    edit(file, break_it)
    kept = load(empty_home)
    assert kept.recipe == good.recipe
    assert "did you mean schedule" in (kept.problem or "")
    defs = code_location(kept, empty_home)
    specs = {spec.key.to_user_string(): spec for spec in defs.resolve_all_asset_specs()}
    assert set(plan_assets(good.recipe)) < set(specs)
    assert "did you mean schedule" in specs["recipe"].description


def test_without_a_last_good_one_the_line_is_raised(file, empty_home):
    edit(file, break_it)
    with pytest.raises(UserError, match="did you mean schedule"):
        load(empty_home)


def test_what_changed_since_it_was_loaded_is_noticed(file, empty_home, tmp_path):
    loaded = load(empty_home)
    assert loaded.problem_now(plan_assets, unchanged) is None
    file.write_text("# a comment\n" + file.read_text())
    assert loaded.problem_now(plan_assets, unchanged) is None
    text = file.read_text()
    edit(file, lambda content: content["h1"]["merge"].update(weight=0.25))
    assert "reload" in (loaded.problem_now(plan_assets, unchanged) or "")
    file.write_text(text)
    assert loaded.problem_now(plan_assets, unchanged) is None


def test_a_changed_task_file_is_noticed_though_the_recipe_names_the_same(file, empty_home, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "answer": "b"}\n')
    edit(file, lambda content: content["tasks"]["heldout"].append({"file": str(rows)}))
    loaded = load(empty_home)
    rows.write_text('{"prompt": "a", "answer": "c"}\n')
    assert "reload" in (loaded.problem_now(plan_assets, unchanged) or "")


def test_runs_get_the_recipe_that_was_loaded_not_the_file_as_it_became(file, empty_home):
    loaded = load(empty_home)
    edit(file, lambda content: content["h1"]["merge"].update(weight=0.25))
    pinned = {key: CodeLocationReconstructionMetadataValue(value) for key, value in loaded.pinned().items()}
    context = DefinitionsLoadContext(
        DefinitionsLoadType.RECONSTRUCTION,
        RepositoryLoadData(cacheable_asset_data={}, reconstruction_metadata=pinned),
    )
    with DefinitionsLoadContext.scoped(context):
        in_run = load(empty_home)
    assert in_run.recipe == loaded.recipe
    assert load(empty_home).recipe != loaded.recipe


def test_the_check_is_written_when_something_is_new(file, empty_home):
    defs = code_location(load(empty_home), empty_home)
    sensor, cursor, written = defs.get_repository_def().get_sensor_def("recipe"), None, []
    with dg.DagsterInstance.ephemeral() as instance:
        for change in (None, None, break_it, None):
            if change:
                edit(file, change)
            context = dg.build_sensor_context(
                instance=instance, cursor=cursor, repository_def=defs.get_repository_def()
            )
            found = sensor.evaluate_tick(context)
            cursor = found.cursor or cursor
            written.append([event.passed for event in found.asset_events])
    assert written == [[True], [], [False], []]
    assert "did you mean schedule" in (found.skip_message or "")
