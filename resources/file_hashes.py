"""Content hashes of files, taken again only when a file may have changed.

A small file is hashed once a process. A large one is trusted while its size, times and inode are those at which it was
last hashed. That is kept in the home's `verified/`, which may be lost or copied at any time: large files are then
hashed again.
"""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apriel_assets.errors import UserError
from apriel_assets.seals import file_digest
from resources.atomic import write_json

SMALL_BYTES = 1 << 20  # below this, a file is read again in every process
ABSENT = (FileNotFoundError, NotADirectoryError)  # any other error says nothing about what a file holds

# What this process has read: path -> (stamp, SHA-256).
_read: dict[Path, tuple[list[int], str]] = {}


def stamp(path: Path) -> list[int]:
    """Return what changes whenever a file is written: bytes, modification and change time in ns, inode."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def first_damage(directory: Path, files: Mapping[str, Mapping[str, Any]], record: Path) -> str | None:
    """Return what is wrong with the first file that is not as it was written, or None.

    Args:
        directory: holds the files.
        files: by relative path, `bytes` and `sha256` as written.
        record: where large files' stamps are kept.

    Raises:
        UserError: a file is there and cannot be read, so that nobody knows what is wrong with it.
    """
    known = _load(record) if any(facts["bytes"] >= SMALL_BYTES for facts in files.values()) else {}
    current: dict[str, Any] = {}
    for name, facts in files.items():
        path = directory / name
        try:
            seen = stamp(path)
            if seen[0] != facts["bytes"]:
                return f"{name} has {seen[0]} bytes, {facts['bytes']} were written"
            found = _digest(path, seen, known.get(name))
            if found != facts["sha256"]:
                found = _digest(path, seen, None, again=True)  # the record itself may be what is damaged
        except ABSENT:
            return f"{name} is missing"
        except OSError as error:
            raise unreadable(path, error) from error
        if found != facts["sha256"]:
            return f"{name} has other content than was written"
        if seen[0] >= SMALL_BYTES:
            current[name] = {"stamp": seen, "sha256": found}
    if current != known:
        _save(record, current)
    return None


def unreadable(path: Path, error: OSError) -> UserError:
    """Return what to raise about a file that is there and cannot be read: what it holds may well be good."""
    return UserError(
        f"{path} cannot be read: {error.strerror}; it was left as it is: mend that, then run again"
    )


def remember(directory: Path, final: Path, files: Mapping[str, Mapping[str, Any]], record: Path) -> None:
    """Keep the hashes of files in `directory` that were just taken; the directory is then renamed to `final`."""
    current = {}
    for name, facts in files.items():
        seen = stamp(directory / name)
        _read[final / name] = (seen, facts["sha256"])
        if seen[0] >= SMALL_BYTES:
            current[name] = {"stamp": seen, "sha256": facts["sha256"]}
    if current:
        _save(record, current)


def forget(directory: Path, files: Mapping[str, Any], record: Path) -> None:
    """Trust none of the files any more: whoever looks next reads them all."""
    record.unlink(missing_ok=True)
    for name in files:
        _read.pop(directory / name, None)


def _digest(path: Path, seen: list[int], known: Any, *, again: bool = False) -> str:
    before, digest = _read.get(path, (None, ""))
    if again or before != seen:
        trusted = seen[0] >= SMALL_BYTES and isinstance(known, dict) and known.get("stamp") == seen
        digest = str(known.get("sha256")) if trusted else file_digest(path)
        _read[path] = (seen, digest)
    return digest


def _load(record: Path) -> dict[str, Any]:
    try:
        found = json.loads(record.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _save(record: Path, current: Mapping[str, Any]) -> None:
    # Without the record files are hashed again, which is slow and not wrong.
    with contextlib.suppress(OSError):
        write_json(record, current)
