"""Plans that expect by formula what never ran: the 15B recipe, without teacher, network or GPU."""

import json
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from number_graph import number

from apriel_assets.definitions import plan_assets
from apriel_assets.errors import UserError
from apriel_assets.planning.expected import CAPACITY, Expected
from apriel_assets.planning.from_capacity import capacity_estimate
from apriel_assets.planning.plan import make_plan
from apriel_assets.recipe import load_recipe
from apriel_assets.workspace import open_workspace

CAPACITY_KEYS = (
    "{shape: {num_layers: 12, hidden_size: 96, num_heads: 4, num_kv_heads: 2, head_size: 32, "
    "intermediate_size: 256, vocab_size: 86}, trace_tokens: 100, prompt_tokens: 20}"
)


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """The plan of the 15B recipe in an empty home, with sockets shut."""
    with pytest.MonkeyPatch.context() as patch:

        def refuse(*args, **kwargs):
            raise AssertionError("planning must not use the network")

        patch.setattr(socket.socket, "connect", refuse)
        with open_workspace("apriel-15b", tmp_path_factory.mktemp("home")) as workspace:
            yield workspace.recipe, workspace.plan()


def test_training_generation_and_scoring_have_a_cost(planned):
    _, plan = planned
    by_asset = {row.asset: row for row in plan.rows}
    expected = {"completions", "layer_scores", "h1/h25", "h1/probes/h40", "h1/sft", "supernet", "placements",
                "finalists", "audit", "release/sft", "evals/h40", "throughput/teacher"}  # fmt: skip
    for asset in expected:
        assert by_asset[asset].expected_from == CAPACITY
        assert by_asset[asset].gpu_seconds > 0
    # No formula: nothing is made up.
    for asset in ("teacher", "h1/merge", "leaderboard"):
        assert (by_asset[asset].gpu_seconds, by_asset[asset].expected_from) == (None, None)


def test_wall_time_is_shared_by_the_gpus_that_the_recipe_asks_for(planned):
    _, plan = planned
    for row in plan.rows:
        if row.expected_from == CAPACITY:
            gpus = (
                8
                if row.asset in ("supernet", "release/sft") or row.asset.startswith(("h1/h", "h1/sft"))
                else 1
            )
            assert row.seconds == pytest.approx(row.gpu_seconds / gpus), row.asset
    assert 1e4 < plan.totals.gpu_seconds / 3600 < 1e5


def test_the_largest_step_by_hand(planned):
    _, plan = planned
    row = next(row for row in plan.rows if row.asset == "h1/h40")
    # 48 B tokens, five passes. FLOP of a token: 2 x 13.6 G weights, and Mamba's 24 M more a layer; attention in 10
    # layers of the student's four passes, in 50 of the teacher's. Mamba's kernels by their milliseconds.
    tokens = 22888 * 256 * 8192
    products = 5 * 2 * 13.63e9 + 40 * 4 * 2 * 24e6
    attention = (4 * 10 + 50) * 4 * 4096 * 4096
    kernels = 40 * (33.8 + 10.1 + 1.4 + 0.3) / 1e3 / 8192
    by_hand = tokens * ((products + attention) / (0.4 * 989e12) + kernels)
    assert row.gpu_seconds == pytest.approx(by_hand, rel=0.05)


def test_the_page_says_what_the_plan_says(planned):
    _, plan = planned
    page = (Path(__file__).parents[2] / "docs" / "capacity.md").read_text()
    assert f"| **{plan.totals.gpu_seconds / 3600:,.0f}** |" in page
    steps = [row for row in plan.rows if row.asset.startswith("h1/h")]
    assert f"| {sum(row.gpu_seconds for row in steps) / 3600:,.0f} |" in page.replace("**", "")


def test_past_run_of_the_same_recipe_comes_before_the_formula(bench):
    def estimate(asset, partition):
        return Expected(7.0, 56.0, CAPACITY)

    def row(asset):
        plan = make_plan({asset.key: asset}, bench.defs([asset]), bench.instance, bench.store, estimate)
        return plan.rows[0].seconds, plan.rows[0].gpu_seconds, plan.rows[0].expected_from

    assert row(number("step", value=1, seconds=10.0)) == (7.0, 56.0, CAPACITY)
    bench.run(number("step", value=1, seconds=10.0))
    assert row(number("step", value=2, seconds=10.0)) == (10.0, 20.0, "nearest values")
    # A run of another recipe, with a teacher of any size, says nothing.
    assert row(replace(number("step", value=2, seconds=10.0), recipe="other")) == (7.0, 56.0, CAPACITY)


def test_section_is_in_no_assets_slice():
    plain, with_it = (
        plan_assets(load_recipe("quickstart", overlays)) for overlays in ([], [f"capacity={CAPACITY_KEYS}"])
    )
    assert {key: own.code_version for key, own in plain.items()} == {
        key: own.code_version for key, own in with_it.items()
    }


def test_recipe_without_the_section_expects_nothing():
    recipe = load_recipe("quickstart")
    estimate = capacity_estimate(recipe)
    assert all(
        estimate(own, None) == Expected() for own in plan_assets(recipe).values() if not own.partitions
    )


def test_every_formula_takes_the_quickstart_too():
    recipe = load_recipe("quickstart", [f"capacity={CAPACITY_KEYS}"])
    estimate = capacity_estimate(recipe)
    found = {key: estimate(own, own.partition_keys[0]) for key, own in plan_assets(recipe).items()}
    assert found["supernet"].gpu_seconds > found["h1/h7"].gpu_seconds > 0
    assert found["h1/h7"].seconds == found["h1/h7"].gpu_seconds  # no GPUs asked for: as if on one


def test_recipe_survives_writing(tmp_path):
    recipe = load_recipe("apriel-15b")
    path = tmp_path / "apriel-15b.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    assert load_recipe(str(path)) == recipe
    assert type(recipe).model_validate(json.loads(recipe.model_dump_json())) == recipe


@pytest.mark.parametrize(
    ("overlay", "words"),
    [
        ("capacity.shape.num_layers=0", "num_layers=0 must be at least 1"),
        ("capacity.shape.num_kv_heads=5", "multiple of num_kv_heads=5"),
        ("capacity.trace_token=5", "did you mean trace_tokens"),
        ("capacity.shape.layers=5", "capacity.shape.layers is not a key"),
        ("capacity.trace_tokens=100", "must exceed prompt_tokens"),
        ("capacity.train_mfu=40", "share of a peak"),
        ("capacity.gpu=B200", "capacity.gpu"),
        ("capacity={trace_tokens: 5}", "shape is missing"),
    ],
)
def test_wrong_sections_are_refused_in_one_line(overlay, words):
    with pytest.raises(UserError) as error:
        load_recipe("apriel-15b", [overlay])
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_layers_are_checked_against_the_written_shape():
    with pytest.raises(UserError, match="asks for 51 replaced layers; the teacher has 50"):
        plan_assets(load_recipe("apriel-15b", ["h1.schedule=[25,27,30,34,37,40,51]"]))
    wrong = CAPACITY_KEYS.replace("12", "13")
    with pytest.raises(UserError, match="num_layers=13, but the teacher has 12"):
        plan_assets(load_recipe("quickstart", [f"capacity={wrong}"]))
