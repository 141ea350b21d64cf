"""What a power cut may leave of a home: everything that was not flushed to the disk may be gone, torn or undone.

`syncs_told` runs in the process that is killed and writes down what it flushed and renamed; `lose_power` then takes
away, by lot, what had no flush. SQLite writes from C, so Dagster's databases are left as SIGKILL leaves them.
"""

import contextlib
import os
import random
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Tell = Callable[..., None]
_KEPT = ".before-rename"


@contextlib.contextmanager
def syncs_told(tell: Tell) -> Iterator[None]:
    """Tell of every fsync and rename of this process; a file that a rename replaces is kept by a second name."""
    fsync, replace, rename = os.fsync, os.replace, os.rename

    def told_fsync(handle: Any) -> None:
        fsync(handle)
        found = os.fstat(handle)
        tell("sync", inode=found.st_ino, size=found.st_size, mtime_ns=found.st_mtime_ns)

    def moved(move: Callable) -> Callable:
        def told(source: Any, target: Any, **options: Any) -> None:
            kept = None
            if Path(target).is_file():
                kept = str(Path(target).with_name(f".{uuid.uuid4().hex}{_KEPT}"))
                os.link(target, kept)
            tell(
                "rename",
                source=str(source),
                target=str(target),
                kept=kept,
                folder=_inode(Path(target).parent),
            )
            move(source, target, **options)

        return told

    os.fsync, os.replace, os.rename = told_fsync, moved(replace), moved(rename)
    try:
        yield
    finally:
        os.fsync, os.replace, os.rename = fsync, replace, rename


def lose_power(
    home: Path, events: Sequence[Mapping[str, Any]], since_ns: int, lot: random.Random
) -> dict[str, int]:
    """Take from a home what a power cut may take; return how many files were torn and renames undone.

    Args:
        home: of the process that was killed.
        events: its journal.
        since_ns: when it began; what is older has long been on the disk.
        lot: decides what is lost.
    """
    synced = {(own["inode"], own["size"], own["mtime_ns"]) for own in events if own["event"] == "sync"}
    torn = sum(_torn(path, synced, since_ns, lot) for path in sorted(home.rglob("*")))
    pending: list[Mapping[str, Any]] = []
    for own in events:
        if own["event"] == "rename":
            pending.append(own)
        elif own["event"] == "sync":
            pending = [rename for rename in pending if rename["folder"] != own["inode"]]
    # A directory keeps its order: if one rename is lost, so are all later ones in it.
    folders = sorted({own["folder"] for own in pending})
    undone, lost_folders = 0, {folder for folder in folders if lot.random() < 0.5}
    for own in reversed(pending):
        if own["folder"] in lost_folders:
            undone += _undone(Path(own["source"]), Path(own["target"]), own["kept"])
    for path in home.rglob(f".*{_KEPT}"):
        path.unlink()
    return {"torn_files": torn, "undone_renames": undone}


def _torn(path: Path, synced: set[tuple[int, int, int]], since_ns: int, lot: random.Random) -> bool:
    if path.is_symlink() or not path.is_file() or _is_exempt(path):
        return False
    found = path.stat()
    if found.st_mtime_ns < since_ns or (found.st_ino, found.st_size, found.st_mtime_ns) in synced:
        return False
    match lot.choice(("kept", "empty", "cut", "zeros")):
        case "kept":
            return False
        case "empty":
            os.truncate(path, 0)
        case "cut":
            os.truncate(path, lot.randrange(found.st_size + 1))
        case "zeros":  # the length was written, the content was not
            start = lot.randrange(found.st_size + 1)
            with path.open("r+b") as file:
                file.seek(start)
                file.write(bytes(found.st_size - start))
    return True


def _is_exempt(path: Path) -> bool:
    return ".db" in path.name or path.name == "run.lock" or path.name.endswith(_KEPT)


def _undone(source: Path, target: Path, kept: str | None) -> bool:
    if not target.exists():
        return False
    if target.is_dir() and source.exists():
        shutil.rmtree(source)
    os.rename(target, source)
    if kept and Path(kept).exists():
        os.rename(kept, target)
    return True


def _inode(path: Path) -> int:
    return path.stat().st_ino
