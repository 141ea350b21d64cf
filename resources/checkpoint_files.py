"""Is a checkpoint directory that others write into complete, and has it changed? Looks at sizes and headers only."""

import json
import struct
from pathlib import Path

from resources.artifact_store import digest

CONFIG = "config.json"
_INDEX = "model.safetensors.index.json"
_LONGEST_HEADER = 100_000_000  # bytes; safetensors' own limit


def fingerprint(directory: Path) -> str:
    """Return 16 hex digits that change when a file appears, goes, or has another size or time of change."""
    facts = []
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            found = path.stat()
            facts.append([str(path.relative_to(directory)), found.st_size, found.st_mtime_ns])
    return digest(facts)


def last_change_unix_s(directory: Path) -> float:
    """Return when a file of the directory was last written or put there, seconds since 1970."""
    # ctime: a copy that keeps times of change (cp -p, rsync -t) is as new as it is.
    times = [path.stat() for path in (directory, *directory.rglob("*")) if path.exists()]
    return max(max(found.st_mtime, found.st_ctime) for found in times)


def missing_of(directory: Path) -> str | None:
    """Say what a checkpoint directory lacks yet, or None if all of it is there."""
    if not _is_json(directory / CONFIG):
        return f"no whole {CONFIG}"
    weights = sorted(directory.glob("*.safetensors"))
    index = directory / _INDEX
    if index.exists():
        if not _is_json(index):
            return f"no whole {_INDEX}"
        named = set(json.loads(index.read_text()).get("weight_map", {}).values())
        if lacking := sorted(named - {path.name for path in weights}):
            return f"no {lacking[0]}"
    if not weights:
        return "no .safetensors file"
    return next((f"{path.name} is not whole" for path in weights if not _is_whole(path)), None)


def _is_json(path: Path) -> bool:
    try:
        return isinstance(json.loads(path.read_text()), dict)
    except (OSError, ValueError):
        return False


def _is_whole(path: Path) -> bool:
    """Return whether a safetensors file has the size that its header promises."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 0 < length <= min(size, _LONGEST_HEADER):
            return False
        try:
            header = json.loads(stream.read(length))
            ends = [own["data_offsets"][1] for name, own in header.items() if name != "__metadata__"]
        except (ValueError, AttributeError, KeyError, TypeError, IndexError):
            return False
    return size == 8 + length + max(ends, default=0)
