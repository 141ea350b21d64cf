"""What each step of the search (H2) does: costs, allocations, placements, finalists, the audit."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from apriel_assets.assets.asset_plan import Job
from apriel_assets.assets.h1_builders import ranked_layers
from apriel_assets.assets.loading import load_model_once, load_teacher_model
from apriel_assets.evaluation.config import EvalConfig
from apriel_assets.evaluation.tasks.specs import TaskSpec
from apriel_assets.hybrid.config import MixerConfig
from apriel_assets.recipe_sections import AuditConfig, mixers_per_layer
from apriel_assets.scoring.config import EstimatorConfig
from apriel_assets.search.config import AllocationConfig, CostsConfig, SearchConfig
from resources.artifact_store import digest

if TYPE_CHECKING:
    from apriel_assets.scoring.placements import PlacementScorer
    from apriel_assets.search.costs import CostTable

COSTS = "costs.json"
SCORES = "scores"  # in the home: finished scores, which all searches share


def build_mixer_costs(job: Job, *, mixer: str, options: MixerConfig, costs: CostsConfig, seed: int) -> None:
    """What one layer's mixer costs on this device, relative to full attention timed in turn with it."""
    from apriel_assets.search.measured import measure_mixer
    from resources.provenance import device_name

    teacher, _ = load_teacher_model(job)
    rows = measure_mixer(
        teacher,
        mixer,
        costs,
        device_name=device_name(),
        options={mixer: options},
        seed=seed,
        progress=job.progress,
    )
    job.draft.tables["mixer_costs"] = rows


def build_cost_model(job: Job, *, costs: CostsConfig, mixers: tuple[str, ...]) -> None:
    """Cost of every mixer of the supernet, full attention = 1: measured, published, or from the recipe."""
    from apriel_assets.search.costs import resolve_costs

    table = resolve_costs(costs, _mixer_costs(job))
    table.require(mixers)
    content = {"name": table.name, "per_mixer": dict(table.per_mixer), "overheads": dict(table.overheads)}
    (job.draft.path / COSTS).write_text(json.dumps(content, indent=1))
    job.draft.data_version = digest(content)
    job.draft.figures |= {f"cost_{mixer}": table.per_mixer[mixer] for mixer in mixers}


def build_cost_check(job: Job, *, costs: CostsConfig, num_placements: int, seed: int) -> None:
    """Predicted against measured speed of the whole model, over random placements."""
    from apriel_assets.search.cost_check import check_costs, spread_placements
    from resources.provenance import device_name

    supernet = load_model_once(job, "supernet")
    found = check_costs(
        supernet,
        spread_placements(supernet.mixers, num_placements, seed),
        _mixer_costs(job),
        costs,
        device_name=device_name(),
        seed=seed,
        progress=job.progress,
    )
    job.draft.tables["cost_check"] = found.table
    job.draft.figures |= {"r2": found.r2, "worst_error": found.worst_error, "r2_fitted": found.fitted.r2}
    job.draft.figures |= {f"overhead_{mixer}": value for mixer, value in found.fitted.table.overheads.items()}


def build_allocations(
    job: Job,
    *,
    mixers: tuple[str, ...],
    layers: Mapping[int, tuple[str, ...]],
    allocations: AllocationConfig,
    budget: float,
) -> None:
    """How many layers of each mixer the budget admits: all of them, exactly."""
    from apriel_assets.search.allocations import allocation_rows, enumerate_allocations
    from apriel_assets.tables.schemas import to_table

    held = mixers_per_layer(_num_layers(job), mixers, layers)
    found = enumerate_allocations(cost_table(job), budget, held, allocations)
    job.draft.tables["allocations"] = to_table("allocations", allocation_rows(budget, found))
    job.draft.data_version = digest([[dict(a.counts), a.pareto] for a in found])
    job.draft.figures |= {
        "num_allocations": len(found),
        "num_pareto": sum(a.pareto for a in found),
        "cheapest": min(a.cost for a in found),
    }


def build_placements(
    job: Job,
    *,
    search: SearchConfig,
    allocations: AllocationConfig,
    estimator: EstimatorConfig,
    seed: int,
    budget: float,
) -> None:
    """Which layer has which mixer: the search within the budget, scored on the store by forward passes."""
    from apriel_assets.scoring.rating import PlacementScore, to_rows, warn_of_thin
    from apriel_assets.search.allocations import Allocation
    from apriel_assets.search.placement_search import curve_rows, search_placements
    from apriel_assets.search.space import SearchSpace
    from apriel_assets.tables.schemas import to_table

    scorer = _scorer(job, estimator, seed)
    costs = cost_table(job)
    admitted = [
        Allocation(json.loads(row["counts"]), row["cost"], row["pareto"])
        for row in job.input("allocations").table("allocations").to_pylist()
    ]
    space = SearchSpace(admitted, costs, load_model_once(job, "supernet").mixers, allocations)
    ranking = ranked_layers(job.input("layer_scores").table("layer_scores"))
    result = search_placements(
        space, scorer.score, search, layer_ranking=ranking, seed=seed, progress=job.progress
    )
    scores = [cast("PlacementScore", found.score) for found in result.ranked]  # the scorer's own come back
    costs_found = [found.cost for found in result.ranked]
    job.draft.tables["candidates"] = to_rows(scores, budget=budget, costs=costs_found)
    job.draft.tables["search_curve"] = to_table("search_curve", curve_rows(budget, result))
    work = scorer.layer_evaluations
    job.draft.figures |= {
        "num_scored": result.num_scored,
        "num_under_ess_floor": warn_of_thin(scores, estimator, budget),
        "stopped_because": result.stopped_because,
        "best_value": result.best.score.value,
        "layer_evaluations": work.done,
        "layer_evaluations_without_reuse": work.alone,
    }


def build_finalists(
    job: Job,
    *,
    num: int,
    accuracy: EvalConfig,
    heldout: tuple[TaskSpec, ...],
    strategy: str,
    seed: int,
    budget: float,
    name: str,
) -> None:
    """The search's best placements, judged by what they really generate; the best of them is chosen."""
    from apriel_assets.scoring.audit import generated_accuracies
    from apriel_assets.tables.schemas import to_table

    _, tokenizer = load_teacher_model(job)
    candidates = job.input("placements").table("candidates").slice(0, num).to_pylist()
    generated = generated_accuracies(
        load_model_once(job, "supernet"),
        tokenizer,
        heldout,
        [tuple(row["placement"]) for row in candidates],
        accuracy,
        seed=seed,
        exclude=_stored_problems(job),
        progress=job.progress,
    )
    pairs = zip(candidates, generated, strict=True)
    ordered = sorted(pairs, key=lambda pair: (-pair[1].accuracy, -pair[0]["value"], pair[0]["cost"]))
    rows = [
        {key: row[key] for key in ("budget", "placement", "cost", "value", "low", "high")}
        | {"generated_accuracy": own.accuracy, "generated_low": own.low, "generated_high": own.high}
        | {"rank": rank, "chosen": rank == 0, "name": None if rank else name, "strategy": strategy}
        for rank, (row, own) in enumerate(ordered)
    ]
    job.draft.tables["placements"] = to_table("placements", rows)
    before = job.input("supernet").table("checkpoints").to_pylist()[0]
    placement = list(ordered[0][0]["placement"])
    row = before | {"model": name, "kind": "placement", "parent": "supernet", "placement": placement}
    row["num_replaced"] = sum(mixer != "fa" for mixer in placement)
    job.draft.tables["checkpoints"] = to_table("checkpoints", [row])
    job.draft.data_version = digest([rows[0]["placement"], budget])
    job.draft.figures |= {"generated_accuracy": rows[0]["generated_accuracy"], "cost": rows[0]["cost"]}


def build_audit(
    job: Job, *, audit: AuditConfig, estimator: EstimatorConfig, heldout: tuple[TaskSpec, ...], seed: int
) -> None:
    """Every estimator against real generation, over placements from all-FA to fully replaced."""
    from apriel_assets.scoring.audit import audit_placements, audit_points, audit_rows, generated_accuracies
    from apriel_assets.scoring.rating import to_rows

    _, tokenizer = load_teacher_model(job)
    supernet = load_model_once(job, "supernet")
    ranking = ranked_layers(job.input("layer_scores").table("layer_scores"))
    placements = audit_placements(audit.placements, supernet.mixers, layer_ranking=ranking, seed=seed)
    scores = _scorer(job, estimator, seed).score(placements, job.progress)
    generated = generated_accuracies(
        supernet,
        tokenizer,
        heldout,
        placements,
        audit.accuracy,
        seed=seed,
        exclude=_stored_problems(job),
        progress=job.progress,
    )
    rows = audit_rows(scores, generated, seed=seed)
    job.draft.tables |= {
        "audit": rows,
        "audit_points": audit_points(scores, generated),
        "candidates": to_rows(scores),
    }
    ranked_by = next(row for row in rows.to_pylist() if row["estimator"] == estimator.estimator)
    job.draft.figures |= {
        "estimator": estimator.estimator,
        **{name: ranked_by[name] for name in ("spearman", "spearman_low", "spearman_high", "pearson")},
    }


def cost_table(job: Job) -> "CostTable":
    """Return the cost model that was made upstream."""
    from apriel_assets.search.costs import CostTable

    return CostTable(**json.loads((job.input("cost_model").path / COSTS).read_text()))


def _scorer(job: Job, estimator: EstimatorConfig, seed: int) -> "PlacementScorer":
    from apriel_assets.scoring.memo import ScoreMemo
    from apriel_assets.scoring.placements import PlacementScorer

    teacher, tokenizer = load_teacher_model(job)
    supernet = job.input("supernet")
    # If only mixers were trained, the all-FA path still is the teacher.
    moved = supernet.provenance["recipe_slice"]["train"]["trains"] != "mixers"
    return PlacementScorer(
        load_model_once(job, "supernet"),
        job.input("completions").table("completions"),
        estimator,
        memo=ScoreMemo(job.home / SCORES),
        teacher=teacher if moved else None,
        tokenizer=tokenizer,
        supernet_version=supernet.data_version,
        seed=seed,
    )


def _mixer_costs(job: Job) -> list[dict[str, Any]]:
    measured = [parts[None] for key, parts in job.inputs.items() if key.startswith("costs/")]
    return [row for artifact in measured for row in artifact.table("mixer_costs").to_pylist()]


def _stored_problems(job: Job) -> set[str]:
    return set(job.input("completions").table("completions").column("problem_id").to_pylist())


def _num_layers(job: Job) -> int:
    return len(job.input("teacher").table("checkpoints").column("placement")[0].as_py())
