"""What a run wrote: by files' modification times, and by Dagster's events."""

from collections.abc import Iterable
from pathlib import Path

import dagster as dg

from apriel_assets.assets.asset_plan import AssetPlan

Files = dict[Path, int]


def files_of(home: Path) -> Files:
    """Return the modification time (ns) of every file of the artifacts and the lake."""
    return {
        path: path.stat().st_mtime_ns
        for place in ("artifacts", "lake")
        for path in (home / place).rglob("*")
        if path.is_file()
    }


def artifacts_written(home: Path, before: Files) -> set[str]:
    """Return the assets of which an artifact is new or has changed."""
    new = {path for path, time in files_of(home).items() if before.get(path) != time}
    provenances = {path.parent for path in new if path.name == "provenance.json"}
    strangers = {path for path in new if "artifacts" in path.parts and not provenances & set(path.parents)}
    assert strangers == set(), "files changed in an artifact that was not written"
    return {"/".join(path.relative_to(home / "artifacts").parts[:-1]) for path in provenances}


def rows_written(home: Path, before: Files, assets: Iterable[AssetPlan]) -> set[str]:
    """Return the assets of which rows were published."""
    names = {own.key.replace("/", "."): own.key for own in assets}
    new = [
        path
        for path, time in files_of(home).items()
        if before.get(path) != time and path.is_relative_to(home / "lake") and path.stem != "published"
    ]
    return {names[path.stem.split("@")[0]] for path in new}


def materialized(instance: dg.DagsterInstance, since: int) -> list[tuple[str, str | None]]:
    """Return the assets and partitions of all materializations recorded after an event, in order."""
    found = instance.event_log_storage.get_event_records(
        dg.EventRecordsFilter(dg.DagsterEventType.ASSET_MATERIALIZATION, after_cursor=since), ascending=True
    )
    return [(event.asset_key.to_user_string(), event.partition_key) for event in found if event.asset_key]


def last_event(instance: dg.DagsterInstance) -> int:
    """Return the newest event's id."""
    return instance.event_log_storage.get_maximum_record_id() or 0
