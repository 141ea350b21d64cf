"""What scoring a placement costs: against whole passes over a beam run, and against generating for real.

    python benchmarks/placement_scoring.py

Writes benchmarks/results/placement_scoring.json. Targets: at most 0.6 of the layer evaluations of scoring each
candidate alone, the same scores to 1e-5; one candidate scored at least 10 times faster than it generates as
many completions at the same batch. The supernet is the bundled teacher's, its new mixers untrained: neither
figure depends on what they have learnt. Seconds of the second part are CPU seconds of one thread, which other
work on the machine changes little.
"""

import argparse
import json
import time
from pathlib import Path
from random import Random
from typing import Any

import torch

from apriel_assets.distillation.supernet import build_supernet
from apriel_assets.evaluation.generation import generate
from apriel_assets.evaluation.tasks.problems import task_names
from apriel_assets.evaluation.tasks.specs import TaskSpec
from apriel_assets.hybrid.placement import Placement, replace_layers
from apriel_assets.hybrid.specs import TeacherSpec
from apriel_assets.hybrid.teacher import load_teacher
from apriel_assets.scoring.config import EstimatorConfig, StoreConfig
from apriel_assets.scoring.estimators import ESTIMATORS
from apriel_assets.scoring.placements import PlacementScorer
from apriel_assets.scoring.store import sample_store
from apriel_assets.search.allocations import enumerate_allocations
from apriel_assets.search.config import SearchConfig
from apriel_assets.search.costs import published_costs
from apriel_assets.search.placement_search import search_placements
from apriel_assets.search.space import SearchSpace
from resources.provenance import code_revision, device_name, library_versions

MIXERS = ("fa", "swa", "gdn", "kda")
BATCH_SIZE = EstimatorConfig().batch_size


def beam_run(supernet: Any, store: Any, budget: float, problems: int) -> dict[str, Any]:
    """Return layer evaluations and seconds of one search, and of scoring each of its candidates alone."""
    costs = published_costs("published")
    allocations = enumerate_allocations(costs, budget, supernet.mixers)
    space = SearchSpace(allocations, costs, supernet.mixers)
    config = EstimatorConfig(batch_size=BATCH_SIZE, problems=problems, estimator="log_q")
    scorer = PlacementScorer(supernet, store, config)
    started = time.perf_counter()
    result = search_placements(
        space, scorer.score, SearchConfig(patience=None), layer_ranking=range(supernet.num_layers)
    )
    seconds = time.perf_counter() - started
    counts = scorer.layer_evaluations
    figures: dict[str, Any] = {
        "budget": budget,
        "candidates": result.num_scored,
        "layer_evaluations": counts.done,
        "layer_evaluations_alone": counts.alone,
        "ratio": counts.done / counts.alone,
        "seconds": seconds,
    }
    alone = PlacementScorer(supernet, store, config)
    started, largest = time.perf_counter(), 0.0
    for found in result.ranked:
        single = alone.score([found.placement])[0].figures
        together: Any = found.score
        largest = max(largest, *(abs(single[name] - together.figures[name]) for name in ESTIMATORS))
    figures["seconds_alone"] = time.perf_counter() - started
    return {**figures, "seconds_ratio": seconds / figures["seconds_alone"], "largest_difference": largest}


def generation_comparison(
    supernet: Any, tokenizer: Any, store: Any, placement: Placement, repeats: int
) -> dict[str, Any]:
    """Return CPU seconds of scoring one candidate, alone and in a search round, and of sampling as many
    completions from it."""
    rows = {row["problem_id"]: row["prompt"] for row in store.to_pylist()}
    samples = store.num_rows // len(rows)
    rng = Random(0)
    neighbours = {swap(placement, rng.randrange(12), rng.randrange(12)) for _ in range(200)} - {placement}
    round_of = sorted(neighbours)[: SearchConfig().batch] or [placement]
    seconds: dict[str, list[float]] = {"alone": [], "in_round": [], "generating": []}
    scorer = PlacementScorer(supernet, store, EstimatorConfig(batch_size=BATCH_SIZE))
    num_tokens = 0
    for _ in range(repeats):
        started = time.process_time()
        scorer.score([placement])
        seconds["alone"].append(time.process_time() - started)
        started = time.process_time()
        scorer.score(round_of)
        seconds["in_round"].append((time.process_time() - started) / len(round_of))
        supernet.set_placement(placement)
        started = time.process_time()
        found = generate(
            supernet,
            tokenizer,
            list(rows.values()),
            max_new_tokens=StoreConfig().max_new_tokens,
            temperature=1.0,
            samples=samples,
            batch_size=BATCH_SIZE,
        )
        seconds["generating"].append(time.process_time() - started)
        num_tokens = sum(len(sample.token_ids) for answers in found for sample in answers)
        supernet.set_placement(("fa",) * supernet.num_layers)
    medians = {name: sorted(values)[repeats // 2] for name, values in seconds.items()}
    return {
        "placement": placement,
        "round_size": len(round_of),
        "completions": store.num_rows,
        "tokens_stored": sum(len(row) for row in store.column("token_ids").to_pylist()),
        "tokens_generated": num_tokens,
        **{f"{name}_cpu_seconds": value for name, value in medians.items()},
        "speedup_alone": medians["generating"] / medians["alone"],
        "speedup_in_round": medians["generating"] / medians["in_round"],
    }


def swap(placement: Placement, first: int, second: int) -> Placement:
    """Return the placement with two layers' mixers exchanged."""
    mixers = list(placement)
    mixers[first], mixers[second] = mixers[second], mixers[first]
    return tuple(mixers)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--problems", type=int, default=40, help="problems of the store, 6 samples each")
    parser.add_argument("--beam-problems", type=int, default=10, help="of these, problems in the beam run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "placement_scoring.json"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    teacher, tokenizer = load_teacher(TeacherSpec(model="bundled"))
    tasks = [TaskSpec(name=name) for name in task_names()]
    store = sample_store(teacher, tokenizer, tasks, StoreConfig(problems=arguments.problems), seed=0)
    supernet = build_supernet(teacher, [MIXERS] * teacher.config.num_hidden_layers).eval()
    all_fa = supernet.placement
    # The default window is longer than these texts: such a layer answers as full attention does, and the
    # completions keep their natural length. Two GDN layers bring a recurrent state in.
    mixed = replace_layers(replace_layers(all_fa, range(0, 12, 2), "swa"), [9, 11], "gdn")
    report = {
        "beam": [beam_run(supernet, store, budget, arguments.beam_problems) for budget in (0.6, 0.35)],
        "target_ratio": 0.6,
        "generation": [
            generation_comparison(supernet, tokenizer, store, placement, arguments.repeats)
            for placement in (all_fa, mixed)
        ],
        "target_speedup": 10,
        "batch_size": BATCH_SIZE,
        "threads": arguments.threads,
        "device": device_name(),
        "versions": library_versions(),
        "code_revision": code_revision(),
    }
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    for figures in (*report["beam"], *report["generation"]):
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
