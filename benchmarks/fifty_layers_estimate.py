"""What `h100-50-layers` and `h100-smollm2` should take on one H100: operations counted, and what one took there.

    python benchmarks/fifty_layers_estimate.py [--counted]

Models of many thin layers are bound by the launches of their operations, whose number depends neither on the width nor
on the device. So operations are counted here, on a CPU, and priced by a run that was timed on an H100: the bundled
teacher's training (`results/bundled_teacher.json`: 4030 steps in 295 s, its evaluations among them). That is 35
microseconds an operation, about what the model's own forward took on such a machine (docs/gpu-speed.md: 133 ms for a
decode step of 50 layers, by the host). Mamba is counted as mamba-ssm's kernel, GDN and KDA in plain torch, which is
more launches than theirs. What is no launch is added as it was measured: `MEASURED`. Writes
results/fifty_layers_estimate.json; docs/running-fifty-layers.md shows it. `--counted` takes the operations from there.
"""

import json
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from teacher_step import loss_backward
from torch.utils._python_dispatch import TorchDispatchMode
from train_bundled_teacher import build_model, build_optimizers

from apriel_assets.bundled.tokenizer import build_tokenizer
from apriel_assets.definitions import plan_assets
from apriel_assets.distillation.batches import Traces
from apriel_assets.distillation.config import DistillConfig
from apriel_assets.distillation.supernet import build_supernet, train_supernet
from apriel_assets.distillation.trainer import train
from apriel_assets.hybrid.mixers.mamba import mixer as mamba_mixer
from apriel_assets.hybrid.mixers.mamba.scan import selective_scan_mamba_ssm
from apriel_assets.hybrid.model import HybridForCausalLM
from apriel_assets.recipe import Recipe, load_recipe
from apriel_assets.scoring.config import ProbeConfig
from apriel_assets.scoring.probes import probe_layers

RESULTS = Path(__file__).parent / "results"
TRACE_TOKENS = 77  # of the longest trace, docs/tasks.md
MEASURED = {
    "start of a call": 20.0,  # imports of torch, transformers, Dagster: seconds here, more on a slow disk
    "asset or partition": 0.6,  # Dagster and planning, benchmarks/quickstart_time.py
    "tuning of kernels": 240.0,  # two to four minutes the first time, docs/gpu-speed.md
    "throughput of a model": 5.0,  # docs/log.md, 2026-11-24: 3.7 to 4.7 s
    "search of a budget, beam": 5.0,  # 50 layers, 96 candidates, without scoring: 1.8 to 4.7 s on one CPU core
    "search of a budget, surrogate": 14.0,  # the same: 9.7 to 13.8 s
    "decode step": 0.004,  # of the runner, 50 layers: 13 ms at 15B sizes are 12 ms of weights, docs/gpu-speed.md
}
NUM_CALLS = 3


class Counting(TorchDispatchMode):
    """Counts the operations that launch something: all but views."""

    def __init__(self) -> None:
        super().__init__()
        self.num = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num += not (func.is_view or func.name().startswith("aten::detach"))
        return func(*args, **(kwargs or {}))


def operations(work: Callable[[], Any]) -> int:
    """Return how many operations some work is."""
    with Counting() as counting:
        work()
    return counting.num


def per_step(work: Callable[[int], Any]) -> float:
    """Return the operations of one more step of `work(steps)`."""
    return float(operations(lambda: work(2)) - operations(lambda: work(1)))


def count_mamba_as_kernel() -> None:
    """Let Mamba's scan be a few operations that have every operand in them, in the place of mamba-ssm's one."""
    interface = types.ModuleType("mamba_ssm.ops.selective_scan_interface")

    def scan(x: Any, dt: Any, A: Any, B: Any, C: Any, *, return_last_state: bool) -> tuple[Any, Any]:
        return x * dt + (B * C).sum() * A.sum(), torch.zeros(())

    vars(interface)["selective_scan_fn"] = scan
    sys.modules |= {name: types.ModuleType(name) for name in ("mamba_ssm", "mamba_ssm.ops")}
    sys.modules[interface.__name__] = interface
    vars(mamba_mixer)["choose_scan"] = lambda *_args, **_options: selective_scan_mamba_ssm


def teacher_step(num_layers: int) -> int:
    """Return the operations of one training step of a teacher."""
    model = build_model(build_tokenizer(), num_layers=num_layers, hidden_size=32)
    optimizers = build_optimizers(model, muon_lr=0.01, adamw_lr=0.001)
    ids = torch.randint(80, (2, TRACE_TOKENS))

    def step() -> None:
        loss_backward(model, ids, torch.ones_like(ids, dtype=torch.bool))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    step()  # optimisers make their state
    return operations(step)


def counted(num_layers: int, num_mamba: int) -> dict[str, float]:
    """Return the operations of one unit of each stage's work, `num_mamba` layers replaced.

    They are linear in the layers, so a tenth and a fifth of them are counted.
    """
    few, more = (_counted(num_layers // part, num_mamba // part) for part in (10, 5))
    return {name: few[name] + 9 * (more[name] - few[name]) for name in few}


def _counted(num_layers: int, num_mamba: int) -> dict[str, float]:
    llama = build_model(build_tokenizer(), num_layers=num_layers, hidden_size=32).to(torch.bfloat16).eval()
    teacher = HybridForCausalLM.from_teacher(llama, copy=False)
    traces = Traces(
        prompts=(tuple(range(5, 35)),) * 8, completions=(tuple(range(5, 5 + TRACE_TOKENS - 30)),) * 8
    )

    def distil(steps: int) -> None:
        student = HybridForCausalLM.from_teacher(llama, copy=True)
        student.convert(range(num_mamba), "mamba", seed=0)
        train(
            student, traces, DistillConfig(steps=steps, batch_size=2), teacher=teacher, model_name="", seed=0
        )

    def share(steps: int, align_steps: int) -> None:
        model = build_supernet(llama, [("fa", "swa", "gdn", "kda")] * num_layers)
        config = load_recipe("h100-50-layers").supernet.train
        own = replace(
            config, steps=steps, align_steps=align_steps, batch_size=2, probe_every=1000, probe_traces=1
        )
        train_supernet(model, traces, own, validation=traces, seed=0)

    def probe(steps: int) -> None:
        student = HybridForCausalLM.from_teacher(llama, copy=True)
        candidate = [3 * num_layers // 4]
        probe_layers(
            student, teacher, candidate, "mamba", traces, ProbeConfig(batch_size=2), steps=steps, step=""
        )

    with torch.no_grad():
        forward = operations(lambda: teacher(input_ids=torch.randint(80, (2, TRACE_TOKENS)), use_cache=False))
    return {
        "teacher step": float(teacher_step(num_layers)),
        "forward": float(forward),
        "distillation step": per_step(distil),
        "probe step": per_step(probe),
        "supernet step": per_step(partial(share, align_steps=0)),
        "alignment step": per_step(lambda steps: share(1, steps)),
    }


def stages(recipe: Recipe, ops: dict[str, float], s_per_op: float, num_layers: int) -> dict[str, float]:
    """Return the seconds of every stage of a recipe, without what the driver does before it."""
    h1, search, supernet = recipe.h1, recipe.search, recipe.supernet
    cost = {name: num * s_per_op for name, num in ops.items()}
    plans = plan_assets(recipe)
    num_builds = sum(len(plan.partition_keys) for plan in plans.values())
    num_models = sum(key.startswith("evals/") for key in plans)
    num_budgets = len(search.budgets)
    decode = MEASURED["decode step"]
    step = cost["distillation step"]
    candidates = sum(num_layers - before for before in h1.schedule[:-1])
    h1_steps = sum(h1.distill_of(k).steps for k in h1.schedule) + (h1.sft.train.steps if h1.sft else 0)
    generation = search.accuracy.max_new_tokens * decode + 4 * cost["forward"]
    evals = recipe.evals.accuracy.max_new_tokens * decode + 6 * cost["forward"]
    score = 0.6 * cost["forward"] + 0.02  # shared prefixes; bootstrap on the CPU
    found = {
        "layer scores": num_layers / 2 * cost["forward"],
        "progressive conversion and SFT": h1_steps * step,
        "probes": candidates * h1.probe_steps * cost["probe step"],
        "supernet": supernet.train.steps * cost["supernet step"]
        + supernet.train.align_steps * cost["alignment step"],
        "tuning of kernels": MEASURED["tuning of kernels"],
        "costs and their check": (3 + 2 * recipe.costs.check_placements) * 5 * recipe.costs.repeats * cost["forward"],
        "search": num_budgets * (search.max_candidates * score + MEASURED["search of a budget, beam"]),
        "finalists": num_budgets * search.finalists * generation,
        "audit": search.audit.placements * (generation + score),
        "further training": recipe.release.sft.steps * step if recipe.release.sft else 0.0,
        "evals": num_models * len(recipe.evals.tasks) * evals,
        "throughput": num_models * MEASURED["throughput of a model"],
        f"Dagster, {num_builds} assets and partitions": num_builds * MEASURED["asset or partition"],
        f"start of {NUM_CALLS} calls": NUM_CALLS * MEASURED["start of a call"],
    }  # fmt: skip
    return {name: round(seconds, 1) for name, seconds in found.items()}


def main() -> None:
    """Count, price, and write the estimate."""
    torch.set_num_threads(1)
    count_mamba_as_kernel()
    timed = json.loads((RESULTS / "bundled_teacher.json").read_text())
    seconds_per_step = timed["arguments"]["seconds"] / timed["steps"]
    s_per_op = seconds_per_step / teacher_step(timed["arguments"]["layers"])
    out = RESULTS / "fifty_layers_estimate.json"
    before = json.loads(out.read_text()) if "--counted" in sys.argv[1:] else {}
    content: dict[str, Any] = {"us_per_operation": round(1e6 * s_per_op, 2), "measured": MEASURED}
    for name, num_layers in (("h100-50-layers", 50), ("h100-smollm2", 30)):
        recipe = load_recipe(name)
        ops = before[name]["operations"] if before else counted(num_layers, recipe.h1.schedule[-1])
        found = stages(recipe, ops, s_per_op, num_layers)
        if name == "h100-50-layers":
            # As `h100_50_layers.py` does it: 250 s of training, eight generations of up to 64 tokens by the model's own
            # forward, and the surrogate's search, whose candidates are mostly scored already.
            found["teacher, and how it came out"] = round(250 + 8 * 64 * ops["forward"] * s_per_op, 1)
            budgets, own = len(recipe.search.budgets), MEASURED["search of a budget, surrogate"]
            found["search and finalists by surrogate"] = round(
                budgets * own + found["search"] + found["finalists"], 1
            )
        content[name] = {"operations": ops, "seconds": found, "minutes": round(sum(found.values()) / 60, 1)}
        print(name, json.dumps(content[name], indent=1), flush=True)
    out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
