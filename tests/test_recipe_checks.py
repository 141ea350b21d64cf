"""A teacher's path is looked at before anything runs; a hub id is not."""

import json

import pytest

from apriel_assets.definitions import plan_assets
from apriel_assets.errors import UserError
from apriel_assets.recipe import load_recipe


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working directory and the user's home: a teacher's, an empty one, a file of weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("good", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "good" / "config.json").write_text(json.dumps({"num_hidden_layers": 12}))
    (tmp_path / "one.safetensors").write_text("")
    (tmp_path / "one.gguf").write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("/no/such/model", "/no/such/model does not exist"),
        ("./modle", "modle does not exist"),
        ("../modle", "modle does not exist"),
        ("~/modle", "modle does not exist"),
        ("models/one.gguf", "one.gguf does not exist"),
        ("model.safetensors", "model.safetensors does not exist"),
        ("one.safetensors", "no .gguf"),
        ("empty", "no config.json in"),
    ],
)
def test_path_with_nothing_to_load_is_refused_before_the_plan(model, expected, here):
    with pytest.raises(UserError, match=expected) as error:
        plan_assets(load_recipe("quickstart", [f"teacher.model={model}"]))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("model", ["bundled", "org/no-such-model", "./good", "~/good", "good", "one.gguf"])
def test_what_may_load_is_planned(model, here):
    assert "teacher" in plan_assets(load_recipe("quickstart", [f"teacher.model={model}"]))


def test_gguf_file_within_a_directory_is_looked_for(here):
    with pytest.raises(UserError, match=r"no q4\.gguf in"):
        plan_assets(load_recipe("quickstart", ["teacher={model: ./good, gguf_file: q4.gguf}"]))
