"""A packed home is small, comes back byte for byte, and says what it was packed without."""

import shutil
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from apriel_assets.chosen_model import Found
from apriel_assets.errors import UserError
from resources.artifact_store import ArtifactStore
from resources.packed_home import pack_home, unpack_home


def write_model(store, asset, weights):
    with store.create(asset, "a1", {"recipe": "r"}) as draft:
        (draft.path / "checkpoint").mkdir()
        (draft.path / "checkpoint" / "config.json").write_text("{}")
        save_file(weights, draft.path / "checkpoint" / "model.safetensors", metadata={"format": "pt"})
    found = store.find(asset, "a1")
    assert found is not None
    return found


@pytest.fixture
def home(tmp_path):
    """Two models that share a tensor, in a home with a table, a training state and a lock."""
    home = tmp_path / "home"
    store = ArtifactStore(home)
    torch.manual_seed(0)
    shared = torch.randn(64, 64).bfloat16()
    write_model(store, "h1/h2", {"shared": shared, "own": torch.randn(3, 5), "flags": torch.tensor([True])})
    write_model(store, "supernet", {"shared": shared, "count": torch.tensor(7), "none": torch.zeros(0, 4)})
    (home / "lake").mkdir()
    (home / "lake" / "rows.parquet").write_bytes(b"rows")
    (home / "work" / "h1").mkdir(parents=True)
    (home / "work" / "h1" / "state.bin").write_bytes(b"x" * 1000)
    return home


def artifact(home, asset):
    found = ArtifactStore(home).find(asset, "a1")
    assert found is not None
    return found


def test_what_is_needed_comes_back_byte_for_byte(home, tmp_path):
    needed = {artifact(home, asset).path for asset in ("h1/h2", "supernet")}
    pack_home(home, tmp_path / "packed", needed)
    unpack_home(tmp_path / "packed", tmp_path / "other")
    before = {
        path.relative_to(home): path.read_bytes()
        for path in home.rglob("*")
        if path.is_file() and "work" not in path.parts and "verified" not in path.parts
    }
    after = {
        path.relative_to(tmp_path / "other"): path.read_bytes()
        for path in (tmp_path / "other").rglob("*")
        if path.is_file()
    }
    assert after == before
    assert artifact(tmp_path / "other", "supernet").left_out == []


def test_weights_that_nothing_needs_stay_behind_and_the_artifact_says_so(home, tmp_path):
    sizes = pack_home(home, tmp_path / "packed", {artifact(home, "supernet").path})
    file = artifact(home, "h1/h2").path / "checkpoint" / "model.safetensors"
    assert sizes.left_out_bytes == file.stat().st_size
    unpack_home(tmp_path / "packed", tmp_path / "other")
    found = artifact(tmp_path / "other", "h1/h2")  # not damaged: all else is there
    assert found.left_out == ["checkpoint/model.safetensors"]
    assert (found.path / "checkpoint" / "config.json").is_file()
    assert not (found.path / "checkpoint" / "model.safetensors").exists()
    assert artifact(home, "h1/h2").left_out == []  # the packed home itself is as it was

    # Packed once more, it still says so.
    pack_home(tmp_path / "other", tmp_path / "again", set())
    unpack_home(tmp_path / "again", tmp_path / "third")
    assert artifact(tmp_path / "third", "h1/h2").left_out == ["checkpoint/model.safetensors"]


def test_a_model_whose_weights_stayed_behind_is_refused_by_that_reason(home, tmp_path):
    pack_home(home, tmp_path / "packed", set())
    unpack_home(tmp_path / "packed", tmp_path / "other")
    model = Found(
        name="h2",
        directory=artifact(tmp_path / "other", "h1/h2").path / "checkpoint",
        home=tmp_path / "other",
    )
    with pytest.raises(
        UserError, match=r"h2: its weights were left behind when the home was packed; .*h1/h2/a1"
    ):
        model.load()


def test_other_damage_is_still_found(home, tmp_path):
    pack_home(home, tmp_path / "packed", set())
    unpack_home(tmp_path / "packed", tmp_path / "other")
    store = ArtifactStore(tmp_path / "other")
    (artifact(tmp_path / "other", "h1/h2").path / "checkpoint" / "config.json").write_text("{ }")
    assert "config.json" in (store.damage("h1/h2", "a1") or "")


def test_what_models_share_is_stored_once(tmp_path):
    store = ArtifactStore(tmp_path / "home")
    torch.manual_seed(0)
    shared = torch.randn(300, 300).bfloat16()
    paths = {write_model(store, f"m{i}", {"shared": shared, "i": torch.tensor(i)}).path for i in range(4)}
    sizes = pack_home(tmp_path / "home", tmp_path / "packed", paths)
    one = shared.numel() * 2
    assert sizes.weight_bytes > 4 * one
    assert sizes.file_bytes < 0.9 * one  # exponents of like numbers compress, their other bits do not


def test_sixteen_bits_compress_by_their_bytes(tmp_path):
    store = ArtifactStore(tmp_path / "home")
    torch.manual_seed(0)
    path = write_model(store, "m", {"w": torch.randn(500, 500).bfloat16()}).path
    sizes = pack_home(tmp_path / "home", tmp_path / "packed", {path})
    plain = tmp_path / "plain.zip"
    with zipfile.ZipFile(plain, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(path / "checkpoint" / "model.safetensors", "model")
    assert sizes.file_bytes < 0.95 * plain.stat().st_size


def test_weights_outside_of_artifacts_always_come_along(home, tmp_path):
    (home / "teacher").mkdir()
    save_file({"w": torch.arange(6.0)}, home / "teacher" / "model.safetensors")
    pack_home(home, tmp_path / "packed", set())
    unpack_home(tmp_path / "packed", tmp_path / "other")
    assert load_file(tmp_path / "other" / "teacher" / "model.safetensors")["w"].tolist() == list(range(6))


def test_an_existing_home_is_not_touched(home, tmp_path):
    pack_home(home, tmp_path / "packed", set())
    with pytest.raises(UserError, match="is not empty"):
        unpack_home(tmp_path / "packed", home)


@pytest.mark.parametrize("harm", ["text", "truncated", "absent", "outside"])
def test_what_is_no_packed_home_is_refused_and_leaves_nothing(home, tmp_path, harm):
    packed = tmp_path / "packed"
    pack_home(home, packed, set())
    if harm == "text":
        packed.write_text("nothing")
    elif harm == "truncated":
        packed.write_bytes(packed.read_bytes()[:-100])
    elif harm == "absent":
        packed.unlink()
    else:
        with zipfile.ZipFile(packed, "a") as archive:
            archive.writestr("files/../../escaped", "x")
    with pytest.raises(UserError, match="no packed home"):
        unpack_home(packed, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    assert not (tmp_path / "escaped").exists()


def test_a_run_goes_on_from_a_packed_home(world, tiny_recipe_file, tmp_path):
    """Finished evals need no weights: an edit of one task runs it where they are, and is refused where they are not."""
    from apriel_assets.workspace import open_workspace

    recipe, home = str(tiny_recipe_file), tmp_path / "home"
    shutil.copytree(world, home)
    overlays = ["evals.tasks=[recall,arithmetic,copy]"]
    with open_workspace(recipe, home, overlays) as workspace:
        needed = workspace.needed_artifacts(["evals/h3"])
    assert {path.parent.name for path in needed} == {"teacher", "h3"}
    pack_home(home, tmp_path / "packed", needed)
    unpack_home(tmp_path / "packed", tmp_path / "other")
    with open_workspace(recipe, tmp_path / "other") as workspace:
        assert workspace.plan().rows == ()  # what was left behind is not missed
        assert {path.name for path in workspace.needed_artifacts()} == set()
    with open_workspace(recipe, tmp_path / "other", overlays, write=True) as workspace:
        assert [row.place for row in workspace.run(["evals/h3"])] == [("evals/h3", "copy")]
        with pytest.raises(UserError, match=r"evals/h1 needs the weights of h1/h1, which were left behind"):
            workspace.run(["evals/h1"])
