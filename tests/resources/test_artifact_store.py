"""Artifacts appear whole or not at all, keep their address, and show when they are damaged."""

import os
import subprocess
import sys
import textwrap

import pyarrow as pa
import pytest

from resources.artifact_store import ArtifactStore
from resources.atomic import replaced_file


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(tmp_path)


def make(store, address="a1", text="hello"):
    with store.create("h1/h4", address, {"recipe": "r"}) as draft:
        (draft.path / "weights.bin").write_text(text)
        draft.tables["evals"] = pa.table({"value": [1.0]})
        draft.figures["tokens"] = 7
    return store.find("h1/h4", address)


def test_artifact_holds_payload_tables_and_provenance(store):
    artifact = make(store)
    assert (artifact.path / "weights.bin").read_text() == "hello"
    assert artifact.table("evals").to_pylist() == [{"value": 1.0}]
    assert artifact.provenance["figures"]["tokens"] == 7
    assert artifact.provenance["figures"]["seconds"] >= 0
    assert artifact.provenance["files"]["weights.bin"]["bytes"] == 5
    assert artifact.data_version == "a1"


def test_address_depends_on_each_ingredient_and_on_nothing_else(store):
    base = store.address("h1/h4", "1+ab", {"teacher": "x", "traces": "y"})
    assert base == store.address("h1/h4", "1+ab", {"traces": "y", "teacher": "x"})
    others = [
        store.address("h1/h6", "1+ab", {"teacher": "x", "traces": "y"}),
        store.address("h1/h4", "2+ab", {"teacher": "x", "traces": "y"}),
        store.address("h1/h4", "1+ab", {"teacher": "x", "traces": "z"}),
        store.address("h1/h4", "1+ab", {"teacher": "x", "traces": "y"}, "recall"),
    ]
    assert len({base, *others}) == 5


def test_failed_build_leaves_nothing_visible(store):
    def build(draft):
        (draft.path / "half").write_text("x")
        raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        store.get_or_create("h1/h4", "a1", {}, build)
    assert store.find("h1/h4", "a1") is None
    assert list(store.home.rglob("half")) == []


def test_second_request_does_not_build(store):
    calls = []

    def build(draft):
        calls.append(draft)

    assert [store.get_or_create("a", "1", {}, build)[1] for _ in range(2)] == [True, False]
    assert len(calls) == 1


@pytest.mark.parametrize("harm", ["truncate", "delete", "provenance"])
def test_damage_is_seen_and_mended(store, harm):
    artifact = make(store)
    if harm == "truncate":
        os.truncate(artifact.path / "weights.bin", 3)
    elif harm == "delete":
        (artifact.path / "weights.bin").unlink()
    else:
        (artifact.path / "provenance.json").write_text("{")
    assert store.find("h1/h4", "a1") is None
    assert make(store).damage() is None


def test_killed_writer_leaves_the_old_file(tmp_path):
    target = tmp_path / "table.parquet"
    with replaced_file(target) as temporary:
        temporary.write_text("old")
    code = f"""
        import os, signal
        from pathlib import Path
        from resources.atomic import replaced_file
        with replaced_file(Path({str(target)!r})) as temporary:
            temporary.write_text("new, half writ")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert done.returncode == -9
    assert target.read_text() == "old"
