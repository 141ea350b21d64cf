"""Every bit of a home that has a hash counts: flipped anywhere, it is told, and what mends it is said."""

import contextlib
import json
import os
import random
import shutil
import sqlite3
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from apriel_assets.distillation.resume import save_state
from apriel_assets.errors import UserError
from apriel_assets.evaluation.kept_answers import KeptAnswers
from apriel_assets.scoring.memo import ScoreMemo
from apriel_assets.tables.schemas import to_table
from resources import artifact_store, file_hashes
from resources.artifact_store import ArtifactStore
from resources.file_hashes import SMALL_BYTES
from resources.home import prepare_home
from resources.lake import Lake
from resources.verification import verify_home
from tests.soak.bit_flips import flip, flip_bits, is_told

BEFORE_FORMATS = Path(__file__).parent / "home_before_formats"
ROWS = {"model": "h4", "task": "recall", "metric": "accuracy", "value": 0.5, "num_problems": 8}


def fill(home: Path) -> Path:
    """Write one of everything that has a hash."""
    prepare_home(home)
    (home / "dagster" / "dagster.yaml").unlink()
    rows = to_table("evals", [ROWS])
    with ArtifactStore(home).create("h1/h4", "a" * 16, {"recipe": "r"}) as draft:
        (draft.path / "checkpoint").mkdir()
        (draft.path / "checkpoint" / "model.safetensors").write_bytes(bytes(range(256)))
        draft.tables["evals"] = rows
    Lake(home).publish({"evals": rows}, recipe="r", asset="h1/h4", version="v", address="a" * 16)
    student = torch.nn.Linear(2, 2)
    tables = {"training": pa.table({"step": [1]})}
    save_state(home / "work" / "h1" / "h5" / ("b" * 16), student, [], tables, step=1, identity={"seed": 1})
    ScoreMemo(home / "scores").add("scope", {("fa", "swa"): {"ois": 0.25}})
    with KeptAnswers(home / "work" / "lm_evals" / "h4" / ("c" * 16), "scope") as kept:
        kept.add("key", [1.5, "text"])
    return home


@pytest.fixture
def home(tmp_path):
    return fill(tmp_path / "home")


def test_a_whole_home_has_no_damage(home):
    seen = []
    found = verify_home(home, lambda done, total: seen.append((done, total)))
    assert (found.damage, found.leftovers, found.num_artifacts) == ([], [], 1)
    assert seen[-1] == (found.num_bytes, found.num_bytes)
    assert found.num_bytes > 1000


def test_every_flipped_bit_is_told(home):
    """Three bits of each file, then some hundred anywhere."""
    lot = random.Random(0)
    for path in [path for path in home.rglob("*") if path.is_file() and path.name != "catalog.duckdb"]:
        before = path.read_bytes()
        for _ in range(3):
            place = flip(path, lot)
            assert is_told(home, path), (path, place)
            path.write_bytes(before)
    found = flip_bits(home, 150, seed=1)
    assert found["missed"] == []
    assert set(found["told"]) == {"artifacts", "lake", "work", "scores", "format.json"}
    assert set(found["not_covered"]) <= {"catalog.duckdb"}


def test_a_database_with_a_damaged_schema_is_told_whatever_its_names_became(tmp_path):
    """SQLite's message repeats names of the file, which are no text any more."""
    path = tmp_path / "dagster" / "runs.db"
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("create table runs (name text not null, number integer not null unique)")
        database.execute("create index by_name on runs (name)")
        database.execute("insert into runs values ('one', 1)")
        database.commit()
    good = path.read_bytes()
    told = []
    for at in range(good.index(b"by_name"), good.index(b"(name)") + 6):
        path.write_bytes(good[:at] + bytes([good[at] ^ 0x80]) + good[at + 1 :])
        told += [own.path for own in verify_home(tmp_path).damage]
    assert len(told) > 20
    assert set(told) == {"dagster/runs.db"}


@pytest.mark.parametrize(
    "pattern",
    [
        "artifacts/**/model.safetensors",
        "artifacts/**/provenance.json",
        "lake/evals/*/*",
        "work/h1/**/student.*",
    ],
)
def test_what_is_missing_or_cut_is_told(pattern, home):
    (path,) = home.glob(pattern)
    os.truncate(path, path.stat().st_size // 2)
    assert is_told(home, path)
    shutil.copy(path, home / "elsewhere")
    if not pattern.startswith("lake"):  # what the lake lacks is published again
        path.unlink()
        (damage,) = verify_home(home).damage
        assert path.is_relative_to(home / damage.path)
        assert "missing" in damage.what


def test_an_artifact_under_another_name_is_told(home):
    (own,) = home.glob("artifacts/h1/h4/*")
    own.rename(own.with_name("d" * 16))
    (damage,) = verify_home(home).damage
    assert "under another name" in damage.what


def test_rot_of_a_large_file_that_looks_unchanged_reaches_the_next_plan(home):
    store = ArtifactStore(home)
    with store.create("supernet", "e" * 16, {}) as draft:
        (draft.path / "model.safetensors").write_bytes(bytes(SMALL_BYTES))
    path = store.directory("supernet", "e" * 16) / "model.safetensors"
    record = home / "verified" / "supernet" / f"{'e' * 16}.json"
    flip(path, random.Random(0))
    facts = json.loads(record.read_text())
    own = path.stat()
    facts["model.safetensors"]["stamp"] = [own.st_size, own.st_mtime_ns, own.st_ctime_ns, own.st_ino]
    record.write_text(json.dumps(facts))  # as if the disk had done it, which changes no times
    assert store.find("supernet", "e" * 16) is not None
    assert [own.path for own in verify_home(home).damage] == [f"artifacts/supernet/{'e' * 16}"]
    assert store.find("supernet", "e" * 16) is None


def test_a_damaged_record_of_hashes_condemns_no_good_file(home, monkeypatch):
    store = ArtifactStore(home)
    with store.create("supernet", "e" * 16, {}) as draft:
        (draft.path / "model.safetensors").write_bytes(bytes(SMALL_BYTES))
    record = home / "verified" / "supernet" / f"{'e' * 16}.json"
    facts = json.loads(record.read_text())
    facts["model.safetensors"]["sha256"] = "0" * 64
    record.write_text(json.dumps(facts))
    monkeypatch.setattr(file_hashes, "_read", {})  # another process
    assert store.find("supernet", "e" * 16) is not None


def test_leftovers_of_killed_writers_are_named_and_are_no_damage(home):
    half = home / "artifacts" / "h1" / "h4" / f".{'f' * 16}.0a1b2c-12345678.tmp"
    half.mkdir()
    (half / "model.safetensors").write_bytes(bytes(10))
    found = verify_home(home)
    assert found.damage == []
    assert found.leftovers == [str(half.relative_to(home))]
    assert found.leftover_bytes >= 10


def test_a_home_from_before_there_were_formats_opens(tmp_path):
    home = shutil.copytree(BEFORE_FORMATS, tmp_path / "home")
    store = ArtifactStore(home)
    (provenance,) = store.provenances("evals/h6")
    artifact = store.find("evals/h6", provenance["address"])
    assert artifact is not None
    assert artifact.table("evals").column("value").to_pylist() == [0.75]
    assert Lake(home).query("select value from evals")[1] == [(0.75,)]
    assert dict(ScoreMemo(home / "scores").load("scope")) == {("fa", "swa"): {"ois": 0.5}}
    # Files of the lake had no seals yet: the next run writes them anew from the artifact.
    assert not Lake(home).holds(["evals"], "old", "evals/h6", "recall", artifact.address)
    assert {own.path.split("/")[0] for own in verify_home(home).damage} == {"lake"}
    prepare_home(home)
    assert (home / "format.json").is_file()


def test_a_home_of_a_newer_version_is_refused_in_one_line(home):
    (home / "format.json").write_text('{"format": 7}\n')
    for read in (lambda: prepare_home(home), lambda: Lake(home).connect()):
        with pytest.raises(UserError, match=r"says format 7, .* reads up to 1; upgrade") as error:
            read()
        assert "\n" not in str(error.value)


def test_an_artifact_of_a_newer_version_is_refused_not_rebuilt(home, monkeypatch):
    monkeypatch.setattr(artifact_store, "FORMAT", 2)
    with ArtifactStore(home).create("h1/h6", "a1" * 8, {}) as draft:
        (draft.path / "x").write_text("x")
    monkeypatch.undo()
    with pytest.raises(UserError, match="has format 2, this version reads up to 1"):
        ArtifactStore(home).find("h1/h6", "a1" * 8)
