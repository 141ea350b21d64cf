"""How should a Mamba mixer start? The bundled teacher with two thirds of its attention replaced.

    python benchmarks/mamba_start.py --parallel 2

Writes benchmarks/results/mamba_start.json: reverse KL on held-out traces before and after as many steps, by
variant and seed. Lower after wins.
"""

import argparse
import json
import statistics
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from apriel_assets.distillation.batches import Traces, length_sorted_batches
from apriel_assets.distillation.config import DistillConfig
from apriel_assets.distillation.trainer import train
from apriel_assets.evaluation.tasks.problems import make_problems, task_names
from apriel_assets.evaluation.tasks.specs import TaskSpec
from apriel_assets.hybrid.config import MambaConfig, MixerOptions
from apriel_assets.hybrid.model import HybridForCausalLM
from apriel_assets.hybrid.specs import TeacherSpec
from apriel_assets.hybrid.teacher import load_teacher
from resources.provenance import code_revision, device_name, library_versions

LAYERS = (2, 3, 6, 7, 8, 9, 10, 11)  # eight of twelve

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "random projections": {"init": "random"},
    "output as it comes": {"output_scale": None},
    "output size of attention": {"output_scale": 1.0},
    "output a tenth of attention": {"output_scale": 0.1},
    "one decay for all states": {"decay": "constant"},
    "steps 0.01 to 0.1": {"dt_min": 0.01},
    "steps 0.001 to 0.01": {"dt_max": 0.01},
    "steps 0.01 to 1": {"dt_min": 0.01, "dt_max": 1.0},
    "one decay, steps 0.001 to 0.01": {"decay": "constant", "dt_max": 0.01},
    "one decay, steps 0.01 to 0.1": {"decay": "constant", "dt_min": 0.01},
    "one decay, steps 0.01 to 1": {"decay": "constant", "dt_min": 0.01, "dt_max": 1.0},
    "16 states": {"state_size": 16},
    "8 states": {"state_size": 8},
    "bottleneck of 24": {"dt_rank": 24},
}


@torch.no_grad()
def reverse_kl(student: HybridForCausalLM, teacher: HybridForCausalLM, traces: Traces) -> float:
    """Return KL(student || teacher), nats per completion token."""
    total, tokens = 0.0, 0
    for indices in length_sorted_batches(traces, 50):
        batch = traces.batch(indices)
        q, p = (
            model.lm_head(model.final_hidden_states(batch.input_ids, batch.attention_mask)).log_softmax(-1)
            for model in (student, teacher)
        )
        mask = batch.mask
        total += (q.exp() * (q - p)).sum(-1)[mask].sum().item()
        tokens += int(mask.sum())
    return total / tokens


def run(variant: str, seed: int, steps: int, threads: int) -> dict[str, Any]:
    """Convert, distil and measure one variant."""
    torch.set_num_threads(threads)
    model, tokenizer = load_teacher(TeacherSpec(model="bundled"))

    def traces(split: str, num: int) -> Traces:
        problems = [p for name in task_names() for p in make_problems(TaskSpec(name=name), split, num, 0)]
        return Traces.from_problems(problems, tokenizer)

    held_out, training = traces("validation", 40), traces("train", 400)
    teacher = HybridForCausalLM.from_teacher(model).eval()
    student = HybridForCausalLM.from_teacher(model).eval()
    settings = dict(VARIANTS[variant])
    init = settings.pop("init", "mapped")
    options = MixerOptions(mamba=MambaConfig(**settings))
    student.convert(LAYERS, "mamba", init=init, seed=seed, options=options)
    before, started = reverse_kl(student, teacher, held_out), time.perf_counter()
    train(student, training, DistillConfig(steps=steps, batch_size=16), teacher=teacher, seed=seed)
    seconds = time.perf_counter() - started
    after = reverse_kl(student.eval(), teacher, held_out)
    return {
        "variant": variant,
        "seed": seed,
        "before_nats": before,
        "after_nats": after,
        "train_seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="per run")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "mamba_start.json")
    arguments = parser.parse_args()
    with ProcessPoolExecutor(arguments.parallel, mp_context=get_context("spawn")) as pool:
        futures = [
            pool.submit(run, variant, seed, arguments.steps, arguments.threads)
            for seed in arguments.seeds
            for variant in arguments.variants
        ]
        rows = []
        for future in as_completed(futures):
            rows.append(future.result())
            print(json.dumps(rows[-1]), flush=True)
    rows.sort(key=lambda row: (row["variant"], row["seed"]))
    means = {
        variant: {
            name: statistics.mean(row[name] for row in rows if row["variant"] == variant)
            for name in ("before_nats", "after_nats")
        }
        for variant in arguments.variants
    }
    for variant, figures in sorted(means.items(), key=lambda item: item[1]["after_nats"]):
        print(f"{variant:32s} before {figures['before_nats']:.3f}  after {figures['after_nats']:.4f}")
    report = {
        "layers": LAYERS,
        "steps": arguments.steps,
        "means": means,
        "rows": rows,
        "device": device_name(),
        "versions": library_versions(),
        "code_revision": code_revision(),
    }
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
