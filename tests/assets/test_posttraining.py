"""Further training of the release in the graph: what is built and recorded, and that a worse safe default stays in."""

import shutil

import pytest

from apriel_assets.assets.posttraining_checks import REWARD_RISES_CHECK, RL_FINITE_CHECK, SAFE_CHECK
from apriel_assets.chosen_model import find_model
from apriel_assets.definitions import plan_assets
from apriel_assets.errors import UserError
from apriel_assets.exporting import exported_by_home
from apriel_assets.recipe import load_recipe
from apriel_assets.serving.release import read_release
from apriel_assets.workspace import open_workspace

RL = "release.rl={steps: 3, problems: 2, samples: 2, num_problems: 4, max_new_tokens: 4, kl_weight: 0.1}"


def measured(*names):
    return {f"{kind}/{name}" for kind in ("evals", "throughput") for name in names}


def test_reinforcement_learning_is_built_recorded_and_shipped(world, tiny_recipe_file, tmp_path):
    home = shutil.copytree(world, tmp_path / "home")
    with open_workspace(str(tiny_recipe_file), home, [RL], write=True) as workspace:
        ran = {row.asset for row in workspace.run(["release/*"])}
        read = {
            name: workspace.lake.read(name, "tiny").to_pylist()
            for name in ("rl_training", "before_after", "checkpoints", "training")
        }
        left = workspace.plan()
    names = ("safe", "turbo", "turbo-50")
    assert ran == {"release/rl", "release/guard/rl", "release/export"}
    evaluated = measured(*(f"{own}-rl" for own in names))
    assert {row.asset for row in left.rows} | set(left.downstream) == {*evaluated, "leaderboard", "report"}
    assert [row["step"] for row in read["rl_training"]] == [1, 2, 3]
    assert {row["placement"] for row in read["rl_training"]} <= {"turbo", "turbo-50"}
    compared = {(row["stage"], row["placement"], row["task"]): row for row in read["before_after"]}
    assert {key[:2] for key in compared} == {(stage, own) for stage in ("sft", "rl") for own in names}
    assert compared["rl", "safe", "all tasks"]["max_logit_difference"] == 0  # only mixers trained
    assert compared["sft", "safe", "all tasks"]["max_logit_difference"] > 0
    rows = {row["model"]: row for row in read["checkpoints"]}
    assert len(rows) == len(read["checkpoints"])
    assert rows["turbo-rl"]["kind"] == rows["turbo"]["kind"] == "release"
    assert (rows["turbo-rl"]["steps"], rows["turbo-rl"]["parent"]) == (3, "safe")
    assert rows["turbo-rl"]["total_tokens"] > rows["turbo"]["total_tokens"]
    assert {row["placement"] for row in read["training"] if row["model"] == "release"} <= set(names)
    assert {row["placement"] for row in read["training"] if row["model"] != "release"} == {None}
    assert set(read_release(exported_by_home(home)).placements) == set(names)


def test_a_safe_default_that_got_worse_is_not_shipped(world, tiny_recipe_file, tmp_path):
    """Fine-tuning that wrecks the weights which all placements share, with problems that the start answers."""
    home = shutil.copytree(world, tmp_path / "home")
    overlays = [
        "release.sft.learning_rate=3.0",
        "release.sft.grad_clip_norm=null",
        "release.guard.num_problems=12",
    ]
    with open_workspace(str(tiny_recipe_file), home, overlays, write=True) as workspace:
        with pytest.raises(UserError, match="safe_is_no_worse"):
            workspace.run(["release/export"])
        rows = {
            (row["placement"], row["task"]): row
            for row in workspace.lake.read("before_after", "tiny").to_pylist()
        }
        left = {row.asset: row.blocked for row in workspace.plan().rows}
    safe = rows["safe", "partners"]
    assert (safe["before"], safe["after"], safe["changed"]) == (1.0, 0.0, "worse")
    assert rows["safe", "all tasks"]["changed"] == "worse"
    assert left["release/export"] == "safe_is_no_worse of release/guard/sft failed"
    # Nor by hand, unless it is named.
    assert find_model(None, home).kind == "matryoshka"
    assert find_model("safe", home).kind == "release"
    assert left["evals/safe"] is None  # it can be measured how bad it is


def compared(changed, moved=0.5):
    row = {
        "stage": "rl",
        "task": "all tasks",
        "num_problems": 100,
        "num_differing": 9,
        "before": 0.9,
        "after": 0.8,
    }
    row |= {"difference": -0.1, "low": -0.15, "high": -0.05, "p_value": 0.01, "could_hide": 0.0}
    mine = {**row, "placement": "safe", "changed": changed, "max_logit_difference": moved}
    return {"before_after": [{**row, "placement": "turbo", "changed": "worse"}, {**row, **mine}]}


def test_the_guard_looks_at_full_attention_alone(make_artifact):
    for changed, holds in (("none", True), ("better", True), ("worse", False)):
        passed, shown = SAFE_CHECK.passes(make_artifact(compared(changed)), None)
        assert passed is holds
        assert shown["change"] == "-0.1000 [-0.1500, -0.0500]"
    assert SAFE_CHECK.blocking
    _, shown = SAFE_CHECK.passes(make_artifact(compared("none", moved=0.0)), None)
    assert "bit for bit" in shown["note"]


def steps(*rewards, loss=0.1):
    rows = [
        {"step": step, "placement": "turbo", "reward": own, "loss": loss}
        for step, own in enumerate(rewards, 1)
    ]
    return {"rl_training": rows}


def test_checks_of_rewards(make_artifact):
    assert REWARD_RISES_CHECK.passes(make_artifact(steps(0.1, 0.2, 0.2, 0.4)), None)[0]
    assert not REWARD_RISES_CHECK.passes(make_artifact(steps(0.4, 0.2, 0.2, 0.4)), None)[0]
    assert REWARD_RISES_CHECK.passes(make_artifact(steps(0.4)), None)[0] is None
    assert RL_FINITE_CHECK.passes(make_artifact(steps(0.1, 0.2)), None)[0]
    nothing = make_artifact(steps(0.1, 0.9, loss=None))
    assert RL_FINITE_CHECK.passes(nothing, None)[0]  # nothing moved: no harm, but not what was asked for
    assert REWARD_RISES_CHECK.passes(nothing, None)[0] is False
    for bad in (steps(0.1, float("nan")), steps(0.1, loss=float("nan"))):
        assert not RL_FINITE_CHECK.passes(make_artifact(bad), None)[0]


def test_a_recipe_that_does_not_ask_for_it_has_none():
    with_it, without = (
        plan_assets(load_recipe("quickstart", own)) for own in (("release.rl={steps: 5}",), ())
    )
    names = ("safe", "turbo", "max")
    added = {"release/rl", "release/guard/rl", *measured(*(f"{own}-rl" for own in names))}
    assert set(with_it) - set(without) == added
    assert with_it["release/sft"].code_version == without["release/sft"].code_version
    assert {own.key for own in without["release/export"].upstream} == {
        "teacher",
        "release/sft",
        "release/guard/sft",
    }
    assert {own.key for own in with_it["release/export"].upstream} == {
        "teacher",
        "release/rl",
        "release/guard/rl",
    }
    assert "release/guard/sft" in {own.key for own in with_it["release/rl"].upstream}


@pytest.mark.parametrize("key", ["learning_rate=0.5", "kl_weight=0.5", "level=sequence", "samples=3"])
def test_what_changes_the_weights_is_hashed_and_what_does_not_is_not(key):
    def version(*overlays):
        recipe = load_recipe("quickstart", ["release.rl={steps: 5}", *overlays])
        return plan_assets(recipe)["release/rl"].code_version

    assert version(f"release.rl.{key}") != version()
    assert version("release.rl.save_every=3", "release.rl.batch_size=7") == version()


@pytest.mark.parametrize(
    ("overlay", "message"),
    [
        ("release.rl={samples: 1}", "samples=1 is not allowed"),
        ("release.rl={clip: 0.1}", "clip is not a key; did you mean clip_low"),
        ("release.rl={level: word}", "token"),
        ("release.rl={placement_weights: {slow: 1}}", "names 'slow'; what is released is safe, turbo, max"),
        ("release.sft.placement_weights={slow: 1}", "release.sft.placement_weights names 'slow'"),
        ("release.sft.placement_weights={safe: 0, turbo: 0, max: 0}", "are all 0"),
        ("release.rl={placement_weights: {safe: 1}}", "trains=mixers"),
        ("release.guard.num_problems=0", "num_problems=0 must be at least 1"),
    ],
)
def test_bad_settings_are_one_line(overlay, message, apriel, tmp_path):
    code, _, err = apriel("plan", "--home", tmp_path, "--set", overlay)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
