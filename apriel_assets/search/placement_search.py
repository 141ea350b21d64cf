"""Search the placements of a budget: propose, score, look whether there is news, until a limit is reached."""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from apriel_assets.errors import UserError
from apriel_assets.hybrid.placement import Placement
from apriel_assets.progress import Progress, silent
from apriel_assets.search.baselines import ExhaustiveSearch, RandomSearch
from apriel_assets.search.beam import BeamSearch
from apriel_assets.search.config import SearchConfig, StrategyName
from apriel_assets.search.history import Score, Scorer, Strategy, rank
from apriel_assets.search.space import SearchSpace
from apriel_assets.search.starts import starting_placements
from apriel_assets.search.surrogate import SurrogateSearch

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Found:
    """A scored placement."""

    placement: Placement
    score: Score
    cost: float  # all-FA = 1


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """The best placement after a number of candidates."""

    candidates: int
    seconds: float  # since the search began
    best: Score


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What a search scored.

    Attributes:
        strategy: how it searched.
        ranked: all scored placements, best first; equal values: the cheaper one first.
        curve: one point per round.
        stopped_because: one phrase for the reader.
    """

    strategy: StrategyName
    ranked: tuple[Found, ...]
    curve: tuple[CurvePoint, ...]
    stopped_because: str

    @property
    def num_scored(self) -> int:
        return len(self.ranked)

    @property
    def best(self) -> Found:
        return self.ranked[0]


def search_placements(
    space: SearchSpace,
    scorer: Scorer,
    config: SearchConfig,
    *,
    layer_ranking: Sequence[int] | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> SearchResult:
    """Return the placements scored in a search, best first.

    Equal arguments give equal results, unless `max_seconds` ends the search. No placement is scored twice.

    Args:
        space: the placements within the budget.
        scorer: scores sets of placements.
        config: strategy and limits.
        layer_ranking: layers, least important first, for the starts of beam and surrogate; None: random starts.
        seed: of everything drawn.
        progress: called with scored candidates and their limit.

    Raises:
        UserError: a space too large for exhaustive search, a bad ranking, or a score of NaN or +inf.
    """
    strategy = make_strategy(space, config, layer_ranking=layer_ranking, seed=seed)
    began = time.perf_counter()
    scored: dict[Placement, Score] = {}
    curve: list[CurvePoint] = []
    quiet_rounds = 0
    before: list[Score] = []
    while True:
        if reason := _limit_reached(config, len(scored), time.perf_counter() - began, quiet_rounds):
            break
        placements = strategy.propose(scored, min(config.batch, config.max_candidates - len(scored)))
        if not placements:
            reason = "no placement is left to try"
            break
        _score(placements, space, scorer, scored)
        ranked = rank(scored, space)
        top = [scored[placement] for placement in ranked[: config.finalists]]
        quiet_rounds = 0 if _is_news(before, top, config) else quiet_rounds + 1
        before = top
        curve.append(CurvePoint(len(scored), time.perf_counter() - began, top[0]))
        progress(len(scored), config.max_candidates, best=top[0].value)
    logger.info("%s search stopped after %d candidates: %s", config.strategy, len(scored), reason)
    found = tuple(Found(p, scored[p], space.cost(p)) for p in rank(scored, space))
    return SearchResult(config.strategy, found, tuple(curve), reason)


def make_strategy(
    space: SearchSpace, config: SearchConfig, *, layer_ranking: Sequence[int] | None, seed: int
) -> Strategy:
    """Return the strategy that the config names.

    Raises:
        UserError: a space too large for exhaustive search, or a bad ranking.
    """
    rng = np.random.default_rng(seed)
    match config.strategy:
        case "random":
            return RandomSearch(space, rng)
        case "exhaustive":
            return ExhaustiveSearch(space, config.max_candidates)
        case "beam":
            return BeamSearch(
                space, starting_placements(space, config.starts, layer_ranking, rng), config.beam, rng
            )
        case "surrogate":
            return SurrogateSearch(space, starting_placements(space, config.starts, layer_ranking, rng), rng)


def curve_rows(budget: float, result: SearchResult) -> list[dict[str, Any]]:
    """Return rows of table `search_curve`."""
    return [
        {
            "budget": budget,
            "strategy": result.strategy,
            "candidates": point.candidates,
            "seconds": point.seconds,
            "best_value": point.best.value,
            "best_low": point.best.low,
            "best_high": point.best.high,
        }
        for point in result.curve
    ]


def _score(
    placements: list[Placement], space: SearchSpace, scorer: Scorer, scored: dict[Placement, Score]
) -> None:
    assert all(placement in space and placement not in scored for placement in placements)
    scores = scorer(placements)
    assert len(scores) == len(placements)
    for placement, score in zip(placements, scores, strict=True):
        if math.isnan(score.value) or score.value == math.inf:
            raise UserError(
                f"placement {' '.join(placement)} scored {score.value}; look at the supernet's weights "
                "and the store's log-probs"
            )
        scored[placement] = score


def _limit_reached(config: SearchConfig, num_scored: int, seconds: float, quiet_rounds: int) -> str | None:
    if num_scored >= config.max_candidates:
        return f"all {config.max_candidates} candidates are used up"
    if config.max_seconds is not None and num_scored and seconds >= config.max_seconds:
        return f"{config.max_seconds:g} s are over"
    if config.strategy != "exhaustive" and config.patience is not None and quiet_rounds >= config.patience:
        return f"the best {config.finalists} were stable for {config.patience} rounds"
    return None


def _is_news(before: Sequence[Score], top: Sequence[Score], config: SearchConfig) -> bool:
    """Whether the finalists became better by more than a share of their intervals' half-width."""
    if len(before) < len(top):
        return True
    gain = sum(score.value for score in top) - sum(score.value for score in before)
    width = sum(score.high - score.low for score in top) / 2
    return gain > config.stability * width
