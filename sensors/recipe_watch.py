"""Say in the UI which recipe the code location stands on, and that it does not load or has changed since.

A recipe that does not load must not take the assets out of the UI: the code location keeps to the last good one, whole,
and this sensor's check shows the one line that says what is wrong.
"""

from collections.abc import Callable
from dataclasses import dataclass

import dagster as dg
from dagster._core.remote_origin import CodeLocationOrigin

from resources.artifact_store import digest

RECIPE_ASSET = dg.AssetKey("recipe")
CHECK = "is_loaded"
NAME = "recipe"
INTERVAL_S = 15


@dataclass(frozen=True, kw_only=True)
class RecipeState:
    """What there is to say of the recipe."""

    source: str  # file, or name of a shipped recipe
    problem: str | None  # why the code location does not stand on it as it is now; one line


def recipe_definitions(
    state: Callable[[], RecipeState],
    loaded: RecipeState,
    content: str,
    tidy: Callable[[dg.DagsterInstance, CodeLocationOrigin | None], object],
) -> dg.Definitions:
    """Return an asset that stands for the recipe, its check, and the sensor that keeps the check up to date.

    Args:
        state: looks at the recipe's file now.
        loaded: what was seen when the code location was loaded.
        content: the recipe that is loaded, YAML.
        tidy: done at every look, given Dagster's records and how it reaches this code server.
    """
    shown = dg.AssetSpec(
        RECIPE_ASSET,
        description=f"{loaded.problem or 'The recipe that all assets are made from.'}\n\nFrom `{loaded.source}`.",
        group_name="recipe",
        kinds={"yaml"},
        metadata={"source": loaded.source, "content": dg.MetadataValue.md(f"```yaml\n{content}```")},
    )

    @dg.asset_check(
        asset=RECIPE_ASSET, name=CHECK, description="The recipe's file loads, and is what is loaded."
    )
    def is_loaded() -> dg.AssetCheckResult:
        return _result(state())

    @dg.sensor(
        name=NAME,
        asset_selection=dg.AssetSelection.checks(is_loaded),
        minimum_interval_seconds=INTERVAL_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Checks whether the recipe's file loads and has changed; closes runs whose process is gone.",
    )
    def watch(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        tidy(context.instance, context.code_location_origin)
        found = state()
        # Written when something is new, not at every look: events are kept for ever.
        cursor = digest([found.source, found.problem, content])
        reason = found.problem or f"{found.source} is loaded"
        if context.cursor == cursor:
            return dg.SensorResult(skip_reason=reason)
        return dg.SensorResult(asset_events=[_evaluation(found)], skip_reason=reason, cursor=cursor)

    return dg.Definitions(assets=[shown], asset_checks=[is_loaded], sensors=[watch])


def _result(found: RecipeState) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        passed=found.problem is None,
        severity=dg.AssetCheckSeverity.ERROR,
        description=found.problem,
        metadata={"source": found.source},
    )


def _evaluation(found: RecipeState) -> dg.AssetCheckEvaluation:
    return dg.AssetCheckEvaluation(
        asset_key=RECIPE_ASSET,
        check_name=CHECK,
        passed=found.problem is None,
        severity=dg.AssetCheckSeverity.ERROR,
        description=found.problem,
        metadata={"source": found.source},
    )
