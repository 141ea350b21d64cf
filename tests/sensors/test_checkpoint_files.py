"""A checkpoint directory counts when all of it is there and has lain still; half-copied ones wait."""

import json
import os
import time

import pytest
import torch
from safetensors.torch import save_file

from resources.checkpoint_files import fingerprint, missing_of
from sensors.checkpoints import look


@pytest.fixture
def dropped(tmp_path):
    path = tmp_path / "drop" / "new"
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    save_file({"weight": torch.ones(100)}, path / "model.safetensors")
    return path


def test_a_whole_checkpoint_lacks_nothing(dropped):
    assert missing_of(dropped) is None


@pytest.mark.parametrize("kept", [0, 4, 8, 40, 100, -1])
def test_weights_that_are_cut_off_anywhere_are_seen(kept, dropped):
    weights = dropped / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    assert "not whole" in (missing_of(dropped) or "")


def test_weights_that_are_only_reserved_yet_are_seen(dropped):
    weights = dropped / "model.safetensors"
    weights.write_bytes(bytes(weights.stat().st_size))
    assert "not whole" in (missing_of(dropped) or "")


@pytest.mark.parametrize(
    ("name", "content"),
    [("config.json", None), ("config.json", '{"model_type": "lla'), ("model.safetensors", None)],
)
def test_files_that_have_not_come_yet_are_named(name, content, dropped):
    (dropped / name).unlink()
    if content is not None:
        (dropped / name).write_text(content)
    assert name.removeprefix("model") in (missing_of(dropped) or "")


def test_every_shard_of_the_index_is_waited_for(dropped):
    (dropped / "model.safetensors").rename(dropped / "model-00001-of-00002.safetensors")
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (dropped / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert missing_of(dropped) == "no model-00002-of-00002.safetensors"


def test_fingerprint_follows_content_not_reading(dropped):
    before = fingerprint(dropped)
    (dropped / "config.json").read_text()
    assert fingerprint(dropped) == before
    os.utime(dropped / "config.json", ns=(1, 1))
    assert fingerprint(dropped) != before


def test_only_checkpoints_that_have_lain_still_are_complete(dropped):
    now = time.time()
    found = look(dropped.parent, [], 30, now)
    assert (found.complete, "changed just now" in found.waiting[0]) == ({}, True)
    found = look(dropped.parent, [], 30, now + 31)
    assert found.complete == {"new": fingerprint(dropped)}


@pytest.mark.parametrize(
    ("name", "expected"), [("h3", "has a model of this name"), ("a b", "letters, digits"), (".new.tmp", None)]
)
def test_names_that_cannot_be_are_reported(name, expected, dropped):
    dropped.rename(dropped.with_name(name))
    found = look(dropped.parent, ["h3"], 0, time.time() + 1)
    assert found.complete == {}
    assert [expected in line for line in found.waiting] == ([True] if expected else [])


def test_other_files_and_directories_are_left_alone(dropped):
    (dropped.parent / "notes").mkdir()
    (dropped.parent / "README").write_text("x")
    assert set(look(dropped.parent, [], 0, time.time() + 1).complete) == {"new"}
