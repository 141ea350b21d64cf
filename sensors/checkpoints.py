"""Evaluate checkpoints that others put into a watched directory: each once, when all of it is there."""

import re
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import dagster as dg

from apriel_assets.assets.asset_plan import AssetPlan
from apriel_assets.assets.dropped_checkpoints import PARTITIONS
from apriel_assets.assets.records import asset_key
from apriel_assets.paths import expanded
from apriel_assets.recipe_automation import WatchSection
from resources.artifact_store import digest
from resources.checkpoint_files import CONFIG, fingerprint, last_change_unix_s, missing_of
from sensors.requests import PastRequests, Retries, Wanted, due_one_by_one

NAME = "checkpoints"
_NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Found:
    """Checkpoints that can be evaluated, by name with their fingerprint, and why others cannot."""

    complete: dict[str, str]
    waiting: list[str]


def checkpoints_sensor(
    asset: AssetPlan, watch: WatchSection, retries: Retries, taken: Collection[str]
) -> dg.SensorDefinition:
    """Return the sensor.

    Args:
        asset: evaluates a dropped checkpoint; its partitions are their names.
        watch: which directory, how often, and how long a checkpoint must lie still.
        retries: of a run that failed, unless the checkpoint was at fault.
        taken: names of the recipe's own models, which no checkpoint may have.
    """
    directory = expanded(watch.directory)

    @dg.sensor(
        name=NAME,
        asset_selection=dg.AssetSelection.assets(asset_key(asset.key)),
        minimum_interval_seconds=watch.interval_s,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Evaluates each complete checkpoint in {directory} once, on the recipe's eval tasks.",
    )
    def checkpoints(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        if not directory.is_dir():
            return dg.SensorResult(
                skip_reason=f"no directory {directory}; make it, or change automation.watch"
            )
        if lacking := _not_built(context.instance, asset):
            return dg.SensorResult(skip_reason=f"waits for {lacking} to be built")
        now = time.time()
        found = look(directory, taken, watch.settle_s, now)
        requests, reasons = due_one_by_one(
            PastRequests(context.instance, NAME, retries, now), _wanted(asset, found)
        )
        reasons = [*found.waiting, *reasons]
        return _result(requests, "; ".join(reasons) or f"nothing new in {directory}")

    return checkpoints


def _wanted(asset: AssetPlan, found: Found) -> list[Wanted]:
    # No state: what was there before does not matter, only what it was evaluated from.
    return [
        Wanted(asset=asset.key, partition=name, goal=digest([asset.code_version, files]), state="any")
        for name, files in found.complete.items()
    ]


def _result(requests: list[dg.RunRequest], idle: str) -> dg.SensorResult:
    if not requests:
        return dg.SensorResult(skip_reason=idle)
    names = [str(request.partition_key) for request in requests]
    return dg.SensorResult(
        run_requests=requests,
        dynamic_partitions_requests=[dg.AddDynamicPartitionsRequest(PARTITIONS, names)],
    )


def look(directory: Path, taken: Collection[str], settle_s: float, now: float) -> Found:
    """Return what lies in a directory and can be evaluated, and what is wrong with the rest.

    Args:
        directory: its sub-directories with a config.json or weights are checkpoints.
        taken: names that a checkpoint may not have.
        settle_s: how long nothing of a checkpoint may have changed.
        now: seconds since 1970.
    """
    found = Found({}, [])
    for path in sorted(directory.iterdir()):
        if path.name.startswith(".") or not path.is_dir() or not _is_checkpoint(path):
            continue
        try:
            if problem := _problem(path, taken, settle_s, now):
                found.waiting.append(f"{path.name}: {problem}")
            else:
                found.complete[path.name] = fingerprint(path)
        except OSError as error:  # it is being written, moved or deleted at this moment
            found.waiting.append(f"{path.name}: {error.strerror}")
    return found


def _is_checkpoint(path: Path) -> bool:
    return (path / CONFIG).exists() or any(path.glob("*.safetensors*"))


def _problem(path: Path, taken: Collection[str], settle_s: float, now: float) -> str | None:
    if not _NAME_PATTERN.fullmatch(path.name):
        return "its name may have letters, digits, dots, - and _ only; rename it"
    if path.name in taken:
        return "the recipe has a model of this name; rename it"
    if lacking := missing_of(path):
        return f"waits, {lacking}"
    if (rest := settle_s - (now - last_change_unix_s(path))) > 0:
        return f"waits, it was changed just now; {rest:.0f} s more"
    return None


def _not_built(instance: dg.DagsterInstance, asset: AssetPlan) -> str | None:
    lacking = [
        own.key
        for own in asset.upstream
        if instance.get_latest_materialization_event(asset_key(own.key)) is None
    ]
    return ", ".join(lacking) or None
