"""Does GRPO raise an efficient placement's reward on held-out problems, and what does it do to full attention?

    apriel run --home HOME                                    # a quickstart home: its release/sft is the start
    python benchmarks/grpo.py --home HOME --placement max

Writes benchmarks/results/grpo.json. Each seed trains a fresh copy of the released checkpoint. Before and after, the
placement answers the same problems of the test split: sampled at the training temperature, which is the reward that is
trained for, and greedily. Differences are paired by problem, with a 95% bootstrap interval and a sign-flip test; over
seeds, seeds are resampled, too. Full attention's logits on a probe batch are compared bit for bit.
"""

import argparse
import json
import time
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from pydantic import TypeAdapter
from transformers import PreTrainedTokenizerBase

from apriel_assets.evaluation.generation import generate
from apriel_assets.evaluation.paired import Pairs, paired_difference
from apriel_assets.evaluation.tasks.problems import make_problems, task_names, verify
from apriel_assets.evaluation.tasks.specs import TaskSpec
from apriel_assets.hybrid.equality import largest_difference
from apriel_assets.hybrid.model import HybridForCausalLM
from apriel_assets.hybrid.placement import layer_map
from apriel_assets.hybrid.specs import TeacherSpec
from apriel_assets.hybrid.teacher import load_tokenizer
from apriel_assets.posttraining.config import GrpoConfig
from apriel_assets.posttraining.grpo import train_grpo
from resources.provenance import code_revision, device_name, library_versions

TASKS = [TaskSpec(name=name) for name in task_names()]
MODES = {"sampled": {"temperature": 1.0, "samples": 4}, "greedy": {"temperature": 0.0, "samples": 1}}

Rewards = dict[str, dict[str, np.ndarray]]
"""By mode, then task: each held-out problem's mean verdict, `[problems]`."""


def held_out(model: HybridForCausalLM, tokenizer: PreTrainedTokenizerBase, num_problems: int) -> Rewards:
    """Return what the active placement's answers to the test problems are worth."""
    asked = [(task, problem) for task in TASKS for problem in make_problems(task, "test", num_problems, 0)]
    prompts = [problem.prompt for _, problem in asked]
    found: Rewards = {}
    for mode, how in MODES.items():
        answers = generate(model, tokenizer, prompts, max_new_tokens=56, seed=0, **how)
        verdicts = [
            np.mean([verify(task, problem, own.text) for own in group])
            for (task, problem), group in zip(asked, answers, strict=True)
        ]
        parts = np.split(np.array(verdicts), len(TASKS))
        found[mode] = {task.task: part for task, part in zip(TASKS, parts, strict=True)}
    return found


def differences(before: Rewards, runs: list[Rewards]) -> dict[str, Any]:
    """Return, by mode, the rewards before and after and their paired difference over all tasks and by task."""
    report: dict[str, Any] = {}
    for mode, tasks in before.items():
        pairs = {
            name: [Pairs(differences=run[mode][name] - old, weights=np.ones(len(old))) for run in runs]
            for name, old in tasks.items()
        }
        report[mode] = {
            "before": float(np.mean([old.mean() for old in tasks.values()])),
            "after": [float(np.mean([own.mean() for own in run[mode].values()])) for run in runs],
            "difference": asdict(paired_difference(list(pairs.values()))),
            "by_task": {name: asdict(paired_difference([own])) for name, own in pairs.items()},
        }
    return report


def load_release(home: Path) -> tuple[HybridForCausalLM, dict[str, Any]]:
    """Return the newest release/sft checkpoint of a home, and the facts of its provenance that matter here."""
    found = sorted(
        (home / "artifacts" / "release" / "sft").glob("*/provenance.json"), key=lambda p: p.stat().st_mtime
    )
    if not found:
        raise SystemExit(f"no release/sft in {home}; run `apriel run --home {home}` first")
    facts = json.loads(found[-1].read_text())
    model = HybridForCausalLM.from_pretrained(found[-1].parent / "checkpoint").eval()
    return model, {
        name: facts[name] for name in ("recipe", "code", "device", "data_version") if name in facts
    }


def run_seed(
    start: HybridForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    config: GrpoConfig,
    placement: str,
    seed: int,
    num_problems: int,
) -> tuple[dict[str, Any], Rewards]:
    """Train a copy; return its curve and full attention's change, and its rewards on held-out problems."""
    model = deepcopy(start)
    asked = [
        (task, problem) for task in TASKS for problem in make_problems(task, "train", config.num_problems, 0)
    ]
    began, worked = time.perf_counter(), time.process_time()

    def progress(done: int, total: int, **figures: float) -> None:
        print(seed, done, total, {name: round(own, 4) for name, own in figures.items()}, flush=True)

    rows = train_grpo(model, tokenizer, asked, config, seed=seed, progress=progress).to_pylist()
    learned = [row for row in rows if row["loss"] is not None]
    report = {
        "seed": seed,
        "seconds": time.perf_counter() - began,
        "processor_seconds": time.process_time() - worked,
        "reward": [row["reward"] for row in rows],
        "kl_nats": [row["kl_nats"] for row in rows],
        "num_groups": sum(row["num_groups"] for row in rows),
        "num_skipped_groups": sum(row["num_skipped_groups"] for row in rows),
        "largest_ratio_error": max(row["largest_ratio_error"] for row in learned),
        "clipped_share": float(np.mean([row["clipped_share"] for row in learned])),
        "sampled_tokens": rows[-1]["tokens"],
        "all_fa_max_difference": largest_difference(model, start),
    }
    model.set_placement(placement)
    return report, held_out(model.eval(), tokenizer, num_problems)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--placement", default="max")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--problems", type=int, default=40, help="held-out problems of each task")
    parser.add_argument("--train", default="{}", help="settings of release.rl, as YAML")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "grpo.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    start, facts = load_release(arguments.home)
    others = {name: 0.0 for name in start.placements if name != arguments.placement}
    config = TypeAdapter(GrpoConfig).validate_python(
        {"placement_weights": others, **yaml.safe_load(arguments.train)}
    )
    tokenizer = load_tokenizer(TeacherSpec(model="bundled"))
    start.set_placement(arguments.placement)
    before = held_out(start, tokenizer, arguments.problems)
    print(
        {mode: float(np.mean([own.mean() for own in tasks.values()])) for mode, tasks in before.items()},
        flush=True,
    )
    start.set_placement("safe")
    runs, after = [], []
    for seed in arguments.seeds:
        row, rewards = run_seed(start, tokenizer, config, arguments.placement, seed, arguments.problems)
        runs.append({**row, "held_out": differences(before, [rewards])})
        after.append(rewards)
        report = {
            "placement": {arguments.placement: layer_map(start.placements[arguments.placement])},
            "start": facts,
            "config": asdict(config),
            "num_problems_per_task": arguments.problems,
            "over_seeds": differences(before, after),
            "seeds": runs,
            "device": device_name(),
            "versions": library_versions(),
            "code_revision": code_revision(),
        }
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")
        for mode, own in runs[-1]["held_out"].items():
            print(seed, mode, own["before"], own["after"], own["difference"], flush=True)


if __name__ == "__main__":
    main()
