"""Two homes that shared out one recipe become one: nothing is built again, and nothing that is there is touched."""

import pytest

from apriel_assets.errors import UserError
from apriel_assets.tables.schemas import to_table
from resources.artifact_store import ArtifactStore
from resources.joined_home import join_home
from resources.lake import Lake


def make(home, asset, text, address="a1"):
    with ArtifactStore(home).create(asset, address, {"recipe": "r"}) as draft:
        (draft.path / "said.txt").write_text(text)


def publish(home, asset, model):
    rows = to_table("checkpoints", [{"model": model, "placement": ["fa"]}])
    Lake(home).publish({"checkpoints": rows}, recipe="r", asset=asset, version="v")


@pytest.fixture
def homes(tmp_path):
    for name, own in (("one", "h1/h2"), ("other", "supernet")):
        make(tmp_path / name, "teacher", name)
        make(tmp_path / name, own, name)
        publish(tmp_path / name, own, own)
    return tmp_path / "one", tmp_path / "other"


def said(home, asset):
    found = ArtifactStore(home).find(asset, "a1")
    assert found is not None
    return (found.path / "said.txt").read_text()


def test_what_only_the_other_has_comes_and_the_rest_stays(homes):
    one, other = homes
    assert join_home(other, one) == 1
    assert [said(one, asset) for asset in ("teacher", "h1/h2", "supernet")] == ["one", "one", "other"]
    assert sorted(Lake(one).read("checkpoints", "r")["model"].to_pylist()) == ["h1/h2", "supernet"]
    _, rows = Lake(one).query("SELECT model FROM checkpoints ORDER BY model")
    assert rows == [("h1/h2",), ("supernet",)]
    assert join_home(other, one) == 0


def test_other_addresses_of_one_asset_are_all_kept(homes):
    one, other = homes
    make(other, "teacher", "edited", address="a2")
    assert join_home(other, one) == 2
    assert ArtifactStore(one).find("teacher", "a2") is not None


def test_a_draft_is_no_artifact(homes):
    one, other = homes
    draft = other / "artifacts" / "store" / ".a1.tmp"
    draft.mkdir(parents=True)
    (draft / "provenance.json").write_text("{}")
    assert join_home(other, one) == 1
    assert not (one / "artifacts" / "store").exists()


def test_what_is_no_home_is_refused(homes, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no home"):
        join_home(tmp_path / "empty", homes[0])
    (homes[1] / "format.json").write_text('{"format": 99}\n')
    with pytest.raises(UserError, match="format 99"):
        join_home(homes[1], homes[0])
