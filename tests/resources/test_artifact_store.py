"""Artifacts appear whole or not at all, keep their address, and show when they are damaged."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import textwrap
import time

import pyarrow as pa
import pytest

from apriel_assets.errors import UserError
from apriel_assets.seals import file_digest
from resources import atomic, file_hashes
from resources.artifact_store import ArtifactStore
from resources.atomic import replaced_file
from resources.file_hashes import SMALL_BYTES


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
    make(store)
    assert store.damage("h1/h4", "a1") is None


@pytest.mark.parametrize("file", ["weights.bin", "provenance.json"])
def test_what_cannot_be_read_is_not_damage(store, file):
    artifact = make(store)
    kept = (artifact.path / file).rename(store.home / "kept")
    (artifact.path / file).symlink_to(file)  # a loop: not even root can open it
    for read in (store.find, store.damage):
        with pytest.raises(UserError, match=f"{file} cannot be read: ") as error:
            read("h1/h4", "a1")
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="cannot be read"):
        store.get_or_create("h1/h4", "a1", {}, lambda draft: pytest.fail("built"))
    kept.replace(artifact.path / file)
    assert store.find("h1/h4", "a1") == artifact


def test_what_cannot_be_read_tells_no_time_and_stops_no_plan(store):
    make(store, "a1")
    broken = make(store, "a2").path / "provenance.json"
    broken.unlink()
    broken.symlink_to(broken.name)
    assert [own["address"] for own in store.provenances("h1/h4")] == ["a1"]


def test_a_damaged_artifact_stays_until_another_takes_its_place(store):
    path = make(store, text="hello").path
    (path / "tables" / "evals.parquet").unlink()

    def fail(draft):
        assert (path / "weights.bin").read_text() == "hello"
        raise RuntimeError("no disk left")

    with pytest.raises(RuntimeError, match="no disk left"):
        store.get_or_create("h1/h4", "a1", {}, fail)
    assert (path / "weights.bin").read_text() == "hello"
    assert store.damage("h1/h4", "a1") == "tables/evals.parquet is missing"
    assert make(store, text="again").path == path
    assert (path / "weights.bin").read_text() == "again"
    assert list(path.parent.iterdir()) == [path]


def flip(path, offset=100):
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("file", ["tables/evals.parquet", "weights.bin", "large.bin", "provenance.json"])
def test_one_flipped_bit_is_seen(store, file):
    with store.create("h1/h4", "a1", {}) as draft:
        (draft.path / "weights.bin").write_bytes(bytes(200))
        (draft.path / "large.bin").write_bytes(bytes(SMALL_BYTES + 1))
        draft.tables["evals"] = pa.table({"value": [1.0]})
    assert store.find("h1/h4", "a1") is not None
    flip(store.directory("h1/h4", "a1") / file)
    assert store.find("h1/h4", "a1") is None
    assert file in store.damage("h1/h4", "a1")


@pytest.fixture
def hashed(monkeypatch):
    """Return the names of the files that are read to be hashed from here on, by a process that knows none."""
    names = []

    def digest(path):
        names.append(path.name)
        return file_digest(path)

    monkeypatch.setattr(file_hashes, "_read", {})
    monkeypatch.setattr(file_hashes, "file_digest", digest)
    return names


def make_large(store):
    with store.create("h1/h4", "a1", {}) as draft:
        (draft.path / "large.bin").write_bytes(bytes(SMALL_BYTES))
        (draft.path / "small.txt").write_text("x")


def test_large_file_is_hashed_when_it_is_written_and_not_again(store, hashed, monkeypatch):
    make_large(store)
    hashed.clear()
    assert [store.find("h1/h4", "a1") is not None for _ in range(2)] == [True, True]
    assert hashed == []  # this process wrote them
    monkeypatch.setattr(file_hashes, "_read", {})
    assert [store.find("h1/h4", "a1") is not None for _ in range(2)] == [True, True]
    assert hashed == ["small.txt"]  # another process reads what is cheap to read, once


@pytest.mark.parametrize("loss", ["copied home", "lost record", "torn record"])
def test_large_files_are_hashed_once_where_nothing_is_known_of_them(
    store, hashed, monkeypatch, tmp_path, loss
):
    make_large(store)
    (record,) = store.home.glob("verified/h1/h4/*")
    if loss == "copied home":
        store = ArtifactStore(shutil.copytree(store.home, tmp_path / "copy"))
    elif loss == "lost record":
        record.unlink()
    else:
        record.write_text('{"large.bin": {"st')
    for expected in (["large.bin", "small.txt"], ["small.txt"]):
        monkeypatch.setattr(file_hashes, "_read", {})
        hashed.clear()
        assert store.find("h1/h4", "a1") is not None
        assert sorted(hashed) == expected


def test_file_changed_behind_its_times_is_seen(store, monkeypatch):
    make_large(store)
    path = store.directory("h1/h4", "a1") / "large.bin"
    before = path.stat()
    flip(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as a restore from a backup may set them
    monkeypatch.setattr(file_hashes, "_read", {})
    assert store.find("h1/h4", "a1") is None


BUILDER = """
    import sys, time
    from pathlib import Path
    from resources.artifact_store import ArtifactStore
    home = Path(sys.argv[1])
    def build(draft):
        with (home / "builds").open("a") as log:
            log.write("x")
        (draft.path / "weights.bin").write_text("w")
        while not (home / "go on").exists():
            time.sleep(0.01)
    print(ArtifactStore(home).get_or_create("h1/h4", "a1", {}, build)[1])
"""


@pytest.fixture
def start_builder(store):
    """Return a function that starts a process which builds one artifact; none outlives the test."""
    command = [sys.executable, "-c", textwrap.dedent(BUILDER), str(store.home)]
    with contextlib.ExitStack() as started:

        def start():
            process = started.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            started.callback(process.kill)
            return process

        yield start


def wait_until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def builds(store):
    path = store.home / "builds"
    return path.read_text() if path.exists() else ""


def test_drafts_of_killed_builders_of_this_machine_are_swept_by_the_next(store, monkeypatch):
    final = store.directory("h1/h4", "a1")
    own = atomic.temporary_name(final)
    monkeypatch.setattr(socket, "gethostname", lambda: "another")
    other = atomic.temporary_name(final)
    monkeypatch.undo()
    for draft in (own, other):
        draft.mkdir(parents=True)
        (draft / "weights.bin").write_text("half")

    def build(draft):
        (draft.path / "weights.bin").write_text("whole")

    store.get_or_create("h1/h4", "a1", {}, build)
    assert sorted(final.parent.iterdir()) == sorted([final, other])


def test_new_directories_are_flushed_into_their_parents(tmp_path, monkeypatch):
    flushed = set()
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.add(os.fstat(handle).st_ino))
    with atomic.created_directory(tmp_path / "artifacts" / "h1" / "h4" / "a1") as temporary:
        (temporary / "weights.bin").write_text("x")
    made = [tmp_path, *(tmp_path / path for path in ("artifacts", "artifacts/h1", "artifacts/h1/h4"))]
    assert {path.stat().st_ino for path in made} <= flushed


def test_second_process_waits_for_the_first_and_finds_its_artifact(store, start_builder):
    processes = [start_builder() for _ in range(2)]
    wait_until(lambda: builds(store) == "x")
    (store.home / "go on").touch()
    assert sorted(process.communicate(timeout=30)[0].strip() for process in processes) == ["False", "True"]
    assert builds(store) == "x"
    assert list(store.home.glob("work/.locks/*")) == []


def test_killed_builder_leaves_its_lock_to_the_next(store, start_builder):
    first = start_builder()
    wait_until(lambda: builds(store) == "x")
    second = start_builder()
    first.kill()
    first.communicate()
    wait_until(lambda: builds(store) == "xx")
    (store.home / "go on").touch()
    assert second.communicate(timeout=30)[0].strip() == "True"


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
