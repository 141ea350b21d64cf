"""Writes that are either whole or absent, also after a crash or a power cut."""

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def temporary_name(final: Path) -> Path:
    """Return an unused sibling name; the leading dot keeps it out of every glob that readers use."""
    return final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}.tmp")


@contextlib.contextmanager
def replaced_file(final: Path) -> Iterator[Path]:
    """Yield a temporary path; when the block ends well, it becomes `final` in one step."""
    final.parent.mkdir(parents=True, exist_ok=True)
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
    final.parent.mkdir(parents=True, exist_ok=True)
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
