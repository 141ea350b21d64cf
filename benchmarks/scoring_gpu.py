"""Scoring placements on one GPU: against generating the same completions, and what shared prefixes save in a search.

    python -m benchmarks.scoring_gpu [--layers 50] [--only generation]

Writes benchmarks/results/scoring_gpu.json. A supernet of the 15B shape, random bf16 weights, FA, SWA, GDN and KDA in
every layer. One candidate is scored on a few completions of each length; generating them is timed step by step through
the decode runner, whose step grows with the length, so a few lengths are timed and integrated. Generation runs at two
batches: as many rows as completions are scored, and as many as fit beside the supernet. Targets: scoring 30 times as
fast as generating; a beam run 1.8 times as many placements a second as each candidate alone.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from apriel_assets.distillation.batches import Traces
from apriel_assets.distillation.causal_lm import lm_head
from apriel_assets.distillation.losses import TeacherHead
from apriel_assets.evaluation.decode_runner import DecodeRunner
from apriel_assets.evaluation.decode_runner_report import measure_decode
from apriel_assets.hybrid.model import HybridForCausalLM
from apriel_assets.hybrid.placement import Placement, replace_layers
from apriel_assets.scoring.completion_figures import token_figures
from apriel_assets.scoring.config import EstimatorConfig
from apriel_assets.scoring.placements import PlacementScorer
from apriel_assets.search.allocations import enumerate_allocations
from apriel_assets.search.config import AllocationConfig, SearchConfig
from apriel_assets.search.costs import published_costs
from apriel_assets.search.placement_search import search_placements
from apriel_assets.search.space import SearchSpace
from apriel_assets.tables.schemas import to_table
from benchmarks.decode_gpu import forget, random_hybrid, rows_that_fit
from resources.provenance import code_revision, device_name, library_versions

MIXERS = ("fa", "swa", "gdn", "kda")
OPTIONS: dict[str, dict[str, Any]] = {"fa": {}, "swa": {"window": 4096}, "gdn": {}, "kda": {}}
PROMPT = 512  # tokens
BUDGET = 0.45
TARGET = {"speedup_over_generating": 30, "beam_over_alone": 1.8}


@torch.inference_mode()
def make_store(model: HybridForCausalLM, rows: int, length: int, seed: int) -> pa.Table:
    """Return a `completions` table of random tokens with the teacher's own log-probs."""
    draw = np.random.default_rng(seed)
    ids = draw.integers(0, model.config.backbone.vocab_size, (rows, PROMPT + length)).tolist()
    table = []
    for number, row in enumerate(ids):
        batch = Traces((tuple(row[:PROMPT]),), (tuple(row[PROMPT:]),)).batch([0]).to(model.device)
        hidden = model.final_hidden_states(batch.input_ids)[batch.mask]
        head = TeacherHead(hidden, lm_head(model))
        log_probs = token_figures(hidden, lm_head(model), batch.targets[batch.mask], head).log_q.tolist()
        table.append(
            {
                "task": "random",
                "problem_id": str(number),
                "sample": 0,
                "prompt": "",
                "correct": True,
                "prompt_token_ids": row[:PROMPT],
                "token_ids": row[PROMPT:],
                "log_probs": log_probs,
                "temperature": 1.0,
            }
        )
    return to_table("completions", table)


def scorer_of(model: HybridForCausalLM, store: pa.Table, tokens: int) -> PlacementScorer:
    """Return a scorer whose batches hold about `tokens` tokens."""
    length = PROMPT + len(store.column("token_ids")[0])
    config = EstimatorConfig(batch_size=max(1, tokens // length), estimator="log_q", resamples=10)
    return PlacementScorer(model, store, config, supernet_version="random")


def timed(work: Any) -> float:
    torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def generating_seconds(model: HybridForCausalLM, placement: Placement, length: int, rows: int) -> float:
    """Return the seconds of prefill and decoding of `rows` completions, by the trapezoid rule over the length."""
    model.set_placement(placement)
    runner = DecodeRunner(model, batch_size=rows, capacity=PROMPT + length + 40)
    prompts = np.random.default_rng(0).integers(0, 500, (rows, PROMPT)).tolist()
    prefill = timed(lambda: runner.prefill(prompts))
    lengths = [PROMPT + round(share * length) for share in (0, 0.25, 0.5, 0.75, 1)]
    steps = []
    for held in lengths:
        runner.fill(held)
        steps.append(measure_decode(runner, bytes_per_s=1.0, steps=8, repeats=3).seconds_per_step)
    return prefill + float(np.trapezoid(steps, lengths))


def against_generating(
    model: HybridForCausalLM, placements: dict[str, Placement], rows: int, length: int
) -> list:
    """Return a row per placement: seconds of scoring and of generating completions of one length."""
    all_fa = model.placement
    store = make_store(model, rows, length, seed=length)
    scorer = scorer_of(model, store, 16_384)
    found = []
    for name, placement in placements.items():
        timed(lambda p=placement: scorer.score([p]))  # kernels tune themselves
        seconds = statistics.median(timed(lambda p=placement: scorer.score([p])) for _ in range(3))
        tokens = rows * (PROMPT + length)
        row = {"placement": name, "completion_tokens": length, "rows": rows, "scoring_seconds": seconds}
        row["scored_tokens_per_s"] = tokens / seconds
        model.set_placement(placement)
        DecodeRunner(
            model, batch_size=1, capacity=64, graph=False
        )  # fuses projections before rows are counted
        forget()
        fitting = max(
            1, int(0.9 * rows_that_fit(model, PROMPT + length + 40))
        )  # logits and graphs want some room
        for label, batch in (("same rows", rows), ("rows that fit", fitting)):
            try:
                generated = generating_seconds(model, placement, length, batch)
            except torch.OutOfMemoryError as error:
                row[label] = {"rows": batch, "failed": str(error).splitlines()[0][:120]}
                continue
            finally:
                forget()
            row[label] = {
                "rows": batch,
                "seconds": generated,
                "generated_tokens_per_s": batch * length / generated,
                "speedup": generated / batch / (seconds / rows),
            }
        model.set_placement(all_fa)
        found.append(row)
        print(json.dumps(row), flush=True)
    return found


def beam_run(model: HybridForCausalLM, rows: int, length: int, candidates: int, alone: int) -> dict[str, Any]:
    """Return placements per second of one search, and of some of its candidates scored each alone."""
    costs = published_costs("published")
    allocations = enumerate_allocations(costs, BUDGET, model.mixers, AllocationConfig(slack=0.02))
    space = SearchSpace(allocations, costs, model.mixers)
    store = make_store(model, rows, length, seed=1)
    scorer, single = scorer_of(model, store, 16_384), scorer_of(model, store, 16_384)
    # Kernels tune themselves at their first call, for minutes.
    single.score([tuple(MIXERS[layer % len(MIXERS)] for layer in range(model.num_layers))])
    seconds: list[float] = []

    def score(placements: list[Placement], *rest: Any) -> Any:
        found: list[Any] = []
        seconds.append(timed(lambda: found.extend(scorer.score(placements, *rest))))
        return found

    config = SearchConfig(max_candidates=candidates, patience=None)
    result = search_placements(space, score, config, layer_ranking=range(model.num_layers))
    counts = scorer.layer_evaluations
    some = Random(0).sample([found.placement for found in result.ranked], alone)
    each = [timed(lambda p=placement: single.score([p])) for placement in some]
    together = result.num_scored / sum(seconds)
    return {
        "budget": BUDGET,
        "candidates": result.num_scored,
        "completion_tokens": length,
        "rows": rows,
        "layer_evaluations_ratio": counts.done / counts.alone,
        "placements_per_s": together,
        "placements_per_s_alone": alone / sum(each),
        "speedup": together * sum(each) / alone,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=50)
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 16_384, 32_256])
    parser.add_argument("--candidates", type=int, default=96)
    parser.add_argument("--only", choices=("generation", "beam"), help="measure this, keep the other")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "scoring_gpu.json")
    arguments = parser.parse_args()
    model = random_hybrid([OPTIONS] * arguments.layers, ("fa",) * arguments.layers)
    half = range(0, arguments.layers, 2)
    mixed = replace_layers(replace_layers(model.placement, half, "gdn"), range(1, arguments.layers, 8), "swa")
    results = json.loads(arguments.out.read_text()) if arguments.only and arguments.out.exists() else {}
    results |= {
        "device": device_name(),
        "versions": library_versions(),
        "target": TARGET,
        "layers": arguments.layers,
    }
    if arguments.only in (None, "beam"):
        results["beam"] = beam_run(model, 2, 4096, arguments.candidates, 12)
        print(json.dumps(results["beam"]), flush=True)
        write(arguments.out, results, "beam")
    if arguments.only in (None, "generation"):
        results["generation"] = []
        for length in arguments.lengths:
            rows = max(1, 16_384 // length)
            results["generation"] += against_generating(
                model, {"all-FA": model.placement, "mixed": mixed}, rows, length
            )
            write(arguments.out, results, "generation")


def write(path: Path, results: dict[str, Any], part: str) -> None:
    results.setdefault("commits", {})[part] = code_revision()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
