"""How long evals take through our adapter and through lm-eval's own for transformers models, and do both say the same?

    python benchmarks/lm_eval_adapter.py [--device cuda]

Writes benchmarks/results/lm_eval_adapter.json (or _gpu). The model is all full attention: the same weights as a plain
transformers model for lm-eval's HFLM, as a hybrid for ours; one run, the two in turn, the least of the repeats of each.
Both get the same batch size, and the most that HFLM is known for: it, too, scores one-token choices of a context once.
Targets: log-likelihoods at least as fast, generation at least twice as fast.
"""

import argparse
import importlib.metadata
import json
import random
import time
from pathlib import Path

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from apriel_assets.bundled.tokenizer import TEACHER_DIR, build_tokenizer
from apriel_assets.evaluation.lm_eval_model import AprielLM
from apriel_assets.evaluation.tasks.problems import make_problems, task_names
from apriel_assets.evaluation.tasks.specs import TaskSpec
from apriel_assets.evaluation.tasks.vocabulary import WORDS
from apriel_assets.hybrid.model import HybridForCausalLM
from resources.provenance import code_revision, device_name, library_versions

# Llama-3.2-1B's sizes for a GPU, SmolLM2-135M's for a CPU; random weights, which take as long.
LARGE = {
    "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256, "max_position_embeddings": 2048,
}  # fmt: skip
SMALL = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "head_dim": 64, "vocab_size": 49152, "max_position_embeddings": 2048,
}  # fmt: skip


def asked(kind: str, pairs: list[tuple]) -> list[Instance]:
    return [Instance(kind, {}, pair, i, (kind, i, 1)) for i, pair in enumerate(pairs)]


def words(rng: random.Random, num: int) -> str:
    return " ".join(rng.choices(WORDS, k=num))


def suites(scale: int) -> dict[str, list[Instance]]:
    """Return requests as those of well-known tasks, in number and lengths."""
    rng = random.Random(0)
    examples = [words(rng, 320) for _ in range(2)]  # of two subjects
    letters, endings, last_words = [], [], []
    for i in range(8 * scale):
        question = f"{examples[i % 2]} {words(rng, rng.randint(30, 60))}"
        letters += [(question, f" {letter}") for letter in "bcdf"]
        context = words(rng, rng.randint(40, 80))
        endings += [(context, f" {words(rng, rng.randint(8, 24))}") for _ in range(4)]
        last_words += [(words(rng, rng.randint(50, 100)), f" {words(rng, 1)}") for _ in range(4)]
    texts = [(words(rng, rng.randint(200, 500)),) for _ in range(4 * scale)]
    return {
        "choices_by_letter_few_shot": asked("loglikelihood", letters),  # as MMLU
        "choices_by_text": asked("loglikelihood", endings),  # as HellaSwag
        "last_words": asked("loglikelihood", last_words),  # as LAMBADA
        "rolling": asked("loglikelihood_rolling", texts),  # as WikiText
    }


def problems_to_write(num: int) -> list[Instance]:
    """Return problems of all procedural tasks, whose answers differ in length as real ones do."""
    settings = {"until": ["?"], "max_gen_toks": 64, "do_sample": False}
    drawn = [p for name in task_names() for p in make_problems(TaskSpec(name=name), "test", num, seed=0)]
    random.Random(0).shuffle(drawn)
    return asked("generate_until", [(problem.prompt, settings) for problem in drawn])


def compare(
    name: str, model: torch.nn.Module, requests: list[Instance], batch_size: int | None, repeats: int
) -> dict:
    """Answer requests with both adapters in turn, and say how long each took and how far the answers differ.

    Without a batch size each has its default: 1 for HFLM, as many rows as keep the device busy for ours.
    """
    hybrid = HybridForCausalLM.from_teacher(model)  # type: ignore[arg-type]
    tokenizer = build_tokenizer()
    adapters = {
        "hflm": HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size or 1),  # type: ignore[arg-type]
        "ours": AprielLM(hybrid, tokenizer=tokenizer, batch_size=batch_size),
    }
    kind = requests[0].request_type
    seconds: dict[str, list[float]] = {"hflm": [], "ours": []}
    answers = {}
    for _ in range(repeats):
        for who, adapter in adapters.items():
            started = time.perf_counter()
            answers[who] = getattr(adapter, kind)(requests, disable_tqdm=True)
            if model.device.type == "cuda":
                torch.cuda.synchronize()
            seconds[who].append(time.perf_counter() - started)
    least = {who: min(taken) for who, taken in seconds.items()}
    row = {"suite": name, "requests": len(requests), "batch_size": batch_size, "seconds": least}
    row["times_as_fast"] = least["hflm"] / least["ours"]
    row |= difference(kind, answers["hflm"], answers["ours"])
    print(json.dumps(row), flush=True)
    return row


def difference(kind: str, theirs: list, ours: list) -> dict:
    if kind == "generate_until":
        return {"different_texts": sum(one != other for one, other in zip(theirs, ours, strict=True))}
    pick = (lambda own: own[0]) if kind == "loglikelihood" else float
    pairs = [(pick(one), pick(other)) for one, other in zip(theirs, ours, strict=True)]
    return {"largest_difference_nats": max(abs(one - other) for one, other in pairs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--scale", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.manual_seed(0)
    on_gpu = given.device == "cuda"
    sizes, dtype = (LARGE, torch.bfloat16) if on_gpu else (SMALL, torch.float32)
    model = LlamaForCausalLM(LlamaConfig(**sizes)).eval().to(given.device, dtype)
    bundled = AutoModelForCausalLM.from_pretrained(TEACHER_DIR).eval().to(given.device)
    rows = [
        compare(name, model, requests, given.batch_size, given.repeats)
        for name, requests in suites(given.scale).items()
    ]
    for size in (given.batch_size, 4 * given.batch_size):
        problems = problems_to_write(20 * given.scale)
        rows.append(compare("writing, bundled teacher", bundled, problems, size, given.repeats))
    rows.append(
        compare("writing, bundled teacher, default batch sizes", bundled, problems_to_write(8), None, 1)
    )
    if on_gpu:  # texts of random weights: none ends before it must
        rows.append(
            compare("writing", model, problems_to_write(4 * given.scale), given.batch_size, given.repeats)
        )
    content = {
        "rows": rows,
        "model": {**sizes, "dtype": str(dtype)},
        "device": device_name() if on_gpu else f"{torch.get_num_threads()} CPU cores",
        "versions": {**library_versions(), "lm_eval": importlib.metadata.version("lm_eval")},
        "code": code_revision(),
    }
    suffix = "_gpu" if on_gpu else ""
    path = given.out or Path(__file__).parent / "results" / f"lm_eval_adapter{suffix}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
