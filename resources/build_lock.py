"""One builder at a time: a lock file per artifact, which the kernel frees when its holder dies, however it dies."""

import contextlib
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def build_lock(path: Path) -> Iterator[None]:
    """Hold the lock file, waiting for whoever holds it; it is removed afterwards."""
    handle = _acquire(path)
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()} on {socket.gethostname()[:64]}\n".encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held: nobody can have locked this very file
        os.close(handle)


def _acquire(path: Path) -> int:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(handle, 256, 0).decode(errors="replace").strip() or "another"
                logger.info("waiting for process %s, which builds the same: %s", holder, path.name)
                fcntl.flock(handle, fcntl.LOCK_EX)
            # The last holder removed the file that it held; a lock on a removed file excludes nobody.
            if _same_file(handle, path):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _same_file(handle: int, path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(handle), path.stat())
    return False
