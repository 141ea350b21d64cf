"""Is everything in a home as it was written? Reads every byte that has a hash; changes nothing but what it trusts.

Covered: artifacts, the lake, training states, kept scores and answers, the home's format. Dagster's databases have no
hashes of ours: SQLite looks through their structure. Not covered, since each can be lost at any time: `catalog.duckdb`
(DuckDB's own checksums; written anew when it does not open), `verified/`, `report.html`, `recipe.yaml`, locks, logs.
"""

import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from apriel_assets.errors import UserError
from apriel_assets.evaluation.kept_answers import answers_problem
from apriel_assets.saved_states import PREFIX, state_problem
from apriel_assets.scoring.memo import score_file_problem
from apriel_assets.seals import changed_file
from resources.artifact_store import PROVENANCE, ArtifactStore, expected_files
from resources.atomic import is_temporary
from resources.home_format import format_problem
from resources.sealed_parquet import seal_problem

# Patterns of what is not told when it is damaged: each can be lost at any time.
NOT_COVERED = (
    "catalog.duckdb", "report.html", "recipe.yaml", "run.lock", "verified/**/*.json", "verified/*/*.json",
    "verified/*/*/*.json", "dagster/**/*", "dagster/*", "dagster/*/*", "dagster/*/*/*", "work/.locks/*",
)  # fmt: skip

REBUILT = (
    "`apriel run` (a variant's: with --variants) builds it again if the recipe still has it; else delete it"
)
REPUBLISHED = (
    "delete the file, then `apriel run` (for a variant's with --variants): the artifact has its rows"
)
STARTED_OVER = "nothing: the training starts over from the state before it, or from the beginning"
SCORED_AGAIN = "delete the file: what it held is computed again"
RECORDED_AGAIN = (
    "move `dagster/` away, then `apriel run`: artifacts are found again, only the history is lost"
)
LOOKED_AT = "delete the file if this is the right version, then run again"


@dataclass(frozen=True)
class Damage:
    """One thing that is not as it was written."""

    path: str  # relative to the home
    what: str
    repair: str
    asset: str | None = None  # of an artifact
    address: str | None = None


@dataclass
class Verification:
    """What was looked at, and what was found."""

    num_artifacts: int = 0
    num_files: int = 0
    num_bytes: int = 0
    damage: list[Damage] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)  # of killed writers: harmless, may be deleted
    leftover_bytes: int = 0

    def as_json(self) -> dict[str, Any]:
        """Return the documented form."""
        return asdict(self)


def verify_home(home: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> Verification:
    """Read all of a home.

    Large files of a damaged artifact are no longer trusted by their times, so that the next plan sees the damage, too.

    Args:
        home: an existing home.
        progress: told bytes done and bytes in all.

    Raises:
        UserError: a file is there and cannot be read.
    """
    found = Verification()
    checks = [*_checks(home, found)]
    sizes = [sum(_size(path) for path in files) for files, _ in checks]
    done = 0
    for (files, check), size in zip(checks, sizes, strict=True):
        try:
            damage = check()
            if damage:  # or a run that is under way replaced or removed it while it was read: look again
                damage = check() if (home / damage.path).exists() else None
        except FileNotFoundError:
            damage = None
        except OSError as error:
            raise UserError(
                f"{error.filename} cannot be read: {error.strerror}; mend that, then verify again"
            ) from error
        found.damage += [damage] if damage else []
        found.num_files += len(files)
        found.num_bytes += size
        done += size
        progress(done, sum(sizes))
    return found


Check = tuple[list[Path], Callable[[], Damage | None]]


def _checks(home: Path, found: Verification) -> Iterator[Check]:
    """Yield what is to be read together, and what reads it; count artifacts and leftovers on the way."""
    yield from _file_checks(home, [home / "format.json"], format_problem, LOOKED_AT)
    store = ArtifactStore(home)
    for directory in _artifact_directories(home / "artifacts"):
        if directory.name.startswith("."):
            found.leftovers.append(str(directory.relative_to(home)))
            found.leftover_bytes += sum(_size(path) for path in directory.rglob("*"))
            continue
        found.num_artifacts += 1
        yield _files(directory), lambda own=directory: _artifact_damage(home, store, own)
    for path in home.glob("lake/**/.*"):
        if is_temporary(path):
            found.leftovers.append(str(path.relative_to(home)))
            found.leftover_bytes += _size(path)
    yield from _file_checks(home, home.glob("lake/*/*/[!.]*.parquet"), seal_problem, REPUBLISHED)
    for state in sorted(home.glob(f"work/**/{PREFIX}*")):
        yield _files(state), lambda own=state: _damage(home, own, state_problem(own), STARTED_OVER)
    yield from _file_checks(home, home.glob("scores/*/[!.]*.json"), score_file_problem, SCORED_AGAIN)
    yield from _file_checks(home, home.glob("work/**/*.jsonl"), answers_problem, SCORED_AGAIN)
    yield from _file_checks(home, home.glob("dagster/**/*.db"), _sqlite_problem, RECORDED_AGAIN)


def _file_checks(
    home: Path, paths: Any, problem: Callable[[Path], str | None], repair: str
) -> Iterator[Check]:
    for path in sorted(paths):
        if path.is_file():
            yield [path], lambda own=path: _damage(home, own, problem(own), repair)


def _artifact_directories(directory: Path) -> Iterator[Path]:
    """Yield artifacts, whole or not, and leftovers: assets' keys are directories, addresses hold files."""
    for path in sorted(directory.iterdir()) if directory.is_dir() else []:
        if not path.is_dir():
            continue
        if path.name.startswith(".") or _is_address(path):
            yield path
        else:
            yield from _artifact_directories(path)


def _is_address(path: Path) -> bool:
    hexadecimal = len(path.name) == 16 and not set(path.name) - set("0123456789abcdef")
    return hexadecimal or (path / PROVENANCE).exists()


def _artifact_damage(home: Path, store: ArtifactStore, directory: Path) -> Damage | None:
    asset, address = str(directory.parent.relative_to(home / "artifacts")), directory.name
    provenance = store.provenance(asset, address)
    if provenance is None:
        problem = f"{PROVENANCE} is missing or damaged"
    else:
        problem = _misplaced(provenance, asset, address) or changed_file(
            directory, expected_files(directory, provenance)
        )
    if problem is None:
        return None
    store.distrust(asset, address)
    return Damage(str(directory.relative_to(home)), problem, REBUILT, asset, address)


def _misplaced(provenance: dict[str, Any], asset: str, address: str) -> str | None:
    found = (provenance.get("asset", asset), provenance.get("address", address))
    return None if found == (asset, address) else f"is {found[0]}/{found[1]} under another name"


def _damage(home: Path, path: Path, problem: str | None, repair: str) -> Damage | None:
    return Damage(str(path.relative_to(home)), problem, repair) if problem else None


def _sqlite_problem(path: Path) -> str | None:
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=30)
        connection.text_factory = lambda raw: raw.decode(errors="replace")
        try:
            (answer,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
        finally:
            connection.close()
    except sqlite3.OperationalError as error:
        return None if "locked" in str(error) else str(error)  # a run is writing
    except sqlite3.DatabaseError as error:
        return str(error)
    except UnicodeDecodeError:  # its message repeats a name of the file
        return "malformed database schema"
    return None if answer == "ok" else " ".join(answer.split())


def _files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
