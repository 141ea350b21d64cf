"""What must hold of H2's artifacts, shown in the UI with every materialization."""

import math
from collections.abc import Mapping
from typing import Any

from apriel_assets.assets.asset_plan import Check
from resources.artifact_store import Artifact

_LEAST_R2 = 0.8  # of the whole model's predicted speed


def audit_check(least: float) -> Check:
    """Return the check that the ranking estimator's Spearman correlation with generation is at least this."""

    def passes(artifact: Artifact) -> tuple[bool, Mapping[str, Any]]:
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


def _costs(artifact: Artifact) -> tuple[bool, Mapping[str, Any]]:
    figures = artifact.provenance["figures"]
    r2 = figures["r2"]
    return not math.isnan(r2) and r2 >= _LEAST_R2, {
        "r2": r2,
        "least": _LEAST_R2,
        "worst_error": figures["worst_error"],
    }


def _sharing(artifact: Artifact) -> tuple[bool, Mapping[str, Any]]:
    share = artifact.provenance["figures"]["shared_share"]
    return share > 0, {"shared_share": share}


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
