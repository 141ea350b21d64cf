"""From a placement's figures to the one value that ranks it, and to table rows."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from apriel_assets.hybrid.placement import Placement
from apriel_assets.scoring.config import EstimatorConfig, EstimatorName
from apriel_assets.tables.schemas import TABLES, to_table

logger = logging.getLogger(__name__)

# What ranks where snis must not: on the same scale, and low where weights are thin.
FALLBACK: EstimatorName = "ois_clipped"

Figures = Mapping[str, float]

_FIGURE: dict[str, str] = {"ess": "ess_share"}  # estimators whose figure has another name
_COLUMN: dict[str, str] = {"reverse_kl": "reverse_kl_nats", "log_q": "log_q_nats"}


@dataclass(frozen=True, slots=True)
class PlacementScore:
    """A placement's score; `value` is higher for better, whatever the estimator."""

    placement: Placement
    estimator: EstimatorName  # what `value` is: the one asked for, or FALLBACK
    value: float
    low: float
    high: float
    reliable: bool  # False: the ESS forbade the estimator asked for
    figures: Figures  # every estimator, with `_low` and `_high`; ess, num_completions, num_problems

    def estimate(self, estimator: EstimatorName) -> float:
        """Return another estimator's value for the same placement, higher for better."""
        return _oriented(self.figures, estimator)[0]


def rate(placement: Placement, figures: Figures, config: EstimatorConfig) -> PlacementScore:
    """Return the score by the configured estimator.

    Under the ESS floor `snis` says "correct" of any placement, so there FALLBACK, an estimate of the same
    accuracy, takes its place. The choice depends on the placement's own figures only.
    """
    reliable = config.estimator != "snis" or figures["ess_share"] >= config.ess_floor
    estimator = config.estimator if reliable else FALLBACK
    value, low, high = _oriented(figures, estimator)
    return PlacementScore(placement, estimator, value, low, high, reliable, figures)


def warn_of_unreliable(scores: Sequence[PlacementScore], config: EstimatorConfig) -> None:
    """Say how many scores are by FALLBACK, if any."""
    thin = sum(not score.reliable for score in scores)
    if thin:
        logger.warning(
            "%s of %d placements have an ESS under ess_floor=%g of the completions; %s ranks them instead of %s",
            "all" if thin == len(scores) else thin,
            len(scores),
            config.ess_floor,
            FALLBACK,
            config.estimator,
        )


def warn_of_thin(scores: Sequence[PlacementScore], config: EstimatorConfig, budget: float) -> int:
    """Return how many scores have an ESS under the floor; if all have, say what that means for the search."""
    thin = sum(score.figures["ess_share"] < config.ess_floor for score in scores)
    if thin == len(scores):
        logger.warning(
            "budget %g: all %d candidates have an ESS under ess_floor=%g; ranked by %s, but no estimate is firm here: "
            "trust the finalists' generated accuracy, train the supernet longer, or allow a higher budget",
            budget,
            thin,
            config.ess_floor,
            scores[0].estimator,
        )
    return thin


def to_rows(
    scores: Sequence[PlacementScore],
    *,
    budget: float | None = None,
    costs: Sequence[float | None] | None = None,
) -> pa.Table:
    """Return the `candidates` table of these scores.

    Args:
        scores: one row each.
        budget: that they were searched for; None: for the audit.
        costs: of each placement, all-FA = 1; None: unknown.
    """
    rows = []
    for score, cost in zip(scores, costs or [None] * len(scores), strict=True):
        figures = {_COLUMN.get(name, name): value for name, value in score.figures.items()}
        row: dict[str, Any] = {name: value for name, value in figures.items() if name in TABLES["candidates"]}
        for name in ("num_completions", "num_problems"):
            row[name] = int(row[name])
        for name in ("placement", "estimator", "value", "low", "high", "reliable"):
            row[name] = getattr(score, name)
        rows.append({**row, "budget": budget, "cost": cost})
    return to_table("candidates", rows)


def _oriented(figures: Figures, estimator: EstimatorName) -> tuple[float, float, float]:
    """Return value, low and high, so that higher is better."""
    name = _FIGURE.get(estimator, estimator)
    value, low, high = (figures[name + end] for end in ("", "_low", "_high"))
    return (-value, -high, -low) if estimator == "reverse_kl" else (value, low, high)
