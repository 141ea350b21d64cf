"""Reverse KL forward and backward on one GPU: time and memory beyond the inputs, ours and others' in the same run.

    python benchmarks/loss_gpu.py

Writes benchmarks/results/loss_gpu.json. Targets on one H100 at 8192 tokens x 4096 x 128256, bf16, two heads: at most
65 ms and 2.5 GiB. Baselines: the dense formula, liger-kernel's fused JSD at beta 1 (where it is installed), and the six
matrix products alone. Also the error of the gradients against fp32, and how far the loss from a teacher's k largest
log-probs stays below the full one.
"""

import argparse
import importlib.metadata
import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from apriel_assets.distillation.losses import TeacherHead, token_loss
from apriel_assets.distillation.top_k import TopKTeacher
from resources.provenance import code_revision, device_name, library_versions

TARGET = {"milliseconds": 65.0, "peak_gib": 2.5}
TOP_K = (8, 32, 128, 512)
SPREADS = (4.0, 6.0, 10.0)  # of logits: a teacher that hesitates, one that is fairly sure, one that is sure


class Case:
    """Hidden states and heads of a student and a teacher, bf16."""

    def __init__(
        self, tokens: int, hidden_size: int, vocab_size: int, spread: float = 2.0, noise: float = 0.5
    ) -> None:
        """`spread` is the standard deviation of the teacher's logits; the student's differ by about `noise` of it."""
        generator = torch.Generator("cuda").manual_seed(0)
        like: dict[str, Any] = {"device": "cuda", "dtype": torch.bfloat16}

        def normal(*shape: int) -> Tensor:
            return torch.empty(*shape, **like).normal_(generator=generator)

        self.head, teacher_head = (nn.Linear(hidden_size, vocab_size, bias=False, **like) for _ in range(2))
        unit = spread / hidden_size**0.5
        teacher_head.weight.data = normal(vocab_size, hidden_size).mul_(unit)
        noisy = normal(vocab_size, hidden_size).mul_(noise * unit)
        self.head.weight.data = noisy.add_(teacher_head.weight)
        states = normal(tokens, hidden_size)
        self.teacher = TeacherHead(states, teacher_head.requires_grad_(False))
        self.hidden = (states + 0.3 * noise * normal(tokens, hidden_size)).requires_grad_()
        self.mask = torch.ones(tokens, dtype=torch.bool, device="cuda")

    def forget(self) -> None:
        self.hidden.grad = self.head.weight.grad = None


def ours(case: Case, chunk_tokens: int | None = None) -> Tensor:
    return token_loss(case.hidden, case.head, case.mask, teacher=case.teacher, chunk_tokens=chunk_tokens)


def dense(case: Case) -> Tensor:
    """The plain formula, as autograd differentiates it."""
    log_q = case.head(case.hidden).float().log_softmax(-1)
    with torch.no_grad():
        log_p = case.teacher.head(case.teacher.hidden_states).float().log_softmax(-1)
    return (log_q.exp() * (log_q - log_p)).sum(-1).mean()


def liger(case: Case) -> Tensor:
    from liger_kernel.transformers.fused_linear_jsd import (  # pyright: ignore[reportMissingImports]
        LigerFusedLinearJSD,
    )

    labels = torch.zeros(len(case.hidden), dtype=torch.long, device="cuda")
    loss = LigerFusedLinearJSD(jsd_beta=1.0)
    return loss(case.hidden, case.head.weight, case.teacher.hidden_states, case.teacher.head.weight, labels)


def products(case: Case) -> None:
    """What no loss can do without: both heads forwards, the student's backwards, a chunk at a time."""
    weight, teacher = case.head.weight.detach(), case.teacher
    gradient = torch.zeros_like(weight)
    for start in range(0, len(case.hidden), 2048):
        states = case.hidden.detach()[start : start + 2048]
        logits = F.linear(states, weight)
        F.linear(teacher.hidden_states[start : start + 2048], teacher.head.weight)
        logits @ weight
        gradient.addmm_(logits.T, states)


def measure(work: Callable[[], Any], forget: Callable[[], None], repeats: int) -> dict[str, float]:
    """Return the median milliseconds and the peak GiB beyond what was there before."""
    milliseconds = []
    for repeat in range(repeats + 2):
        forget()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        if repeat == 1:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        if repeat == 1:
            peak = torch.cuda.max_memory_allocated() - before
        if repeat > 1:
            milliseconds.append(start.elapsed_time(end))
    forget()
    torch.cuda.empty_cache()
    return {
        "milliseconds": statistics.median(milliseconds),
        "milliseconds_low": min(milliseconds),
        "milliseconds_high": max(milliseconds),
        "peak_gib": peak / 2**30,
    }


def gradient_errors(case: Case) -> dict[str, float]:
    """Return the relative errors of ours and of the dense formula's gradients against fp32's, few tokens at a time."""
    exact = Case.__new__(Case)
    exact.hidden = case.hidden.detach().float().requires_grad_()
    exact.head = nn.Linear(*reversed(case.head.weight.shape), bias=False, device="cuda")
    exact.head.weight.data = case.head.weight.detach().float()
    teacher_head = nn.Linear(*reversed(case.teacher.head.weight.shape), bias=False, device="cuda")
    teacher_head.weight.data = case.teacher.head.weight.float()
    exact.teacher = TeacherHead(case.teacher.hidden_states.float(), teacher_head.requires_grad_(False))
    exact.mask = case.mask
    ours(exact).backward()
    errors = {}
    for name, work in (("ours", ours), ("ours_16_chunks", partial(ours, chunk_tokens=256)), ("dense", dense)):
        case.forget()
        work(case).backward()
        for what, mine, theirs in (
            ("hidden", case.hidden, exact.hidden),
            ("head", case.head.weight, exact.head.weight),
        ):
            assert mine.grad is not None
            assert theirs.grad is not None
            errors[f"{name}_{what}"] = ((mine.grad.float() - theirs.grad).norm() / theirs.grad.norm()).item()
    case.forget()
    return errors


def top_k_bias(case: Case) -> list[dict[str, float]]:
    """Return, for several k, the loss from stored log-probs beside the full one."""
    with torch.no_grad():
        full = ours(case).item()
        log_p = case.teacher.head(case.teacher.hidden_states).float().log_softmax(-1)
        rows = []
        for k in TOP_K:
            top = log_p.topk(k)
            stored = TopKTeacher(top.indices.int()[None], top.values[None])
            loss = token_loss(case.hidden[None], case.head, case.mask[None], teacher=stored).item()
            rows.append(
                {
                    "k": k,
                    "teacher_mass": top.values.exp().sum(-1).mean().item(),
                    "loss_nats": loss,
                    "full_loss_nats": full,
                    "bias_share": loss / full - 1,
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--hidden-size", type=int, default=4096)
    parser.add_argument("--vocab-size", type=int, default=128_256)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--code-revision", help="commit, where the checkout does not say")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "loss_gpu.json")
    arguments = parser.parse_args()
    sizes = (arguments.tokens, arguments.hidden_size, arguments.vocab_size)
    report: dict[str, Any] = {
        "shape": {name: getattr(arguments, name) for name in ("tokens", "hidden_size", "vocab_size")},
        "target": TARGET,
    }
    for name, work in {"ours": ours, "dense": dense, "liger_jsd": liger}.items():
        case = Case(*sizes)
        try:
            report[name] = measure(
                lambda work=work, case=case: work(case).backward(), case.forget, arguments.repeats
            )
        except ImportError:
            report[name] = "not installed"
        if name == "ours":
            report["matrix_products_alone"] = measure(
                lambda case=case: products(case), case.forget, arguments.repeats
            )
        del case
    shape = (4096, 1024, 32_768)
    report["gradient_error_against_fp32"] = {"shape": shape, **gradient_errors(Case(*shape))}
    report["top_k"] = [
        {"spread_of_logits": spread, **row}
        for spread in SPREADS
        for row in top_k_bias(Case(*shape, spread, 0.1))
    ]
    versions = {name: importlib.metadata.version(name) for name in ("triton",)}
    report |= {
        "device": device_name(),
        "versions": library_versions() | versions,
        "code_revision": arguments.code_revision or code_revision(),
    }
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
