"""What ships: built with the recipe, checked against its checkpoint, measured if asked for."""

import json
import shutil

import pytest
from transformers import AutoModelForCausalLM

from apriel_assets.definitions import plan_assets
from apriel_assets.errors import UserError
from apriel_assets.exporting import exported_by_home
from apriel_assets.recipe import load_recipe
from apriel_assets.serving.release import read_release
from apriel_assets.workspace import open_workspace


def test_the_world_has_an_export_equal_to_its_checkpoint(world):
    directory = exported_by_home(world)
    release = read_release(directory)
    assert (release.name, release.placements[0]) == ("tiny", "safe")
    assert set(release.placements) == {"safe", "turbo", "turbo-50"}
    assert release.models == {
        "tiny": "safe", "tiny-safe": "safe", "tiny-turbo": "turbo", "tiny-turbo-50": "turbo-50"
    }  # fmt: skip
    figures = json.loads((directory.parent / "provenance.json").read_text())["figures"]
    differences = {name: value for name, value in figures.items() if name.startswith("max_difference_")}
    assert set(differences) == {
        f"max_difference_{own}" for own in (*release.placements, "matryoshka", "all-fa")
    }
    assert set(differences.values()) == {0.0}
    assert type(AutoModelForCausalLM.from_pretrained(directory / "all-fa")).__name__ == "LlamaForCausalLM"


def test_speculation_is_measured_if_asked_for(world, tiny_recipe_file, tmp_path):
    home = shutil.copytree(world, tmp_path / "home")
    overlay = "release.speculative={num_problems: 3, max_new_tokens: 6, draft_tokens: 2}"
    with open_workspace(str(tiny_recipe_file), home, [overlay], write=True) as workspace:
        assert {row.asset for row in workspace.run()} == {"release/speculative", "report"}
        rows = workspace.lake.read("speculative", "tiny").to_pylist()
    assert {row["draft"] for row in rows} == {"turbo", "turbo-50"}
    for row in rows:
        assert (row["model"], row["num_prompts"], row["draft_tokens"]) == ("release", 3, 2)
        assert 0 <= row["acceptance_rate"] <= 1
        assert 1 <= row["tokens_per_pass"] <= 3
        assert row["same_text_share"] == 1.0
        assert row["speedup"] == pytest.approx(row["tokens_per_s"] / row["all_fa_tokens_per_s"])


def test_a_recipe_can_leave_the_export_out():
    with_it, without = (
        plan_assets(load_recipe("quickstart", own)) for own in ((), ("release.export=false",))
    )
    assert set(with_it) - set(without) == {"release/export"}
    versions = {key: asset.code_version for key, asset in with_it.items()}
    assert {key: asset.code_version for key, asset in without.items()}.items() <= versions.items()


@pytest.mark.parametrize(
    ("overlay", "message"),
    [
        ("release.speculative={draft_tokens: 0}", "draft_tokens=0 must be at least 1"),
        ("release.speculative={temperature: -1}", "must be 0"),
        ("release.names={0.6: auto}", "router"),
    ],
)
def test_bad_settings_are_refused(overlay, message):
    with pytest.raises(UserError, match=message):
        load_recipe("quickstart", [overlay])


def test_a_home_without_an_export_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="no exported release"):
        exported_by_home(tmp_path)
