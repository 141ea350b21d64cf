"""The parts of the 50-layer experiment's scripts that results rest on."""

import argparse
import itertools
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import h100_50_layers
import home_results
import lessons
import measure_bundled_teacher
import over_seeds
from resumable_run import Stage

from apriel_assets.comparing import compare_models
from apriel_assets.evaluation.tasks.problems import make_problems
from apriel_assets.evaluation.tasks.specs import TaskSpec
from apriel_assets.recipe import load_recipe
from resources.lake import Lake


def test_removal_by_row_equals_leaving_the_layers_out(tiny_teacher):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_teacher).eval()
    sets = [set(), {0}, {1, 3}, {0, 1, 2, 3}]
    kept = torch.tensor([[layer not in gone for layer in range(4)] for gone in sets])
    ids = torch.arange(5, 25).view(1, 20)
    with torch.no_grad():
        with measure_bundled_teacher.attention_kept_by_row(model, kept):
            together = model(input_ids=ids.expand(4, -1), use_cache=False).logits
        for gone, row in zip(sets, together, strict=True):
            with measure_bundled_teacher.skippable_attention(model) as skipped:
                skipped |= gone
                alone = model(input_ids=ids, use_cache=False).logits[0]
            torch.testing.assert_close(row, alone, rtol=1e-5, atol=1e-5)  # fp32
        whole = model(input_ids=ids, use_cache=False).logits[0]  # nothing is left behind
    torch.testing.assert_close(together[0], whole, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(together[1], whole, atol=1e-3)


def test_plain_text_has_the_words_of_traces_in_pairs_that_occur(tmp_path):
    recipe = load_recipe("quickstart", ["tasks.num_traces=50"])
    lessons.write_plain_text(tmp_path / "texts.jsonl", recipe)
    rows = [json.loads(line) for line in (tmp_path / "texts.jsonl").read_text().splitlines()]
    problems = [own for task in recipe.tasks.train for own in make_problems(task, "train", 10, recipe.seed)]
    texts = [f"{own.prompt}{own.trace}".split() for own in problems]
    pairs = {pair for words in texts for pair in itertools.pairwise(words)}
    last = {words[-1] for words in texts}
    written = [f"{row['prompt']}{row['trace']}".split() for row in rows]
    assert len(written) == len(texts)
    spec = TaskSpec(file=str(tmp_path / "texts.jsonl"), split_by="file")
    assert len(make_problems(spec, "train", len(texts), seed=0)) == len(texts)  # as the recipe will ask for
    assert {len(words) for words in written} <= {len(words) for words in texts}
    assert all(pair in pairs or pair[0] in last for words in written for pair in itertools.pairwise(words))
    assert not {" ".join(words) for words in written} & {" ".join(words) for words in texts}


@pytest.mark.parametrize(
    ("at", "schedule", "steps"),
    [
        ("first", [25, 27, 30, 34, 37, 40], (25,)),
        ("middle", [25, 27, 30, 34, 37, 40], (30,)),
        ("later", [25, 27, 30, 34, 37, 40], (30, 34, 37, 40)),
        ("later", [6], (6,)),
    ],
)
def test_where_a_lesson_is_looked_at(at, schedule, steps):
    lesson = lessons.Lesson(name="", claim="", better="base", worse="base", at=at)
    assert lessons.steps_of(lesson, schedule) == steps


def test_every_lesson_compares_known_variants_that_make_valid_recipes():
    for lesson in lessons.LESSONS:
        for variant in (lesson.better, lesson.worse):
            for recipe in ("quickstart", "h100-50-layers"):
                load_recipe(recipe, lessons.VARIANTS[variant])


def test_the_small_run_is_the_same_recipe_with_other_sizes():
    small = load_recipe("h100-50-layers", h100_50_layers.SMALL_OVERLAYS)
    whole = load_recipe("h100-50-layers")
    assert small.supernet.mixers == whole.supernet.mixers
    assert small.h1.merge == whole.h1.merge
    assert len(whole.search.budgets) >= 4


def test_the_progression_stands_beside_the_published_one():
    row = {"accuracy_low": 0.7, "accuracy_high": 0.8, "decode_speedup": 2.0}
    content = {
        "leaderboard": [
            {**row, "model": "teacher", "kind": "teacher", "num_replaced": 0, "accuracy": 1.0},
            {**row, "model": "h30", "kind": "progressive", "num_replaced": 30, "accuracy": 0.75},
            {**row, "model": "sft", "kind": "sft", "num_replaced": 30, "accuracy": None},
        ]
    }
    lines = home_results.markdown(content).splitlines()
    assert lines[3] == "| h30 | 30 | 0.750 [0.700, 0.800] | 0.750 | 2.00x | 0.925 | 2.10x |"
    assert lines[4] == "| sft | 30 |  |  | 2.00x |  |  |"


def test_results_say_what_compare_says_of_each_model_and_teacher(world):
    content = home_results.collect(world, "tiny")
    answered = {row["model"]: row for row in content["leaderboard"] if row["accuracy"] is not None}
    assert any(row["kind"] == "progressive" for row in answered.values())
    accuracy = [row for row in content["comparisons"] if row["metric"] == "accuracy"]
    assert {row["a_model"] for row in accuracy if row["b_model"] == "teacher"} == set(answered) - {"teacher"}
    for row in accuracy:
        assert row["a"] == pytest.approx(answered[row["a_model"]]["accuracy"])
        assert row["b"] == pytest.approx(answered[row["b_model"]]["accuracy"])
        assert row["low"] <= row["difference"] <= row["high"]


def test_over_seeds_says_what_compare_says_of_the_pairs(world):
    said = over_seeds.over_seeds([world], "tiny")["comparisons"]
    pairs = {(row["a_model"], row["b_model"]) for row in said}
    assert {b for _, b in pairs} > {"safe"}, "also against the same placement before joint training"
    for row in said:
        alone = compare_models(Lake(world), row["a_model"], row["b_model"]).rows
        same = next(own for own in alone if (own.task, own.metric) == (row["task"], row["metric"]))
        assert {name: row[name] for name in same.as_json()} == same.as_json()
    assert {row["seed"] for row in said} == {None, 0}


@pytest.mark.parametrize(
    "results", [home_results.collect, lambda *own: over_seeds.over_seeds([own[0]], own[1])]
)
def test_results_of_what_is_not_there_are_refused(world, tmp_path, results):
    with pytest.raises(SystemExit, match="is no home with results"):
        results(tmp_path / "nowhere", "tiny")
    with pytest.raises(SystemExit, match="has no results of a recipe 'nope'"):
        results(world, "nope")
    assert not (tmp_path / "nowhere").exists()


def test_seeds_with_other_budgets_are_refused(world, monkeypatch):
    seeds = iter([0, 1])
    monkeypatch.setattr(over_seeds, "_seed", lambda home, recipe: next(seeds))
    pairs = iter([[("b0.44", "safe")], [("b0.41", "safe")]])
    monkeypatch.setattr(over_seeds, "_pairs", lambda rows: next(pairs))
    with pytest.raises(SystemExit, match=r"has b0.41, .* has b0.44; search the same budgets"):
        over_seeds.over_seeds([world, world], "tiny")


def test_a_seed_counts_once(world):
    with pytest.raises(SystemExit, match="2 homes, but seeds 0; give one home a seed"):
        over_seeds.over_seeds([world, world], "tiny")


def test_budgets_wait_for_costs_that_are_to_be_measured_again(world, tiny_recipe_file, tmp_path):
    home = tmp_path / "home"
    shutil.copytree(world, home)
    given = argparse.Namespace(home=home, layers=4, full_layers=[2, 1], overlays=[])

    def budgets(*overlays):
        stage = Stage(recipe=str(tiny_recipe_file), overlays=overlays)
        return h100_50_layers._budget_overlays(given, stage)

    assert len(json.loads(budgets()[0].partition("=")[2])) == 2
    assert budgets("costs.batch_size=2") is None
    given.overlays = ["search.budgets=[0.4]"]
    assert budgets("costs.batch_size=2", *given.overlays) == []


def test_search_by_surrogate_can_be_left_out(monkeypatch):
    monkeypatch.setattr(h100_50_layers, "_budget_overlays", lambda given, costs: ["search.budgets=[0.4]"])
    monkeypatch.setattr(sys, "argv", ["h100_50_layers.py", "--home", "H", "--part", "h2"])
    both = h100_50_layers.stages(h100_50_layers.parse())
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--no-surrogate"])
    one = h100_50_layers.stages(h100_50_layers.parse())
    assert [stage for stage in both if stage not in one] == [
        stage for stage in both if "search.strategy=surrogate" in stage.overlays
    ]
    assert len(both) == len(one) + 1
