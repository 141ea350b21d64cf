"""Whatever a recipe does wrong: the code location stands on the last one that was built, whole, and says why."""

import pytest
import yaml

from apriel_assets import definitions, loaded_recipe
from apriel_assets.definitions import code_location, plan_assets
from apriel_assets.errors import UserError
from apriel_assets.loaded_recipe import load_for_code_location
from apriel_assets.recipe import Recipe, load_recipe
from resources.home import find_home, prepare_home


@pytest.fixture
def file(tiny_recipe_file, tmp_path, monkeypatch):
    path = tmp_path / "recipe.yaml"
    path.write_text(tiny_recipe_file.read_text())
    monkeypatch.setenv("APRIEL_RECIPE", str(path))
    monkeypatch.setenv("APRIEL_HOME", str(tmp_path / "home"))
    return path


@pytest.fixture
def home(tmp_path):
    prepare_home(tmp_path / "home")
    return tmp_path / "home"


def edit(file, **sections):
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | sections))


def described():
    """Load the code location as Dagster does; return its recipe's description and its asset keys."""
    specs = {spec.key.to_user_string(): spec for spec in definitions.defs().resolve_all_asset_specs()}
    return specs["recipe"].description, set(specs)


WRONG = {
    "a pattern of no step": ({"execution": {"steps": {"h1/h99": {"retries": 2}}}}, "h1/h99"),
    "an owner that Dagster refuses": ({"owners": ["jürgen@firma.de"]}, "owners"),
    "a watched directory of nobody": (
        {"automation": {"watch": {"directory": "~nosuchuser/x"}}},
        "~nosuchuser/x: no such user",
    ),
    "a task file of nobody": (
        {"evals": {"tasks": [{"file": "~nosuchuser/x.jsonl"}]}},
        "~nosuchuser/x.jsonl: no such user",
    ),
    "a task file that cannot be read": (
        {"evals": {"tasks": [{"file": f"{'x' * 300}.jsonl"}]}},
        "cannot be read: File name too long",
    ),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_takes_nothing_down_and_does_not_replace_the_last_good_one(mistake, file):
    good, keys = described()
    text = file.read_text()
    sections, line = WRONG[mistake]
    edit(file, **sections)
    for _ in range(2):  # the second time, the first must not have been kept as good
        said, shown = described()
        assert line in said
        assert "last recipe that loaded" in said
        assert shown == keys
    file.write_text(text)
    edit(file, nosuch=1)
    said, shown = described()
    assert "nosuch is not a key" in said
    assert shown == keys
    file.write_text(text)
    assert described() == (good, keys)


@pytest.mark.parametrize("mistake", WRONG)
def test_without_a_last_good_one_the_mistake_is_one_line(mistake, file, home):
    sections, line = WRONG[mistake]
    edit(file, **sections)
    with pytest.raises(UserError) as raised:
        definitions.defs()
    assert line in str(raised.value)


def test_our_own_failure_keeps_the_last_good_one_too(file, home):
    load_for_code_location(home, plan_assets, lambda loaded: loaded)
    edit(file, seed=1)

    def build(loaded):
        if loaded.recipe.seed == 1:
            raise RuntimeError("two\nlines")
        return loaded

    kept = load_for_code_location(home, plan_assets, build)
    assert kept.recipe.seed == 0
    assert kept.problem.startswith("RuntimeError: two lines; ")


def test_a_look_tells_what_would_fail_only_when_built(file, home):
    loaded = load_for_code_location(home, plan_assets, lambda loaded: loaded)
    edit(file, execution={"steps": {"h1/h99": {"retries": 2}}})
    assert "h1/h99" in loaded.problem_now(plan_assets, lambda now: code_location(now, home))


def test_an_edit_while_the_recipe_loads_is_noticed(file, home, monkeypatch):
    def slow(source):
        recipe = load_recipe(source)
        edit(file, seed=recipe.seed + 1)
        return recipe

    with monkeypatch.context() as patched:
        patched.setattr(loaded_recipe, "load_recipe", slow)
        loaded = load_for_code_location(home, plan_assets, lambda loaded: loaded)
    assert loaded.recipe.seed == 0
    assert "reload" in loaded.problem_now(plan_assets, lambda now: now)


@pytest.mark.parametrize(
    "owner",
    [
        *("team:modelling", "a.b+c@firma.de", "o_neil@sub.firma.eu", "jürgen@firma.de", "o'neil@firma.de"),
        *(
            "a@b",
            "-a@firma.de",
            ".a@firma.de",
            "a@firma.d",
            "a@firma.longtldx",
            "team:",
            "a@b.c|",
            "a@b.de\n",
        ),
    ],
)
def test_owners_are_what_dagster_takes(owner, tiny_recipe_file):
    from dagster._core.definitions.utils import is_valid_owner

    content = yaml.safe_load(tiny_recipe_file.read_text()) | {"owners": [owner]}
    if is_valid_owner(owner):
        assert Recipe.model_validate(content).owners == (owner,)
    else:
        with pytest.raises(ValueError, match="owners"):
            Recipe.model_validate(content)


def test_a_home_of_nobody_is_one_line(monkeypatch):
    monkeypatch.setenv("APRIEL_HOME", "~nosuchuser/home")
    with pytest.raises(UserError, match="no such user"):
        find_home(None)
