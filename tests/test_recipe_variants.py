"""Variants in a recipe: how overlays merge, and which are refused, with which words."""

import pytest
import yaml

from apriel_assets.definitions import plan_assets, variant_assets, without_unfit_variants
from apriel_assets.errors import UserError
from apriel_assets.recipe import Recipe, load_recipe
from apriel_assets.recipe_variants import overlaid

QUICKSTART = load_recipe("quickstart")


def with_variants(tmp_path, variants, **changes):
    content = QUICKSTART.model_dump(mode="json") | {"variants": variants} | changes
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_mappings_merge_and_all_else_is_replaced():
    base = {"a": {"b": 1, "c": [1, 2], "d": {"e": 1}}, "f": {"g": 1}, "h": 1}
    found = overlaid(base, {"a": {"c": [3], "d": {"i": 2}}, "f": None, "h": None, "j": {"k": {"l": 0}}})
    assert found == {"a": {"b": 1, "c": [3], "d": {"e": 1, "i": 2}}, "h": None, "j": {"k": {"l": 0}}}
    assert base["a"]["d"] == {"e": 1}  # the recipe itself stays


def test_a_variant_is_the_recipe_with_the_overlay_as_set_on_the_command_line(tmp_path):
    recipe = load_recipe(with_variants(tmp_path, {"own": {"h1": {"distill": {"loss": "forward_kl"}}}}))
    assert recipe.of_variant("own").h1 == load_recipe("quickstart", ["h1.distill.loss=forward_kl"]).h1
    assert recipe.of_variant("own").model_copy(update={"h1": recipe.h1}) == recipe.model_copy(
        update={"variants": {}}
    )


def test_a_resolved_recipe_is_read_back_as_it_was():
    assert Recipe.model_validate(QUICKSTART.model_dump(mode="json")) == QUICKSTART


def test_names_that_are_numbers_in_yaml_are_the_same_keys(tmp_path):
    path = tmp_path / "own.yaml"
    text = yaml.safe_dump(QUICKSTART.model_dump(mode="json") | {"variants": {}})
    path.write_text(text.replace("variants: {}", "variants: {own: {release: {names: {0.6: quick}}}}"))
    names = load_recipe(str(path)).of_variant("own").release.names
    assert names == {0.6: "quick", 0.45: "max"}


BAD = {
    "an unknown key": ({"x": {"h1": {"distill": {"lossy": 1}}}}, "x: h1.distill.lossy is not a key; did you mean"),
    "an unknown section": ({"x": {"serch": {}}}, "variants.x.serch is not a section; did you mean search?"),
    "a section that changes no result": ({"x": {"execution": {"gpus": 1}}}, "not a variant's to change"),
    "a name": ({"x": {"name": "y"}}, "not a variant's to change"),
    "variants in variants": ({"x": {"variants": {}}}, "not a variant's to change"),
    "a value": ({"x": {"h1": {"init": "copied"}}}, "variants.x: h1.init"),
    "a value against another": ({"x": {"h1": {"schedule": [6]}}}, "variants.x: h1: sft.step 8 is not in the schedule"),
    "a list for a section": ({"x": {"h1": [1]}}, "variants.x: h1"),
    "what the recipe has already": ({"x": {"h1": {"init": "mapped"}}}, "variants.x changes nothing"),
    "nothing": ({"x": {}}, "variants.x changes nothing"),
    "an upper-case name": ({"X": {"seed": 1}}, "variants.X is no name"),
    "a name too long for a file": ({"x" * 65: {"seed": 1}}, "variants.xxx"),
    "a name with a slash": ({"a/b": {"seed": 1}}, "variants.a/b is no name"),
    "no overlay": ({"x": 3}, "variants.x"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_overlay_is_refused_in_one_line(case, tmp_path, apriel):
    variants, words = BAD[case]
    code, _, err = apriel("plan", "--recipe", with_variants(tmp_path, variants), "--home", tmp_path / "home")
    assert (code, err.count("\n")) == (2, 1)
    assert words in err


@pytest.mark.parametrize(
    ("variants", "words"),
    [
        ({"evals": {"seed": 1}}, "assets of the recipe are called so"),
        ({"x": {"search": {"audit": {"least_spearman": 0.5}}}}, "changes nothing that is built"),
        ({"x": {"h1": {"schedule": [13], "steps": None, "sft": None, "merge": None}}}, "x: h1.schedule asks for 13"),
    ],
)  # fmt: skip
def test_one_that_cannot_be_made_is_refused(variants, words, tmp_path):
    recipe = load_recipe(with_variants(tmp_path, variants))
    with pytest.raises(UserError, match=words):
        variant_assets(recipe, plan_assets(recipe))


def test_a_change_on_the_command_line_leaves_out_only_the_variants_that_it_does_not_go_with(caplog):
    recipe = load_recipe("quickstart", ["h1.init=random"])
    fitting = without_unfit_variants(recipe, plan_assets(recipe))
    assert set(recipe.variants) - set(fitting.variants) == {"random_init"}
    assert "variants.random_init changes nothing" in caplog.text
    assert without_unfit_variants(QUICKSTART, plan_assets(QUICKSTART)) == QUICKSTART


def test_the_shipped_lessons_share_what_they_do_not_change():
    base = plan_assets(QUICKSTART)
    found = variant_assets(QUICKSTART, base)
    by_variant = {
        name: {own.name for own in found.values() if own.variant == name} for name in QUICKSTART.variants
    }
    assert by_variant["random_init"] == {"h1/h6", "evals/h6", "throughput/h6", "random_init/ablation"}
    assert {"traces", "layer_scores", "h1/h6"} < by_variant["pretraining_text"]
    assert "h1/h6" not in by_variant["static_order"]  # the first step has one order in both
    assert "h1/h9" in by_variant["one_shot"]
    assert not any("supernet" in own or "release" in own for names in by_variant.values() for own in names)
    (h7,) = [own for own in found.values() if own.key == "static_order/h1/h7"]
    assert base["h1/h6"] in h7.upstream


def test_one_shot_takes_as_many_steps_as_the_stages_together():
    staged = sum(QUICKSTART.h1.distill_of(k).steps for k in QUICKSTART.h1.schedule)
    assert QUICKSTART.of_variant("one_shot").h1.distill_of(9).steps == staged


def test_text_asks_nothing_and_uses_the_words_of_the_tasks():
    from apriel_assets.evaluation.tasks.problems import make_problems
    from apriel_assets.evaluation.tasks.specs import TaskSpec
    from apriel_assets.evaluation.tasks.vocabulary import WORDS

    problems = make_problems(TaskSpec(name="text"), "train", 200, seed=0)
    words = [word for problem in problems for word in (problem.prompt + problem.trace).split()]
    assert set(words) <= set(WORDS)
    assert not {"?", "ask", "find", "start", "answer"} & set(words)
    assert words.count("b") > 5 * words.count("z")  # few words are frequent, as in any text
    assert len({problem.problem_id for problem in problems}) == 200
