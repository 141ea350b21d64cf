"""What the UI shows of an asset's materializations: figures, tables' sizes, small pictures, verdicts of its checks."""

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from apriel_assets.assets.asset_plan import AssetPlan
from resources.artifact_store import Artifact


def materialization_metadata(
    plan: AssetPlan, artifact: Artifact, built: bool, rows: Mapping[str, int]
) -> dict[str, Any]:
    """Return what one materialization shows: where it is, whether it was built now, its figures, its sketch."""
    figures = {
        name: value
        for name, value in artifact.provenance["figures"].items()
        if isinstance(value, int | float | str)
    }
    return {
        "address": artifact.address,
        "path": dg.MetadataValue.path(str(artifact.path)),
        "built_now": built,
        **{f"rows_{name}": count for name, count in rows.items()},
        **figures,
        **(plan.sketch(artifact) if plan.sketch else {}),
    }


def check_specs(plan: AssetPlan) -> list[dg.AssetCheckSpec]:
    """Return Dagster's form of the asset's checks."""
    key = dg.AssetKey(plan.key.split("/"))
    return [
        dg.AssetCheckSpec(check.name, asset=key, description=check.description, blocking=check.blocking)
        for check in plan.checks
    ]


def check_results(plan: AssetPlan, artifacts: Sequence[Artifact]) -> list[dg.AssetCheckResult]:
    """Return each check's result; of several partitions in one run, the worst."""
    found = []
    for check in plan.checks:
        verdicts = [check.passes(artifact) for artifact in artifacts]
        passed, figures = min(verdicts, key=lambda verdict: verdict[0])
        severity = dg.AssetCheckSeverity.ERROR if check.blocking else dg.AssetCheckSeverity.WARN
        found.append(
            dg.AssetCheckResult(
                passed=passed, check_name=check.name, severity=severity, metadata=dict(figures)
            )
        )
    return found
