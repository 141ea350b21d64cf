"""Tiny random hybrids, and problems that the bundled tokenizer can read."""

import torch

from apriel_assets.distillation.batches import Traces
from apriel_assets.evaluation.tasks.problems import Problem, make_problems
from apriel_assets.evaluation.tasks.specs import TaskSpec
from apriel_assets.hybrid.model import HybridForCausalLM
from tests.hybrid.tiny_teachers import VOCAB_SIZE, tiny_teacher

TASKS = (TaskSpec(name="recall"), TaskSpec(name="arithmetic"))


def make_hybrid(kind: str = "llama", *, noise: float = 0.0, **sizes) -> HybridForCausalLM:
    """A random hybrid, all full attention; `noise` is added to its weights."""
    model = HybridForCausalLM.from_teacher(tiny_teacher(kind, **sizes), copy=False).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=noise)
    return model


def make_problem_set(num: int = 6) -> list[Problem]:
    """The same number of problems of each task."""
    return [problem for spec in TASKS for problem in make_problems(spec, "validation", num // 2, 0)]


def make_random_traces(num: int = 16, vocab_size: int = VOCAB_SIZE) -> Traces:
    """Random tokens of ragged lengths."""
    generator = torch.Generator().manual_seed(0)

    def draw(longest: int) -> tuple[int, ...]:
        length = int(torch.randint(2, longest, (1,), generator=generator))
        return tuple(torch.randint(3, vocab_size, (length,), generator=generator).tolist())

    return Traces(tuple((1, *draw(8)) for _ in range(num)), tuple((*draw(6), 2) for _ in range(num)))
