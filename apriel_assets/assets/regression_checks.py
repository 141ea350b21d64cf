"""Checks that quality did not fall against the materialization before: a warning, with the change's interval."""

from collections.abc import Mapping, Sequence
from typing import Any

from apriel_assets.assets.asset_plan import Check, Verdict
from apriel_assets.evaluation.change import Measured, change, is_worse
from apriel_assets.evaluation.comparison import paired_change
from apriel_assets.evaluation.paired import Difference
from resources.artifact_store import Artifact

_COMPARED_ALIKE = ("accuracy", "seed")  # recipe keys that decide which problems are asked, and how


def _evals(artifact: Artifact, before: Artifact | None) -> Verdict:
    if before is None:
        return True, {"note": "nothing to compare with"}
    slices = [one.provenance["recipe_slice"] for one in (artifact, before)]
    if changed := [key for key in _COMPARED_ALIKE if slices[0].get(key) != slices[1].get(key)]:
        return None, {"note": f"evaluated otherwise than before: {', '.join(changed)}"}
    found = _changes(artifact, before)
    worse = [
        name
        for name, own in found.items()
        if is_worse(own, higher_is_better=name == "accuracy")
        and (not isinstance(own, Difference) or own.is_detected())
    ]
    return not worse, _figures(found, worse)


def _changes(artifact: Artifact, before: Artifact) -> Mapping[str, Measured]:
    """Return each metric's change: problem by problem where both artifacts keep them, else from the intervals."""
    if all("eval_samples" in one.table_names for one in (artifact, before)):
        return paired_change(artifact.table("eval_samples"), before.table("eval_samples"))
    old = {row["metric"]: _measured(row) for row in before.table("evals").to_pylist()}
    new = {row["metric"]: _measured(row) for row in artifact.table("evals").to_pylist()}
    return {metric: change(value, old[metric]) for metric, value in new.items() if metric in old}


def _leaderboard(artifact: Artifact, before: Artifact | None) -> Verdict:
    if before is None:
        return True, {"note": "nothing to compare with"}
    slices = [one.provenance["recipe_slice"] for one in (artifact, before)]
    if slices[0]["tasks"] != slices[1]["tasks"]:
        return None, {"note": "the mean is over other tasks than before"}
    old, new = (_accuracies(one.table("leaderboard").to_pylist()) for one in (before, artifact))
    found = {model: change(value, old[model]) for model, value in new.items() if model in old}
    worse = [model for model, own in found.items() if is_worse(own, higher_is_better=True)]
    # All models would bury the ones that matter: the worst says how far any of them fell.
    lowest = sorted(found, key=lambda model: found[model].value)[: max(1, len(worse))]
    return not worse, _figures({model: found[model] for model in lowest}, worse)


def _accuracies(rows: Sequence[Mapping[str, Any]]) -> dict[str, Measured]:
    names = {"value": "accuracy", "low": "accuracy_low", "high": "accuracy_high"}
    figures = {row["model"]: {name: row[column] for name, column in names.items()} for row in rows}
    return {model: Measured(**own) for model, own in figures.items() if None not in own.values()}


def _measured(row: Mapping[str, Any]) -> Measured:
    return Measured(value=row["value"], low=row["low"], high=row["high"])


def _figures(found: Mapping[str, Measured], worse: Sequence[str]) -> dict[str, Any]:
    shown: dict[str, Any] = {
        f"change_of_{name}": f"{own.value:+.4g} [{own.low:+.4g}, {own.high:+.4g}]"
        for name, own in found.items()
    }
    return shown | ({"worse": ", ".join(worse)} if worse else {})


EVALS_REGRESSION_CHECK = Check(
    name="no_worse_than_before",
    description="No metric is worse than at the materialization before, beyond the 95% interval of the change.",
    passes=_evals,
)
LEADERBOARD_REGRESSION_CHECK = Check(
    name="no_model_lost_accuracy",
    description="No model's mean accuracy is lower than at the materialization before, beyond the 95% interval of "
    "the change.",
    passes=_leaderboard,
)
