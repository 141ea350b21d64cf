"""Hashes that travel with what they are of: a record seals itself, a directory's record its files.

Whatever is read back after a crash, a copy or years on a disk is compared with them, so that one changed bit is seen.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def digest(content: Any, length: int = 16) -> str:
    """Return the first `length` hex digits of the SHA-256 of `content` as canonical JSON."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, 64 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sealed(record: Mapping[str, Any], seal: str) -> dict[str, Any]:
    """Return the record as JSON gives it back, with the hash of all of it under the key `seal`."""
    plain = json.loads(json.dumps(record))
    return {**plain, seal: digest(plain, 64)}


def is_whole(found: Mapping[str, Any], seal: str) -> bool:
    """Tell whether a record that was read is the one that was sealed."""
    return found.get(seal) == digest({name: value for name, value in found.items() if name != seal}, 64)


def file_facts(directory: Path, files: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Return size and SHA-256 of files by their path within the directory."""
    return {
        str(path.relative_to(directory)): {"bytes": path.stat().st_size, "sha256": file_digest(path)}
        for path in sorted(files)
    }


def changed_file(directory: Path, facts: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Say what is wrong with the first file that is not as `file_facts` had it, reading all of them; None: nothing."""
    for name, written in facts.items():
        path = directory / name
        if not path.is_file():
            return f"{name} is missing"
        if (size := path.stat().st_size) != written["bytes"]:
            return f"{name} has {size} bytes, {written['bytes']} were written"
        if file_digest(path) != written["sha256"]:
            return f"{name} has other content than was written"
    return None
