"""Do beam and surrogate find better placements than random search, at equal candidates, on the quickstart?

    apriel run --recipe quickstart --home HOME
    python benchmarks/search_strategies.py --home HOME

Writes benchmarks/results/search_strategies.json: the best value of each strategy by budget and seed, paired differences
to random search with 95% t-intervals over seeds, and how many candidates each needed for random's best. Scores are
kept in the home, so seeds and strategies share what they have in common; nothing that the recipe made is changed.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from transformers import AutoTokenizer

from apriel_assets.hybrid.model import HybridForCausalLM
from apriel_assets.recipe import load_recipe
from apriel_assets.scoring.memo import ScoreMemo
from apriel_assets.scoring.placements import PlacementScorer
from apriel_assets.search.allocations import enumerate_allocations
from apriel_assets.search.config import SearchConfig
from apriel_assets.search.costs import CostTable
from apriel_assets.search.placement_search import search_placements
from apriel_assets.search.space import SearchSpace
from resources.provenance import code_revision, device_name, library_versions

STRATEGIES = ("random", "beam", "surrogate")
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 8: 2.365}  # two-sided, n - 1 degrees of freedom
BUNDLED = Path(__file__).parent.parent / "apriel_assets" / "bundled" / "teacher"


def newest(home: Path, asset: str) -> Path:
    """Return the directory of an asset's newest artifact."""
    found = sorted(
        (home / "artifacts" / asset).glob("*/provenance.json"), key=lambda path: path.stat().st_mtime
    )
    if not found:
        raise SystemExit(f"{home} has no {asset}; run the quickstart in it first")
    return found[-1].parent


def run(space: SearchSpace, scorer: PlacementScorer, ranking: list[int], settings: dict, seed: int) -> dict:
    """Return the figures of one search."""
    config = SearchConfig(patience=None, **settings)
    result = search_placements(space, scorer.score, config, layer_ranking=ranking, seed=seed)
    curve = [(point.candidates, point.best.value) for point in result.curve]
    return {"best": result.best.score.value, "placement": result.best.placement, "curve": curve}


def compare(results: dict[str, list[dict]]) -> dict[str, Any]:
    """Return each strategy's difference to random search, paired by seed."""
    found = {}
    for strategy in STRATEGIES[1:]:
        pairs = [
            own["best"] - other["best"]
            for own, other in zip(results[strategy], results["random"], strict=True)
        ]
        mean, half = statistics.mean(pairs), T_95[len(pairs)] * statistics.stdev(pairs) / len(pairs) ** 0.5
        needed = [
            next((count for count, value in own["curve"] if value >= other["best"]), None)
            for own, other in zip(results[strategy], results["random"], strict=True)
        ]
        found[strategy] = {
            "difference": mean,
            "low": mean - half,
            "high": mean + half,
            "per_seed": pairs,
            "candidates_to_match_random": needed,
        }
    return found


def main() -> None:
    """Run every strategy with every seed and write the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--candidates", type=int, default=96)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "search_strategies.json"
    )
    given = parser.parse_args()
    recipe = load_recipe(given.recipe)
    assert recipe.search is not None
    supernet_path = newest(given.home, "supernet")
    supernet = HybridForCausalLM.from_pretrained(supernet_path / "checkpoint").eval()
    completions = pq.read_table(newest(given.home, "completions") / "tables" / "completions.parquet")
    scores = pq.read_table(newest(given.home, "layer_scores") / "tables" / "layer_scores.parquet").to_pylist()
    ranking = [row["layer"] for row in sorted(scores, key=lambda row: row["rank"])]
    costs = CostTable(**json.loads((newest(given.home, "cost_model") / "costs.json").read_text()))
    scorer = PlacementScorer(
        supernet,
        completions,
        recipe.search.estimator,
        memo=ScoreMemo(given.home / "scores"),
        tokenizer=AutoTokenizer.from_pretrained(BUNDLED),
        supernet_version=json.loads((supernet_path / "provenance.json").read_text())["data_version"],
        seed=recipe.seed,
    )
    report: dict[str, Any] = {"budgets": {}}
    for budget in recipe.search.budgets:
        allocations = enumerate_allocations(costs, budget, supernet.mixers, recipe.search.allocations)
        space = SearchSpace(allocations, costs, supernet.mixers, recipe.search.allocations)
        results: dict[str, list[dict]] = {}
        for strategy in STRATEGIES:
            settings = {"strategy": strategy, "max_candidates": given.candidates, "beam": recipe.search.beam}
            results[strategy] = [run(space, scorer, ranking, settings, seed) for seed in given.seeds]
            best = [round(own["best"], 3) for own in results[strategy]]
            print(f"budget {budget} {strategy:10} best {best}", flush=True)
        report["budgets"][str(budget)] = {"results": results, "difference_to_random": compare(results)}
        print(json.dumps(report["budgets"][str(budget)]["difference_to_random"]), flush=True)
    report |= {
        "recipe": given.recipe,
        "seeds": given.seeds,
        "candidates": given.candidates,
        "estimator": recipe.search.estimator.estimator,
        "costs": dict(costs.per_mixer),
        "code": code_revision(),
        "libraries": library_versions(),
        "device": device_name(),
    }
    given.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
