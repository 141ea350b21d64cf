"""What the UI shows of an asset's materializations: figures, first rows, small pictures, verdicts of its checks."""

import math
from collections.abc import Mapping
from typing import Any

import dagster as dg
import pyarrow as pa

from apriel_assets.assets.asset_plan import AssetPlan, Check
from apriel_assets.assets.described import column_schema
from apriel_assets.assets.history import recorded_artifacts
from resources.artifact_store import Artifact, ArtifactStore

_FIRST_ROWS = 5
_CELL = 60  # characters


def materialization_metadata(
    plan: AssetPlan, artifact: Artifact, built: bool, tables: Mapping[str, pa.Table]
) -> dict[str, Any]:
    """Return what one materialization shows: where it is, whether it was built now, its figures, tables, sketch."""
    figures = {
        name: shown_value(value)
        for name, value in artifact.provenance["figures"].items()
        if isinstance(value, int | float | str)
    }
    return {
        **(plan.sketch(artifact) if plan.sketch else {}),
        **figures,
        "address": artifact.address,
        "path": dg.MetadataValue.path(str(artifact.path)),
        "built_now": built,
        **_shown_tables(plan, tables),
        **{
            f"file_{name}": dg.MetadataValue.path(str(artifact.path / name))
            for name in artifact.provenance["files"]
            if name.endswith(".html")
        },
    }


def shown_value(value: Any) -> Any:
    """Return a figure as the UI can show it: JSON has no NaN and no infinity."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _shown_tables(plan: AssetPlan, tables: Mapping[str, pa.Table]) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for name, table in tables.items():
        shown[f"rows_{name}"] = table.num_rows
        shown[f"first_rows_{name}"] = first_rows(name, table)
    if plan.tables and plan.tables[0] in tables:
        count = "partition_row_count" if plan.is_partitioned else "row_count"
        shown[f"dagster/{count}"] = tables[plan.tables[0]].num_rows
    return shown


def first_rows(name: str, table: pa.Table) -> dg.TableMetadataValue:
    """Return a table's first rows for the UI, long values cut off."""
    records = [
        dg.TableRecord({column: _cell(value) for column, value in row.items()})
        for row in table.slice(0, _FIRST_ROWS).to_pylist()
    ]
    return dg.MetadataValue.table(records, schema=column_schema(name))


def _cell(value: Any) -> str | int | float | bool | None:
    value = shown_value(value)
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if value is None or isinstance(value, bool | int):
        return value
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= _CELL else text[: _CELL - 3] + "..."


def check_specs(plan: AssetPlan) -> list[dg.AssetCheckSpec]:
    """Return Dagster's form of the asset's checks."""
    key = dg.AssetKey(plan.key.split("/"))
    return [
        dg.AssetCheckSpec(check.name, asset=key, description=check.description, blocking=check.blocking)
        for check in plan.checks
    ]


def check_results(
    plan: AssetPlan,
    instance: dg.DagsterInstance,
    store: ArtifactStore,
    made: Mapping[str | None, Artifact],
) -> list[dg.AssetCheckResult]:
    """Return each check's result over all partitions that exist, so that a good one does not hide a bad one.

    Args:
        plan: of the asset.
        instance: where earlier materializations are recorded; those of this run are not yet.
        store: their artifacts.
        made: the artifact of each partition that this run made or found (None: the asset has no partitions).
    """
    if not plan.checks:
        return []
    judged = []
    # Of partitions that come one after the other, such as dates, only the new ones: an old verdict is no news.
    for partition in made if plan.dynamic_partitions else plan.partition_keys:
        earlier = recorded_artifacts(instance, store, plan, partition)
        artifact = made.get(partition) or next(earlier, None)
        if artifact is not None:
            before = next((one for one in earlier if one.address != artifact.address), None)
            judged.append((partition, artifact, before))
    return [_result(check, judged) for check in plan.checks]


def _result(check: Check, judged: list[tuple[str | None, Artifact, Artifact | None]]) -> dg.AssetCheckResult:
    verdicts = [(partition, *check.passes(artifact, before)) for partition, artifact, before in judged]
    order = {False: 0, None: 1, True: 2}
    partition, passed, figures = min(verdicts, key=lambda verdict: order[verdict[1]])
    shown = {name: shown_value(value) for name, value in figures.items()}
    if failed := [str(part) for part, holds, _ in verdicts if part is not None and not holds]:
        shown = {"partitions": ", ".join(failed), "figures_of": partition, **shown}
    # What cannot be told must not stop anything.
    stops = check.blocking and passed is not None
    return dg.AssetCheckResult(
        passed=bool(passed),
        check_name=check.name,
        severity=dg.AssetCheckSeverity.ERROR if stops else dg.AssetCheckSeverity.WARN,
        metadata=shown,
    )
