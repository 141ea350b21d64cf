"""Measure a teacher: accuracy per task, and how its attention is spread over its layers.

Leave-one-out (LOO) scores each layer alone: KL without its attention. The removal curves then take the
attention out of k layers at once, in LOO order, in reverse order and in random orders. A teacher is worth
converting if LOO order works for about half the layers and misleads beyond.

Every removal is a set of rows of one batch, so that a teacher of 50 layers is measured in a few generations.

    python benchmarks/measure_bundled_teacher.py [--model DIR] [--out FILE.json] [--removed 10 25 40]
"""

import argparse
import json
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import torch
import transformers
from torch.nn.functional import log_softmax
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from apriel_assets.bundled.tokenizer import TEACHER_DIR
from apriel_assets.evaluation.tasks.problems import Problem, make_problems, task_names, verify
from apriel_assets.evaluation.tasks.specs import Split, TaskSpec

MAX_NEW_TOKENS = 64


@contextmanager
def skippable_attention(model: PreTrainedModel) -> Iterator[set[int]]:
    """Within the block, the layers in the yielded set have no attention: their residual passes unchanged."""
    skipped: set[int] = set()
    attentions = [layer.self_attn for layer in model.model.layers]

    def replacement(index: int, forward: Any) -> Any:
        def maybe_skip(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if index not in skipped:
                return forward(hidden_states, *args, **kwargs)
            if kwargs.get("past_key_values") is not None:
                # The cache must grow all the same: its length is read from the first layer.
                forward(hidden_states, *args, **kwargs)
            return torch.zeros_like(hidden_states), None

        return maybe_skip

    for index, attention in enumerate(attentions):
        attention.forward = replacement(index, attention.forward)
    try:
        yield skipped
    finally:
        for attention in attentions:
            del attention.forward  # uncovers the class's own


@contextmanager
def attention_kept_by_row(model: PreTrainedModel, kept: torch.Tensor) -> Iterator[None]:
    """Within the block, row i of a batch has the attention of layer l if `kept[i, l]`, `[rows, layers]` bool."""

    def masking(index: int) -> Any:
        def mask(_module: Any, _inputs: Any, output: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            return output[0] * kept[:, index, None, None], *output[1:]

        return mask

    layers = enumerate(model.model.layers)
    handles = [layer.self_attn.register_forward_hook(masking(index)) for index, layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def draw_test_problems(num_per_task: int, *, split: Split, seed: int) -> list[Problem]:
    return [p for name in task_names() for p in make_problems(TaskSpec(name=name), split, num_per_task, seed)]


def measure_accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    *,
    sample: bool = False,
    batch_size: int = 512,
) -> dict[str, float]:
    """Return the share of problems right per task, and `mean` over tasks; greedy, or sampled at T=1."""
    (accuracy,) = measure_removals(model, tokenizer, problems, [()], sample=sample, batch_size=batch_size)
    return accuracy


@torch.no_grad()
def measure_removals(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    removals: Sequence[Sequence[int]],
    *,
    sample: bool = False,
    batch_size: int = 512,
) -> list[dict[str, float]]:
    """Return the accuracies, as `measure_accuracy` does, without the attention of each set of layers in turn."""
    kept = torch.ones(len(removals), model.config.num_hidden_layers, dtype=torch.bool)
    for row, layers in enumerate(removals):
        kept[row, list(layers)] = False
    sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    right: list[dict[str, list[bool]]] = [{} for _ in removals]
    pairs = [(row, problem) for problem in problems for row in range(len(removals))]
    pairs.sort(key=lambda pair: len(pair[1].prompt))
    for start in range(0, len(pairs), batch_size):
        batch = pairs[start : start + batch_size]
        inputs = tokenizer([p.prompt for _, p in batch], padding=True, return_tensors="pt").to(model.device)
        with attention_kept_by_row(model, kept[[row for row, _ in batch]].to(model.device)):
            generated = model.generate(
                **inputs, max_new_tokens=MAX_NEW_TOKENS, **(sampling if sample else {"do_sample": False})
            )
        texts = tokenizer.batch_decode(generated[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
        for (row, problem), text in zip(batch, texts, strict=True):
            right[row].setdefault(problem.task, []).append(verify(problem.task, problem, text))
    accuracies = [{task: sum(found) / len(found) for task, found in own.items()} for own in right]
    return [own | {"mean": sum(own.values()) / len(own)} for own in accuracies]


@torch.no_grad()
def leave_one_out_kl(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem], skipped: set[int]
) -> list[float]:
    """Return per layer KL(teacher without its attention || teacher), nats per token of the completions."""
    texts = [f"{problem.prompt}{problem.trace} {tokenizer.eos_token}" for problem in problems]
    inputs = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt").to(model.device)
    num_prompt = torch.tensor([len(tokenizer(p.prompt).input_ids) for p in problems], device=model.device)
    # Causal attention with the padding on the right needs no mask.
    position = torch.arange(inputs.input_ids.shape[1], device=model.device)
    # Logits at position t predict token t + 1: the last prompt position is the first that counts.
    counts = (position >= num_prompt[:, None] - 1) & (
        position < inputs.attention_mask.sum(1, keepdim=True) - 1
    )
    teacher = log_softmax(model(input_ids=inputs.input_ids).logits.float(), -1)
    divergences = []
    for layer in range(model.config.num_hidden_layers):
        skipped.add(layer)
        student = log_softmax(model(input_ids=inputs.input_ids).logits.float(), -1)
        skipped.remove(layer)
        divergences.append((student.exp() * (student - teacher)).sum(-1)[counts].mean().item())
    return divergences


def measure_spread(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    num_per_task: int,
    seed: int,
    random_orders: int = 3,
    num_removed: Sequence[int] | None = None,
    batch_size: int = 512,
) -> dict[str, Any]:
    """Return LOO KL and accuracy per layer, and mean accuracy after removing k layers in several orders.

    Args:
        num_removed: the k of the curves; None: all.
        batch_size: problems times removals that are generated at once.
    """
    num_layers = model.config.num_hidden_layers
    counts = list(num_removed or range(1, num_layers + 1))
    problems = draw_test_problems(num_per_task, split="validation", seed=seed)
    with skippable_attention(model) as skipped:
        kl = leave_one_out_kl(model, tokenizer, problems, skipped)
    by_kl = sorted(range(num_layers), key=kl.__getitem__)
    rng = Random(seed)
    orders = {"loo": by_kl, "loo_reversed": by_kl[::-1]}
    orders |= {f"random_{i}": rng.sample(by_kl, num_layers) for i in range(random_orders)}
    removals = [[layer] for layer in range(num_layers)]
    removals += [order[:k] for order in orders.values() for k in counts]
    found = measure_removals(model, tokenizer, problems, removals, batch_size=batch_size)
    rounded = [{task: round(value, 4) for task, value in accuracy.items()} for accuracy in found]
    curves = iter(rounded[num_layers:])
    return {
        "num_problems_per_task": num_per_task,
        "loo_kl_nats": [round(value, 5) for value in kl],
        "loo_accuracy": rounded[:num_layers],
        "removal": {
            name: {"order": order, "num_removed": counts, "accuracy": [next(curves) for _ in counts]}
            for name, order in orders.items()
        },
    }


def describe_machine(device: str) -> dict[str, str]:
    """Return the device and the versions that figures depend on."""
    name = torch.cuda.get_device_name() if device.startswith("cuda") else f"CPU ({platform.machine()})"
    return {"device": name, "torch": torch.__version__, "transformers": transformers.__version__}


def measure_teacher(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    num_test: int,
    num_spread: int,
    num_removed: Sequence[int] | None = None,
    batch_size: int = 512,
) -> dict[str, Any]:
    """Return every figure that describes the teacher, with the device and versions they were taken on."""
    model.eval()
    torch.manual_seed(seed)
    problems = draw_test_problems(num_test, split="test", seed=seed)
    spread = {"num_per_task": num_spread, "num_removed": num_removed}
    return {
        "measured_on": describe_machine(str(model.device)),
        "seed": seed,
        "num_parameters": model.num_parameters(),
        "num_test_problems_per_task": num_test,
        "greedy_accuracy": measure_accuracy(model, tokenizer, problems, batch_size=batch_size),
        "sampled_accuracy": measure_accuracy(model, tokenizer, problems, sample=True, batch_size=batch_size),
        "spread": measure_spread(model, tokenizer, seed=seed, batch_size=batch_size, **spread)
        if num_spread
        else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=str(TEACHER_DIR))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/bundled_teacher_measured.json"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--num-test", type=int, default=300, help="test problems per task")
    parser.add_argument(
        "--num-spread", type=int, default=40, help="problems per task and removal; 0 skips removal"
    )
    parser.add_argument(
        "--removed", type=int, nargs="+", help="layers removed in the curves; all if not given"
    )
    parser.add_argument("--measure-batch-size", type=int, default=512, help="rows generated at once")
    args = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(args.model).to(args.device)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    figures = measure_teacher(
        model,
        tokenizer,
        seed=args.seed,
        num_test=args.num_test,
        num_spread=args.num_spread,
        num_removed=args.removed,
        batch_size=args.measure_batch_size,
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps({key: figures[key] for key in ("greedy_accuracy", "sampled_accuracy")}, indent=1))


if __name__ == "__main__":
    main()
