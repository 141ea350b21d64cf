"""Which code an artifact says it was made by."""

import subprocess

import pytest

import apriel_assets
from resources import provenance


@pytest.fixture
def code_revision():
    """The function without its cache."""
    return provenance.code_revision.__wrapped__


@pytest.fixture
def installed_without_git(tmp_path, monkeypatch):
    monkeypatch.delenv("APRIEL_COMMIT", raising=False)
    monkeypatch.setattr(apriel_assets, "__file__", str(tmp_path / "apriel_assets" / "__init__.py"))
    return tmp_path


def test_what_built_the_image_says_which_commit(code_revision, monkeypatch):
    monkeypatch.setenv("APRIEL_COMMIT", "0123456789ab\n")
    assert code_revision() == "0123456789ab"


@pytest.mark.parametrize("value", ["", " "])
def test_without_commit_and_checkout_it_is_the_version(
    value, code_revision, installed_without_git, monkeypatch
):
    monkeypatch.setenv("APRIEL_COMMIT", value)
    assert code_revision() == f"version {apriel_assets.__version__}"


def test_a_checkout_is_its_commit_and_whether_it_was_edited(code_revision, installed_without_git):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.cc"]
        command = ["git", "-C", str(installed_without_git), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    (installed_without_git / "file").write_text("one")
    git("add", "file")
    git("commit", "-m", "one")
    commit = git("rev-parse", "HEAD")[:12]
    assert code_revision() == commit
    (installed_without_git / "file").write_text("two")
    assert code_revision() == f"{commit}+dirty"
