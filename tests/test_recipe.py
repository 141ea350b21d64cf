"""Recipes: what is refused, with which words, and that equal meanings give equal slices."""

import json

import pytest
import yaml

from apriel_assets.definitions import plan_assets
from apriel_assets.errors import UserError
from apriel_assets.recipe import load_recipe, shipped_recipes


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_load_and_give_assets(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assets = plan_assets(recipe)
    assert {"teacher", "layer_scores", f"h1/h{recipe.h1.schedule[-1]}", "leaderboard", "report"} <= set(
        assets
    )


def test_assets_come_upstream_first():
    seen = set()
    for key, asset in plan_assets(load_recipe("quickstart")).items():
        assert {upstream.key for upstream in asset.upstream} <= seen
        seen.add(key)


def test_overlay_reaches_exactly_its_key():
    before, after = load_recipe("quickstart"), load_recipe("quickstart", ["h1.steps.h8.distill.steps=7"])
    assert after.h1.distill_of(8).steps == 7
    assert all(before.h1.distill_of(k) == after.h1.distill_of(k) for k in before.h1.schedule if k != 8)


@pytest.mark.parametrize(
    ("overlay", "words"),
    [
        ("h1.shedule=[1]", "h1.shedule is not a key; did you mean schedule?"),
        ("teacher.modle=x", "did you mean model"),
        ("h1.distill.step=3", "did you mean steps"),
        ("tasks.train=[]", "tasks.train"),
        ("tasks.train=[nonsense]", "nonsense"),
        ("h1.schedule=[4,2]", "strictly increasing"),
        ("h1.schedule=[0,2]", "positive"),
        ("h1.steps.h5.distill.steps=1", "not in the schedule"),
        ("h1.sft.step=5", "not in the schedule"),
        ("h1.merge.weight=1.5", "merge.weight"),
        ("name=../x", "name"),
        ("h1.schedule={", "not YAML"),
        ("h1", "section.key=value"),
        (".a=1", "section.key=value"),
        ("seed.x=1", "seed"),
    ],
)
def test_refusal_is_one_line_that_names_the_key(overlay, words):
    with pytest.raises(UserError) as error:
        load_recipe("quickstart", [overlay])
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "a: [", "just words", "\x00"])
def test_file_that_is_no_recipe(text, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(UserError):
        load_recipe(str(path))


def test_missing_sections_are_named(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("teacher: {model: bundled}\n")
    with pytest.raises(UserError, match="tasks is missing"):
        load_recipe(str(path))


def test_slices_do_not_change_with_the_order_of_keys(tmp_path):
    content = load_recipe("quickstart").model_dump(mode="json")
    for name, keys in (("one", list(content)), ("other", list(content)[::-1])):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({k: content[k] for k in keys}, sort_keys=False))
    one, other = (plan_assets(load_recipe(str(tmp_path / f"{name}.yaml"))) for name in ("one", "other"))
    assert {key: asset.code_version for key, asset in one.items()} == {
        key: asset.code_version for key, asset in other.items()
    }


def test_an_edited_task_file_changes_what_reads_it(tmp_path):
    path = tmp_path / "traces.jsonl"
    versions = []
    for answer in "12":
        path.write_text(json.dumps({"prompt": "a", "trace": " b", "answer": answer}) + "\n")
        assets = plan_assets(load_recipe("quickstart", [f"tasks.train=[{{file: {path}}}]"]))
        versions.append((assets["traces"].code_version, assets["completions"].code_version))
    assert versions[0][0] != versions[1][0]
    assert versions[0][1] == versions[1][1]


def test_another_seed_under_another_name_shares_what_draws_nothing():
    """Repeated seeds: `--set name=... --set seed=...` in one home builds anew only what the seed reaches."""
    first = plan_assets(load_recipe("quickstart"))
    again = plan_assets(load_recipe("quickstart", ["name=quickstart-s1", "seed=1"]))
    assert {own.recipe for own in again.values()} == {"quickstart-s1"}
    same = {key for key in first if first[key].code_version == again[key].code_version}
    assert {"teacher", "layer_scores", "roofline", "allocations", "matryoshka"} <= same
    assert not {"traces", "completions", "h1/h6", "supernet", "placements", "evals/h6", "release/sft"} & same


def test_batch_sizes_of_throughput_are_one_or_several():
    def sizes(*overlays):
        return load_recipe("quickstart", list(overlays)).evals.throughput.batch_sizes

    assert sizes() == (8,)
    assert sizes("evals.throughput.batch_size=[1,8]") == (1, 8)
    with pytest.raises(UserError, match="batch_size"):
        sizes("evals.throughput.batch_size=[8,1]")
