"""Do GDN and KDA mixers start better from attention (DIL, KIL) than fresh, and how should they start?

    python benchmarks/delta_start.py --parallel 2

Writes benchmarks/results/delta_start.json, lower is better everywhere:
- per layer: how well a layer's mixer imitates its attention after a few steps on that alone, as mean squared
  error over the attention output's own mean square, on held-out traces. Every layer of the bundled teacher.
- half: reverse KL of the teacher with half of its layers replaced, before and after a few steps of
  distillation, on held-out traces. The variants differ in one option of the mixer.
"""

import argparse
import json
import statistics
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from mamba_start import reverse_kl

from apriel_assets.distillation.batches import Batch, Traces
from apriel_assets.distillation.config import DistillConfig
from apriel_assets.distillation.trainer import train
from apriel_assets.evaluation.tasks.problems import Split, make_problems, task_names
from apriel_assets.evaluation.tasks.specs import TaskSpec
from apriel_assets.hybrid.forward_context import active_context
from apriel_assets.hybrid.model import HybridForCausalLM
from apriel_assets.hybrid.specs import TeacherSpec
from apriel_assets.hybrid.teacher import load_teacher
from resources.provenance import code_revision, device_name, library_versions

HALF = (0, 2, 4, 6, 8, 10)  # of twelve

FASTER = {"rate_min": 0.001, "rate_max": 0.1}

VARIANTS: dict[str, dict[str, Any]] = {
    "mapped": {},
    "random": {"init": "random"},
    "output as it comes": {"output_scale": None, **FASTER},
    "output size of attention": {"output_scale": 1.0, **FASTER},
    "output a tenth of attention": {"output_scale": 0.1, **FASTER},
    "mapped, decay 0.001 to 0.1 nats": FASTER,
    "mapped, decay 0.01 to 1 nats": {"rate_min": 0.01, "rate_max": 1.0},
    "random, decay 0.001 to 0.1 nats": {"init": "random", **FASTER},
}


def load(num_training: int) -> tuple[HybridForCausalLM, Traces, Traces]:
    """Return the teacher, held-out traces and training traces."""
    model, tokenizer = load_teacher(TeacherSpec(model="bundled"))

    def traces(split: Split, num: int) -> Traces:
        problems = [p for name in task_names() for p in make_problems(TaskSpec(name=name), split, num, 0)]
        return Traces.from_problems(problems, tokenizer)

    return (
        HybridForCausalLM.from_teacher(model).eval(),
        traces("validation", 10),
        traces("train", num_training),
    )


def run_half(mixer: str, variant: str, seed: int, steps: int) -> dict[str, Any]:
    """Replace half of the layers, distil, and measure."""
    torch.set_num_threads(1)
    teacher, held_out, training = load(200)
    student = HybridForCausalLM.from_teacher(teacher.backbone).eval()
    settings = dict(VARIANTS[variant])
    init = settings.pop("init", "mapped")
    student.convert(HALF, mixer, init=init, seed=seed, options={mixer: settings})
    before = reverse_kl(student, teacher, held_out)
    train(student, training, DistillConfig(steps=steps, batch_size=8), teacher=teacher, seed=seed)
    after = reverse_kl(student.eval(), teacher, held_out)
    row = {"mixer": mixer, "variant": variant, "seed": seed}
    return row | {"before_nats": before, "after_nats": after}


def run_layers(mixer: str, variant: str, seed: int, steps: int) -> dict[str, Any]:
    """Train every layer's mixer on its attention's inputs and outputs, each for itself; return their errors."""
    torch.set_num_threads(1)
    teacher, held_out, training = load(200)
    student = HybridForCausalLM.from_teacher(teacher.backbone)
    layers = range(student.num_layers)
    settings = dict(VARIANTS[variant])
    init = settings.pop("init", "mapped")
    student.convert(layers, mixer, init=init, seed=seed, keep=True, options={mixer: settings})
    student.set_placement(("fa",) * student.num_layers)
    mixers = [bank.mixers[mixer] for bank in student.banks]
    optimizer = torch.optim.AdamW([p for m in mixers for p in m.parameters()], lr=2e-3, weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        picked = torch.randperm(len(training), generator=generator)[:8].tolist()
        optimizer.zero_grad()
        torch.stack(layer_errors(student, mixers, training.batch(picked))).sum().backward()
        optimizer.step()
    with torch.no_grad():
        errors = layer_errors(student, mixers, held_out.batch(list(range(len(held_out)))))
    row = {"mixer": mixer, "variant": variant, "seed": seed}
    return row | {"relative_errors": [round(error.item(), 5) for error in errors]}


def layer_errors(model: HybridForCausalLM, mixers: list[torch.nn.Module], batch: Batch) -> list[torch.Tensor]:
    """Return each mixer's squared error over its attention output's mean square, on real tokens."""
    errors: list[torch.Tensor] = []
    real = batch.attention_mask.bool()

    def compare(bank: torch.nn.Module, args: tuple, kwargs: dict[str, Any], output: tuple) -> None:
        with torch.enable_grad() if training else torch.no_grad():
            inputs = {**kwargs, "hidden_states": kwargs["hidden_states"].detach()}
            mixed, _ = mixers[bank.layer](active_context(), bank.layer, **inputs)  # type: ignore[index]
            wanted = output[0].detach()[real]
            errors.append((mixed[real] - wanted).square().mean() / wanted.square().mean())

    training = torch.is_grad_enabled()
    handles = [bank.register_forward_hook(compare, with_kwargs=True) for bank in model.banks]
    with torch.no_grad():
        model.final_hidden_states(batch.input_ids, batch.attention_mask)
    for handle in handles:
        handle.remove()
    return errors


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", default=["mapped", "random"], choices=list(VARIANTS))
    parser.add_argument("--mixers", nargs="+", default=["gdn", "kda"])
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time, of one thread each")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "delta_start.json")
    arguments = parser.parse_args()
    rows: dict[str, list[dict[str, Any]]] = {"layers": [], "half": []}
    with ProcessPoolExecutor(arguments.parallel, mp_context=get_context("spawn")) as pool:
        futures = {
            pool.submit(function, mixer, variant, seed, arguments.steps): name
            for seed in arguments.seeds
            for variant in arguments.variants
            for mixer in arguments.mixers
            for name, function in (("half", run_half), ("layers", run_layers))
            if name == "half" or variant.startswith(("mapped", "random"))
        }
        for future in as_completed(futures):
            rows[futures[future]].append(future.result())
            print(futures[future], json.dumps(future.result()), flush=True)
    report = {
        "half": HALF,
        "steps": arguments.steps,
        "summary": summarise(rows),
        "rows": {
            name: sorted(values, key=lambda row: (row["mixer"], row["variant"], row["seed"]))
            for name, values in rows.items()
        },
        "device": device_name(),
        "versions": library_versions(),
        "code_revision": code_revision(),
    }
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report["summary"], indent=1))


def summarise(rows: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Return means over the seeds, by mixer and variant."""
    summary: dict[str, dict[str, Any]] = {}
    for name, values in rows.items():
        for mixer, variant in sorted({(row["mixer"], row["variant"]) for row in values}):
            mine = [row for row in values if (row["mixer"], row["variant"]) == (mixer, variant)]
            entry = summary.setdefault(f"{mixer} {variant}", {})
            if name == "half":
                for key in ("before_nats", "after_nats"):
                    entry[key] = statistics.mean(row[key] for row in mine)
            else:
                errors = zip(*(row["relative_errors"] for row in mine), strict=True)
                entry["relative_error_per_layer"] = [round(statistics.mean(layer), 4) for layer in errors]
    return summary


if __name__ == "__main__":
    main()
