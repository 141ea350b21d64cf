"""What must hold of artifacts, shown in the UI with every materialization.

A check reads figures and tables of the finished artifact. What takes a model to find out was measured while the
artifact was built and stands among its figures. Blocking is what would waste GPU time or mislead further down.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from apriel_assets.assets.asset_plan import Check, Verdict
from apriel_assets.seals import file_digest
from resources.artifact_store import Artifact

_LEAST_R2 = 0.8  # of the whole model's predicted speed
_WEIGHTS = ".safetensors"

Row = Mapping[str, Any]


def audit_check(least: float) -> Check:
    """Return the check that the ranking estimator's Spearman correlation with generation is at least this."""

    def passes(artifact: Artifact, before: Artifact | None = None) -> Verdict:
        figures = artifact.provenance["figures"]
        spearman = figures["spearman"]
        shown = {name: figures[name] for name in ("estimator", "spearman_low", "spearman_high", "pearson")}
        shown = {name: value for name, value in shown.items() if value is not None}
        return spearman is not None and spearman >= least, {
            "spearman": spearman or 0.0,
            "least": least,
            **shown,
        }

    return Check(
        name="estimator_orders_like_generation",
        description="Spearman correlation of the ranking estimator with generated accuracy is high enough.",
        passes=passes,
    )


def _costs(artifact: Artifact, before: Artifact | None = None) -> Verdict:
    figures = artifact.provenance["figures"]
    r2 = figures["r2"]
    return not math.isnan(r2) and r2 >= _LEAST_R2, {
        "r2": r2,
        "least": _LEAST_R2,
        "worst_error": figures["worst_error"],
    }


def _sharing(artifact: Artifact, before: Artifact | None = None) -> Verdict:
    share = artifact.provenance["figures"]["shared_share"]
    return share > 0, {"shared_share": share}


def _all_fa(artifact: Artifact, before: Artifact | None = None) -> Verdict:
    difference = artifact.provenance["figures"].get("all_fa_max_difference")
    if difference is None:
        return None, {"note": "not measured when this was built"}
    return difference == 0, {"largest_difference_of_logits": difference}


def _placements_kept(artifact: Artifact, before: Artifact | None = None) -> Verdict:
    figures = artifact.provenance["figures"]
    prefix = "max_difference_"
    found = {name.removeprefix(prefix): value for name, value in figures.items() if name.startswith(prefix)}
    if not found:
        return None, {"note": "not measured when this was built"}
    return all(value == 0 for value in found.values()), found


def _loads(artifact: Artifact, before: Artifact | None = None) -> Verdict:
    figures, files = artifact.provenance["figures"], artifact.provenance["files"]
    weights = {name: facts for name, facts in files.items() if name.endswith(_WEIGHTS)}
    # Read back from where it is now, not from where it was built.
    changed = [
        name for name, facts in weights.items() if file_digest(artifact.path / name) != facts["sha256"]
    ]
    if changed:
        return False, {"hash_differs": ", ".join(changed)}
    if "num_tensors_changed_by_saving" not in figures:
        return None, {"note": "was not loaded again when it was built"}
    differing = figures["num_tensors_changed_by_saving"]
    return bool(weights) and differing == 0, {
        "num_files": len(weights),
        "num_tensors_changed_by_saving": differing,
    }


def _loss_finite(artifact: Artifact, before: Artifact | None = None) -> Verdict:
    rows = artifact.table("training").to_pylist()
    bad = [row["step"] for row in rows if not _finite(row["loss_nats"])]
    shown: dict[str, Any] = {"num_steps": len(rows), "num_not_finite": len(bad)}
    return bool(rows) and not bad, shown | ({"first_bad_step": bad[0]} if bad else {})


def _loss_falls(artifact: Artifact, before: Artifact | None = None) -> Verdict:
    losses = artifact.table("training").column("loss_nats").to_pylist()
    share = max(1, len(losses) // 10)
    first, last = _mean(losses[:share]), _mean(losses[-share:])
    return last < first, {"first_tenth_nats": first, "last_tenth_nats": last}


def _probes_fall(artifact: Artifact, before: Artifact | None = None) -> Verdict:
    # A step's loss is that of its own random placement: only fixed placements tell whether training helped.
    rows = [row for row in artifact.table("supernet_curves").to_pylist() if row["kl_nats"] is not None]
    rows = [row for row in rows if set(row["placement"]) != {"fa"}]
    steps = sorted({row["step"] for row in rows})
    if len(steps) < 2:
        return None, {"note": "no two probes of a placement other than all-FA"}
    first, last = (
        {row["probe"]: row["kl_nats"] for row in rows if row["step"] == s} for s in (steps[0], steps[-1])
    )
    risen = [name for name, value in last.items() if not value < first.get(name, math.inf)]
    shown = {"first_kl_nats": _mean(list(first.values())), "last_kl_nats": _mean(list(last.values()))}
    worse = {"did_not_fall": ", ".join(risen)} if risen else {}
    return shown["last_kl_nats"] < shown["first_kl_nats"], {**shown, **worse}


def _ess(artifact: Artifact, before: Artifact | None = None) -> Verdict:
    figures = artifact.provenance["figures"]
    scored, under = figures["num_scored"], figures["num_under_ess_floor"]
    floor = artifact.provenance["recipe_slice"]["estimator"]["ess_floor"]
    return under < scored, {"num_scored": scored, "num_under_ess_floor": under, "ess_floor": floor}


def evals_check(num_problems: int) -> Check:
    """Return the check that a task's rows are all there, over as many problems as were asked for."""
    wanted = ("accuracy", "reverse_kl_nats", "forward_kl_nats")

    def passes(artifact: Artifact, before: Artifact | None = None) -> Verdict:
        rows = artifact.table("evals").to_pylist()
        metrics = [row["metric"] for row in rows]
        wrong = [metric for metric in wanted if metrics.count(metric) != 1]
        wrong += [row["metric"] for row in rows if not _finite(row["value"])]
        short = [row for row in rows if row["num_problems"] != num_problems]
        shown = {"num_rows": len(rows), "problems_asked": num_problems}
        shown |= {"problems_answered": min((row["num_problems"] for row in rows), default=0)}
        return not wrong and not short, shown | ({"wrong": ", ".join(wrong)} if wrong else {})

    return Check(
        name="rows_complete",
        description="One finite row per metric, over as many problems as the recipe asks for.",
        passes=passes,
        blocking=True,
    )


def _leaderboard(artifact: Artifact, before: Artifact | None = None) -> Verdict:
    asked = artifact.provenance["recipe_slice"]
    rows = {row["model"]: row for row in artifact.table("leaderboard").to_pylist()}
    missing = [model for model in asked["models"] if model not in rows]
    short = [
        model
        for model in asked["models"]
        if model in rows
        and (rows[model]["num_tasks"] != len(asked["tasks"]) or not _finite(rows[model]["accuracy"]))
    ]
    shown: dict[str, Any] = {"num_models": len(rows), "num_tasks": len(asked["tasks"])}
    shown |= {"models_missing": ", ".join(missing)} if missing else {}
    return not missing and not short, shown | (
        {"models_without_some_task": ", ".join(short)} if short else {}
    )


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


ALL_FA_CHECK = Check(
    name="all_fa_equals_teacher",
    description="With full attention in every layer, the logits of a probe batch are the teacher's bit for bit.",
    passes=_all_fa,
    blocking=True,
)
PLACEMENTS_CHECK = Check(
    name="placements_equal_supernet",
    description="Every named placement's logits of a probe batch are those of the supernet bit for bit; so "
    "`safe` is the supernet's full attention.",
    passes=_placements_kept,
    blocking=True,
)
EXPORT_CHECK = Check(
    name="exports_equal_checkpoint",
    description="Every engine, the matryoshka and the stock all-FA, loaded from the export, have the logits of the "
    "checkpoint on a probe batch bit for bit.",
    passes=_placements_kept,
    blocking=True,
)
CHECKPOINT_CHECK = Check(
    name="checkpoint_loads",
    description="Loaded again, every tensor is what was trained; the files on disk have the hashes recorded then.",
    passes=_loads,
    blocking=True,
)
LOSS_FINITE_CHECK = Check(
    name="loss_is_finite", description="Every step's loss is a number.", passes=_loss_finite, blocking=True
)
LOSS_FALLS_CHECK = Check(
    name="loss_falls",
    description="The last tenth of the steps has a lower mean loss than the first tenth.",
    passes=_loss_falls,
)
PROBES_FALL_CHECK = Check(
    name="probes_fall",
    description="The mean KL of the fixed probe placements is lower after training than before.",
    passes=_probes_fall,
)
ESS_CHECK = Check(
    name="ess_above_floor",
    description="Some scored placement has an effective sample size above the floor: the search had something to "
    "trust.",
    passes=_ess,
)
LEADERBOARD_CHECK = Check(
    name="every_model_and_task",
    description="Every model of the recipe has a row, over every task.",
    passes=_leaderboard,
    blocking=True,
)
COST_CHECK = Check(
    name="cost_model_predicts_speed",
    description=f"R2 of predicted against measured whole-model time is at least {_LEAST_R2}.",
    passes=_costs,
)
SHARING_CHECK = Check(
    name="placements_share_weights",
    description="The named placements have weights in common.",
    passes=_sharing,
)
TRAINING_CHECKS = (LOSS_FINITE_CHECK, LOSS_FALLS_CHECK, CHECKPOINT_CHECK)
