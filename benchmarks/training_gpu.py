"""Training steps on one GPU: self-distillation against plain transformers, and a supernet against one placement.

    python -m benchmarks.training_gpu [--tiny] [--only supernet]

Writes benchmarks/results/training_gpu.json. The shape is Llama-3.2-1B's (16 layers, random weights, bf16 with fp32
copies), 32 sequences of 1024 tokens a step, a teacher of the same shape, AdamW. Targets on one H100: at least 35,000
tokens/s and 40% MFU; a supernet of four mixers at most 1.15 times the step of a single placement. Baseline in the same
run: transformers' modules under autocast with the dense formula of the loss. MFU counts matrix products (the student's
three times, the teacher's once, both heads) and causal attention, not what is computed again.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from apriel_assets.distillation.batches import Traces
from apriel_assets.distillation.config import DistillConfig, SupernetConfig
from apriel_assets.distillation.supernet import OwnTeacher, build_supernet
from apriel_assets.distillation.trainer import train
from apriel_assets.hybrid.model import HybridForCausalLM
from apriel_assets.hybrid.placement import Placement
from resources.provenance import code_revision, device_name, library_versions

TARGET = {"tokens_per_s": 35_000, "mfu": 0.40, "supernet_over_single": 1.15}
PEAK_FLOPS = 989e12  # dense bf16 of an H100 SXM, NVIDIA's data sheet
STEPS, WARM_UP = 12, 4
MIXERS = ("fa", "swa", "gdn", "kda")


def llama(tiny: bool) -> LlamaForCausalLM:
    sizes: dict[str, Any] = {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256,
    }  # fmt: skip
    if tiny:
        sizes |= {
            "hidden_size": 256,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
        }
        sizes |= {"num_key_value_heads": 2, "vocab_size": 512}
    config = LlamaConfig(**sizes, tie_word_embeddings=True, max_position_embeddings=4096)
    torch.set_default_device("cuda")
    model = LlamaForCausalLM(config).bfloat16()
    torch.set_default_device("cpu")
    return model


def random_traces(count: int, tokens: int, vocab_size: int) -> Traces:
    ids = torch.randint(vocab_size, (count, tokens), generator=torch.Generator().manual_seed(0)).tolist()
    return Traces(tuple((row[0],) for row in ids), tuple(tuple(row[1:]) for row in ids))


def ragged_traces(count: int, tokens: int, vocab_size: int) -> Traces:
    """Return traces whose lengths spread evenly from a sixteenth of `tokens` to all of them."""
    lengths = torch.randint(tokens // 16, tokens + 1, (count,), generator=torch.Generator().manual_seed(1))
    whole = random_traces(count, tokens, vocab_size)
    cut = [own[: length - 1] for own, length in zip(whole.completions, lengths.tolist(), strict=True)]
    return Traces(whole.prompts, tuple(cut))


def ragged(tiny: bool, config: DistillConfig, tokens: int) -> dict[str, Any]:
    """Time steps on traces of different lengths, padded and packed, drawn from few batches and from many."""
    teacher, found = llama(tiny).eval().requires_grad_(False), {}
    for batches in (1, 16):  # lengths are sorted within so many
        traces = ragged_traces(batches * config.batch_size, tokens, teacher.config.vocab_size)
        for packing in (False, True):
            own = replace(config, gradient_accumulation=4, packing=packing)
            name = f"{'packed' if packing else 'padded'}, lengths of {batches} batches"
            model = HybridForCausalLM.from_teacher(llama(tiny), copy=False)
            found[name] = attempt(name, lambda m=model, t=traces, o=own: recorded(m, t, o, teacher))
    return found


def recorded(model: Any, traces: Traces, config: DistillConfig, teacher: Any) -> dict[str, float]:
    """Return medians of the trainer's own rows: steps have different numbers of tokens here."""
    torch.cuda.reset_peak_memory_stats()
    rows = train(model, traces, config, seed=0, teacher=teacher).to_pylist()[WARM_UP:]
    found = {
        name: statistics.median(row[name] or 0 for row in rows)
        for name in ("tokens_per_s", "flops_per_s", "mfu")
    }
    return found | {"peak_gib": torch.cuda.max_memory_allocated() / 2**30}


def flops_per_token(model: LlamaForCausalLM, tokens: int) -> float:
    """Return the FLOP of a self-distillation step per token: student forward and backward, teacher forward."""
    config = model.config
    products = sum(p.numel() for p in model.model.layers.parameters() if p.ndim == 2)
    products += config.vocab_size * config.hidden_size
    inner = config.hidden_size  # of all heads together
    attention = config.num_hidden_layers * 4 * inner * tokens / 2  # scores and values, the causal half
    return 4 * (2 * products + attention)


def figures(seconds: list[float], tokens: int, flops: float) -> dict[str, float]:
    middle = statistics.median(seconds)
    found = {
        "step_seconds": middle,
        "step_seconds_low": min(seconds),
        "step_seconds_high": max(seconds),
        "tokens_per_s": tokens / middle,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
    }
    return found | {"mfu": tokens * flops / middle / PEAK_FLOPS} if flops else found


def ours(model: Any, traces: Traces, config: DistillConfig, flops: float, **others: Any) -> dict[str, float]:
    """Return the figures of `train` itself, all its bookkeeping included."""
    tokens = sum(traces.lengths()[: config.batch_size])
    ends: list[float] = []

    def note(*_: Any, **figures: float) -> None:
        torch.cuda.synchronize()
        ends.append(time.perf_counter())

    torch.cuda.reset_peak_memory_stats()
    train(model, traces, config, seed=0, progress=note, **others)
    return figures([b - a for a, b in zip(ends[WARM_UP:], ends[WARM_UP + 1 :], strict=False)], tokens, flops)


def plain(
    teacher: LlamaForCausalLM, student: LlamaForCausalLM, traces: Traces, rows: int, micro: int, flops: float
):
    """Return the figures of transformers as it comes: autocast over fp32 weights, dense loss, fused AdamW."""
    student = student.float().train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5, fused=True)

    def loss_of(ids: Tensor) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            with torch.no_grad():
                log_p = teacher(ids).logits.float().log_softmax(-1)
            log_q = student(ids).logits.float().log_softmax(-1)
        return (log_q.exp() * (log_q - log_p)).sum(-1).mean()

    seconds = []
    torch.cuda.reset_peak_memory_stats()
    for step in range(WARM_UP + 4):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for start in range(0, rows, micro):
            chosen = range(start, start + micro)
            ids = torch.tensor([traces.prompts[i] + traces.completions[i] for i in chosen], device="cuda")
            (loss_of(ids) * micro / rows).backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        torch.cuda.synchronize()
        if step >= WARM_UP:
            seconds.append(time.perf_counter() - began)
    return figures(seconds, sum(traces.lengths()[:rows]), flops)


def self_distillation(tiny: bool, config: DistillConfig, tokens: int) -> dict[str, Any]:
    teacher, found = llama(tiny).eval().requires_grad_(False), {}
    traces = random_traces(4 * config.batch_size, tokens, teacher.config.vocab_size)
    flops = flops_per_token(teacher, tokens)
    cases: dict[str, Callable[[], dict[str, float]]] = {
        "plain transformers, 2 rows": lambda: plain(
            teacher, llama(tiny), traces, config.batch_size, 2, flops
        ),
        "plain transformers, 4 rows": lambda: plain(
            teacher, llama(tiny), traces, config.batch_size, 4, flops
        ),
    }
    for parts in (4, 8):
        for compiled in (False, True):
            own = replace(config, gradient_accumulation=parts, compile=compiled)
            name = f"ours, {config.batch_size // parts} rows{', compiled' if compiled else ''}"
            cases[name] = lambda own=own: ours(llama(tiny), traces, own, flops, teacher=teacher)
    own = replace(config, gradient_accumulation=2, activation_checkpointing=True, compile=True)
    cases["ours, 16 rows, compiled, checkpointed"] = lambda: ours(
        llama(tiny), traces, own, flops, teacher=teacher
    )
    for name, case in cases.items():
        found[name] = attempt(name, case)
    return found


def attempt(name: str, case: Callable[[], dict[str, float]]) -> dict[str, Any]:
    torch.cuda.empty_cache()
    try:
        result: dict[str, Any] = case()
    except Exception as error:  # one case that does not fit must not cost the others
        result = {"failed": f"{type(error).__name__}: {error}"[:500]}
    print(name, result, flush=True)
    return result


def supernet(tiny: bool, config: DistillConfig, tokens: int) -> dict[str, Any]:
    """Time steps of the same supernet on one placement with as many of each mixer, and on sampled ones."""
    model: HybridForCausalLM = build_supernet(llama(tiny), [MIXERS] * (4 if tiny else 16), copy=False)
    traces = random_traces(4 * config.batch_size, tokens, model.config.backbone.vocab_size)
    fixed: Placement = MIXERS * (model.num_layers // 4)
    settings = {
        own: getattr(config, own) for own in ("batch_size", "gradient_accumulation", "optimizer", "compile")
    }
    own = SupernetConfig(steps=2 * STEPS, trains="mixers", **settings)

    def balanced(step: int) -> Placement:
        """Another order at each step, so that the work is the same: only what is in it changes."""
        order = torch.randperm(model.num_layers, generator=torch.Generator().manual_seed(step))
        return tuple(fixed[i] for i in order.tolist())

    found: dict[str, Any] = {}
    for name, placements in (("single placement", lambda step: fixed), ("supernet", balanced)):
        teacher = OwnTeacher(model)
        found[name] = attempt(
            name, lambda p=placements, t=teacher: ours(model, traces, own, 0.0, teacher=t, placements=p)
        )
    weights = sum(p.numel() * p.element_size() for bank in model.banks for p in bank.parameters())
    return found | {"mixer_weights_gib": weights / 2**30}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try the script")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/training_gpu.json"))
    parser.add_argument(
        "--only", choices=("self_distillation", "supernet", "ragged"), help="measure this, keep the other"
    )
    arguments = parser.parse_args()
    tokens = 128 if arguments.tiny else 1024
    config = DistillConfig(steps=STEPS, batch_size=32, optimizer="adamw", learning_rate=1e-5)
    results = {
        "device": device_name(),
        "versions": library_versions(),
        "target": TARGET,
        "peak_flops": PEAK_FLOPS,
        "sequences": 32,
        "tokens": tokens,
    }
    if arguments.only and arguments.out.exists():
        results = json.loads(arguments.out.read_text()) | results
    parts = {
        "self_distillation": (self_distillation, config),
        "supernet": (supernet, replace(config, gradient_accumulation=4, compile=True)),
        "ragged": (ragged, config),
    }
    for name, (measure, own) in parts.items():
        if arguments.only in (None, name):
            results[name] = measure(arguments.tiny, own, tokens)
            results.setdefault("commits", {})[name] = code_revision()
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
