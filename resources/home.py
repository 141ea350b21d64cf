"""The home directory: where artifacts, tables and Dagster's own records of one project live."""

import contextlib
import datetime
import errno
import fcntl
import os
import socket
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg

from apriel_assets.errors import UserError
from apriel_assets.paths import expanded
from resources.artifact_store import ArtifactStore
from resources.atomic import replaced_file
from resources.build_lock import build_lock
from resources.home_format import check_format, write_format
from resources.lake import Lake

DAGSTER_YAML = """\
telemetry:
  enabled: false
nux:
  enabled: false
concurrency:
  runs:
    max_concurrent_runs: 1
"""


_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_BROKEN_ERRORS = (errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR)
_DISK_SIGNS = (
    "no space left on device",
    "disk quota exceeded",
    "read-only file system",
    "disk is full",
    "readonly database",
)
_LOST_DATABASE = ("OperationalError", "InterfaceError", "AdminShutdown", "DagsterPostgresException")
_BROKEN_SIGNS = ("file is not a database", "database disk image is malformed")


class Home(dg.ConfigurableResource):
    """One home directory: `artifacts/`, `work/`, `lake/`, `catalog.duckdb`, `dagster/`, `recipe.yaml`."""

    path: str

    @property
    def store(self) -> ArtifactStore:
        return ArtifactStore(Path(self.path))

    @property
    def lake(self) -> Lake:
        return Lake(Path(self.path))


def find_home(given: Path | None) -> Path:
    """Return the home to use: `given`, else `APRIEL_HOME`, else `./.apriel`; absolute."""
    return expanded(given or os.environ.get("APRIEL_HOME") or ".apriel").absolute()


def prepare_home(path: Path) -> None:
    """Create what is missing of a home.

    Raises:
        UserError: it cannot be written, or a newer version wrote it.
    """
    config = path / "dagster" / "dagster.yaml"
    check_format(path)
    try:
        config.parent.mkdir(parents=True, exist_ok=True)
        probe = path / f".writable.{os.getpid()}"
        probe.write_bytes(b"\0" * 4096)
        probe.unlink()
        if not config.exists():
            with replaced_file(config) as temporary:  # it is never written again: half of one would stay
                temporary.write_text(DAGSTER_YAML)
        write_format(path)
    except OSError as error:
        raise UserError(f"cannot write to the home {path}: {error.strerror}; {_remedy(error)}") from error


def _remedy(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free some space and run again, nothing that was finished is lost"
    return "choose another with --home or APRIEL_HOME"


def storage_problem(error: BaseException) -> UserError | None:
    """Return what to tell the user if an error, or what it came from, is the disk's, the home's or the database's.

    SQLite, DuckDB and safetensors raise errors of their own, so beside error numbers their messages are read. None: it
    is none of these.
    """
    waiting, seen = [error], set()
    while waiting:
        current = waiting.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        text = str(current).lower()
        if _is_lost_database(current):
            reason = str(current).splitlines()[0]
            return UserError(
                f"Dagster's database does not answer: {reason}; start it, then run again: finished work is kept"
            )
        if getattr(current, "errno", None) in _DISK_ERRORS or any(sign in text for sign in _DISK_SIGNS):
            reason = str(current).splitlines()[0]
            return UserError(
                f"the disk takes no more: {reason}; free some space or choose another --home, then run again: "
                "finished work is kept"
            )
        if getattr(current, "errno", None) in _BROKEN_ERRORS or any(sign in text for sign in _BROKEN_SIGNS):
            reason = str(current).splitlines()[0]
            return UserError(f"a file cannot be used: {reason}; repair it, or choose another --home")
        waiting += [current.__cause__, current.__context__, getattr(current, "user_exception", None)]
    return None


def _is_lost_database(error: BaseException) -> bool:
    """Tell whether a database server went away; SQLite's errors are the disk's."""
    own = type(error)
    named = own.__module__.startswith(("psycopg", "dagster_postgres")) or "(psycopg" in str(error)
    return named and own.__name__ in _LOST_DATABASE


def open_instance(path: Path) -> dg.DagsterInstance:
    """Open Dagster's records of this home (runs, events, materializations), where its dagster/dagster.yaml says.

    Raises:
        UserError: the user changed that file, and it is wrong or its storage cannot be reached.
    """
    config = path / "dagster" / "dagster.yaml"
    try:
        # One at a time: two that make the databases at once leave two revisions in them, which nobody can open.
        with build_lock(config.with_name(".opening")):
            return dg.DagsterInstance.from_config(str(config.parent))
    except Exception as error:
        if config.read_bytes() == DAGSTER_YAML.encode():
            raise  # not the user's doing
        reason = " ".join(str(error.__cause__ or error).split())
        reason = (
            reason.partition("Error 1: ")[2] or reason
        )  # what stands before it names Dagster's own objects
        raise UserError(
            f"{config} cannot be used: {textwrap.shorten(reason, 300)}; see docs/deployment.md"
        ) from error


@contextlib.contextmanager
def run_lock(path: Path) -> Iterator[None]:
    """Hold the home's run lock; the kernel frees it when the holder dies, however it dies.

    Raises:
        UserError: another process holds it (says its pid, and since when).
    """
    handle = os.open(path / "run.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not _locked(handle):
            holder = os.pread(handle, 256, 0).decode(errors="replace").strip() or "pid not known"
            raise UserError(
                f"another `apriel run` ({holder}) works on {path}; wait for it or use another --home"
            )
        now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"pid {os.getpid()}, since {now}, on {socket.gethostname()[:64]}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


def _locked(handle: int) -> bool:
    # Not at the first try alone: whoever only asks for the holder has the lock for a moment.
    for wait in (0.0, 0.05, 0.2):
        time.sleep(wait)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    return False


def run_lock_holder(path: Path) -> str | None:
    """Return who holds the home's run lock (pid, and since when), or None if nobody does."""
    try:
        handle = os.open(path / "run.lock", os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        # Shared, and for a moment only: a run that starts just now waits for nobody but another run.
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.read(handle, 256).decode(errors="replace").strip() or "pid not known"
    finally:
        os.close(handle)
    return None
