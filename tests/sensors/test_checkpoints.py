"""A dropped checkpoint is evaluated once, by its own name; a broken one is reported once."""

import json
import shutil

import pytest

from apriel_assets.workspace import open_workspace

SENSOR = "checkpoints"
ASSET = "automation/dropped_checkpoints"


@pytest.fixture
def drop(tmp_path):
    directory = tmp_path / "drop"
    directory.mkdir()
    return directory


@pytest.fixture
def location(locate, drop):
    return locate(f"automation.watch={{directory: '{drop}', settle_s: 0}}")


def checkpoint_of(home, asset):
    (path,) = home.glob(f"artifacts/{asset}/*/checkpoint")
    return path


def rows_of(home, model, table):
    with open_workspace(str(home / "recipe.yaml"), home) as workspace:
        return [row for row in workspace.lake.read(table, "tiny").to_pylist() if row["model"] == model]


def test_hybrids_and_plain_models_are_evaluated_once(location, drop, home, tiny_teacher):
    assert "nothing new" in location.look(SENSOR).skip_message
    shutil.copytree(checkpoint_of(home, "h1/h2"), drop / "mine")
    shutil.copytree(tiny_teacher, drop / "plain")
    requests = location.look(SENSOR).run_requests
    assert [request.partition_key for request in requests] == ["mine", "plain"]
    for request in requests:
        assert location.carry_out(request, SENSOR).success
    assert location.look(SENSOR).run_requests == []
    # The same weights give the same figures as the recipe's own checkpoint of them.
    keys = ("task", "metric", "value", "low", "high")
    for name, twin in (("mine", "h2"), ("plain", "teacher")):
        own, other = (
            [{key: row[key] for key in keys} for row in rows_of(home, m, "evals")] for m in (name, twin)
        )
        assert sorted(own, key=str) == sorted(other, key=str) != []
    assert {row["kind"] for row in rows_of(home, "mine", "leaderboard")} == {"dropped"}
    assert len(rows_of(home, "plain", "throughput")) == len(rows_of(home, "teacher", "throughput"))


def test_rows_stay_when_the_recipe_changes_and_the_plan_ignores_them(location, drop, home, tiny_teacher):
    shutil.copytree(tiny_teacher, drop / "plain")
    (request,) = location.look(SENSOR).run_requests
    location.carry_out(request, SENSOR)
    with open_workspace(str(home / "recipe.yaml"), home, ["release.names={}"]) as workspace:
        pruned = workspace.lake.prune("tiny", [])
        assert pruned
        assert not any(row.asset.startswith("automation/") for row in workspace.plan().rows)
    assert rows_of(home, "plain", "evals")
    assert rows_of(home, "teacher", "evals") == []


def test_the_report_and_the_printed_table_show_dropped_models(location, drop, home, tiny_teacher):
    from apriel_assets.reporting.summary import summary_rows
    from apriel_assets.tables.schemas import TABLES

    shutil.copytree(tiny_teacher, drop / "plain")
    (request,) = location.look(SENSOR).run_requests
    location.carry_out(request, SENSOR)
    with open_workspace(str(home / "recipe.yaml"), home) as workspace:
        tables = {name: workspace.lake.read(name, "tiny") for name in TABLES}
        assert "plain" in [row["model"] for row in summary_rows(tables)]
        assert "plain" in workspace.write_report().read_text()


def test_a_changed_checkpoint_replaces_its_rows(location, drop, home, tiny_teacher):
    shutil.copytree(tiny_teacher, drop / "mine")
    (first,) = location.look(SENSOR).run_requests
    location.carry_out(first, SENSOR)
    before = rows_of(home, "mine", "evals")
    shutil.rmtree(drop / "mine")
    shutil.copytree(checkpoint_of(home, "h1/sft"), drop / "mine")
    (second,) = location.look(SENSOR).run_requests
    assert second.run_key != first.run_key
    location.carry_out(second, SENSOR)
    after = rows_of(home, "mine", "evals")
    assert len(after) == len(before)
    assert [row["version"] for row in after] != [row["version"] for row in before]


def test_a_half_copied_checkpoint_waits(location, drop, tiny_teacher):
    shutil.copytree(tiny_teacher, drop / "plain", ignore=shutil.ignore_patterns("*.safetensors"))
    assert "no .safetensors file" in location.look(SENSOR).skip_message
    content = (tiny_teacher / "model.safetensors").read_bytes()
    (drop / "plain" / "model.safetensors").write_bytes(content[:-1])
    assert "not whole" in location.look(SENSOR).skip_message
    (drop / "plain" / "model.safetensors").write_bytes(content)
    assert len(location.look(SENSOR).run_requests) == 1


@pytest.mark.parametrize("harm", ["unknown architecture", "weights of another shape", "another vocabulary"])
def test_a_broken_checkpoint_is_reported_once_with_its_reason(harm, location, drop, tiny_teacher):
    shutil.copytree(tiny_teacher, drop / "bad")
    config = json.loads((drop / "bad" / "config.json").read_text())
    config |= {
        "unknown architecture": {"model_type": "nonesuch", "architectures": ["Nonesuch"]},
        "weights of another shape": {"intermediate_size": 64},
        "another vocabulary": {"vocab_size": config["vocab_size"] - 1},
    }[harm]
    if harm == "another vocabulary":
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        torch.manual_seed(0)
        shutil.rmtree(drop / "bad")
        model_config = AutoConfig.for_model(**config)
        AutoModelForCausalLM.from_config(model_config).save_pretrained(drop / "bad")
    else:
        (drop / "bad" / "config.json").write_text(json.dumps(config))
    (request,) = location.look(SENSOR).run_requests
    assert not location.carry_out(request, SENSOR).success
    found = location.look(SENSOR)
    assert found.run_requests == []
    assert "bad" in found.skip_message
    assert str(drop / "bad") in found.skip_message
