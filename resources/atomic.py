"""Writes that are either whole or absent, also after a crash or a power cut."""

import contextlib
import hashlib
import json
import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_SUFFIX = ".tmp"


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _made(directory: Path) -> None:
    """Make a directory and its parents; each is in its parent for good when this returns."""
    missing = []
    while not directory.is_dir():
        missing.append(directory)
        directory = directory.parent
    for own in reversed(missing):
        own.mkdir(exist_ok=True)
        _fsync(own.parent)


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]


def temporary_name(final: Path) -> Path:
    """Return an unused sibling name; the leading dot keeps it out of every glob that readers use."""
    return final.with_name(f".{final.name}.{_host()}-{uuid.uuid4().hex[:8]}{_SUFFIX}")


def is_temporary(path: Path) -> bool:
    """Tell whether a name is one of `temporary_name`: of a write under way, or one that was killed."""
    return path.name.startswith(".") and path.name.endswith(_SUFFIX)


def sweep_drafts(final: Path) -> None:
    """Remove what killed writers of this machine left of `final`. Only for whoever holds the lock of its writers.

    Drafts of other machines stay: where locks do not reach from one to the other, they may be alive.
    """
    for path in final.parent.glob(f".{final.name}.{_host()}-*{_SUFFIX}"):
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def replaced_file(final: Path) -> Iterator[Path]:
    """Yield a temporary path; when the block ends well, it becomes `final` in one step."""
    _made(final.parent)
    temporary = temporary_name(final)
    try:
        yield temporary
        _fsync(temporary)
        os.replace(temporary, final)
        _fsync(final.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def created_directory(final: Path) -> Iterator[Path]:
    """Yield a temporary directory; when the block ends well, it becomes `final` in one step.

    If another process made `final` meanwhile, that one stays: both were built from the same inputs.
    """
    _made(final.parent)
    temporary = temporary_name(final)
    temporary.mkdir()
    try:
        yield temporary
        for path in temporary.rglob("*"):
            _fsync(path)
        _fsync(temporary)
        try:
            os.replace(temporary, final)
        except OSError:
            if not final.exists():
                raise
        _fsync(final.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(final: Path, content: Any) -> None:
    """Write indented, key-sorted JSON atomically."""
    with replaced_file(final) as temporary:
        temporary.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
