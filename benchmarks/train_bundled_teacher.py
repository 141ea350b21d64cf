"""Train the teacher that ships with the package, and record how it went.

A small model trained plainly keeps its attention in the first few layers, so replacing the others costs
nothing and no experiment on it means anything. Here the attention is spread: learn first, then skip whole
attention blocks at random (per layer and step, ramped up to `--skip`) and go on. Every fourth step runs
whole, so that the complete model stays calibrated.

    python benchmarks/train_bundled_teacher.py --seconds 400 --device cuda
    python benchmarks/train_bundled_teacher.py --seconds 3600 --batch-size 64 --workers 1     # CPU: 2 cores

A deep teacher's step is hundreds of small kernels, and launching them takes longer than they run: with `--graph` a
batch's forward and backward pass is one CUDA graph per padded length.

The budget is wall-clock and the difficulty follows the loss, so a second run gives a like teacher, not the
same bytes.
"""

import argparse
import json
import math
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from measure_bundled_teacher import (
    describe_machine,
    draw_test_problems,
    measure_accuracy,
    measure_teacher,
)
from teacher_step import BatchStep, GraphedStep
from teacher_traces import TASKS, Curriculum, TraceStream, item_mask
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from apriel_assets.bundled.tokenizer import TEACHER_DIR, build_tokenizer
from apriel_assets.distillation.optimizers import StackedMuon

WARMUP_STEPS = 50
SKIP_STARTS, SKIP_FULL = 0.45, 0.65  # fractions of the budget between which the skip is ramped
DECAY_STARTS = 0.7
WHOLE_STEP_EVERY = 4


def build_model(tokenizer: PreTrainedTokenizerBase, *, num_layers: int, hidden_size: int) -> LlamaForCausalLM:
    """Return an untrained teacher: 4 query heads on 2 key/value heads of 32, SwiGLU of twice the width."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
        max_position_embeddings=512,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    for name, weight in model.named_parameters():
        if weight.ndim == 2 and "embed" not in name:
            torch.nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.data /= math.sqrt(2 * num_layers)
            elif name == "lm_head.weight":
                weight.data *= 0.1
    return model


def build_optimizers(
    model: LlamaForCausalLM, *, muon_lr: float, adamw_lr: float
) -> list[torch.optim.Optimizer]:
    """Return Muon for the layers' matrices and AdamW for embeddings, head and norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or ".layers." not in name]
    return [
        StackedMuon(matrices, lr=muon_lr, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(others, lr=adamw_lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def learning_rate_factor(step: int, fraction: float) -> float:
    """Return the share of the peak learning rate: a short warm-up, a plateau, a linear decay."""
    return min(1.0, (step + 1) / WARMUP_STEPS, max(0.02, (1 - fraction) / (1 - DECAY_STARTS)))


def draw_skipped(rng: random.Random, num_layers: int, step: int, fraction: float, most: float) -> set[int]:
    """Return the layers whose attention this step leaves out."""
    if step % WHOLE_STEP_EVERY == 0:
        return set()
    rate = most * min(1.0, max(0.0, (fraction - SKIP_STARTS) / (SKIP_FULL - SKIP_STARTS)))
    return {layer for layer in range(num_layers) if rng.random() < rate}


class TeacherTraining:
    """One training run: model, optimisers, data and the curve so far."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        self.args = args
        self.tokenizer = build_tokenizer()
        self.curriculum = Curriculum()
        self.batches = self._open_batches()
        model = build_model(self.tokenizer, num_layers=args.layers, hidden_size=args.hidden_size)
        self.model = model.to(args.device)
        self.optimizers = build_optimizers(self.model, muon_lr=args.muon_lr, adamw_lr=args.adamw_lr)
        self.peaks = [o.param_groups[0]["lr"] for o in self.optimizers]
        self.items = item_mask(self.tokenizer.get_vocab()).to(args.device)
        self.batch_step = (GraphedStep if args.graph else BatchStep)(self.model)
        self.skip_rng = random.Random(args.seed)
        self.curve: list[dict[str, Any]] = []
        self.steps = self.tokens = 0

    def _open_batches(self) -> Iterator[Any]:
        """Start the data workers (before the device is touched: they are forked)."""
        vocabulary, args = self.tokenizer.get_vocab(), self.args
        stream = TraceStream(vocabulary, self.curriculum, batch_size=args.batch_size, seed=args.seed)
        prefetch = 4 if args.workers else None
        return iter(DataLoader(stream, batch_size=None, num_workers=args.workers, prefetch_factor=prefetch))

    def run(self) -> None:
        """Train until the budget is spent; evaluate and save `--evaluations` times on the way."""
        started, evaluated = time.monotonic(), 0
        while (fraction := (time.monotonic() - started) / self.args.seconds) < 1:
            skipped = draw_skipped(self.skip_rng, self.args.layers, self.steps, fraction, self.args.skip)
            loss_nats = self._step(fraction, skipped)
            if fraction * self.args.evaluations >= evaluated + 1:
                evaluated += 1
                self._evaluate(time.monotonic() - started, loss_nats.item())
                self.save()

    def _step(self, fraction: float, skipped: set[int]) -> torch.Tensor:
        ids, mask, task = next(self.batches)
        ids, mask = ids.to(self.args.device, non_blocking=True), mask.to(self.args.device, non_blocking=True)
        losses = self.batch_step(ids, mask, skipped)
        targets, counts = ids[:, 1:], mask[:, 1:]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        factor = learning_rate_factor(self.steps, fraction)
        for optimizer, peak in zip(self.optimizers, self.peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * factor
            optimizer.step()
        self.batch_step.forget_gradients()
        if self.steps % 5 == 0:
            items = counts & self.items[targets]
            per_problem = (losses * items).sum(1) / items.sum(1).clamp(min=1)
            self.curriculum.update(per_problem.cpu(), task, ramp=0.02 if fraction > 0.35 else 0.0)
        self.steps += 1
        self.tokens += ids.numel()
        return losses.sum() / counts.sum()

    def _evaluate(self, seconds: float, loss_nats: float) -> None:
        self.model.eval()
        problems = draw_test_problems(self.args.num_validation, split="validation", seed=0)
        accuracy = measure_accuracy(self.model, self.tokenizer, problems)
        self.model.train()
        row = {"seconds": round(seconds, 1), "steps": self.steps, "tokens": self.tokens}
        row["loss_nats"] = round(loss_nats, 4)
        row["difficulty"] = dict(
            zip(TASKS, (round(d, 2) for d in self.curriculum.difficulty.tolist()), strict=True)
        )
        row["item_loss_nats"] = dict(
            zip(TASKS, (round(d, 4) for d in self.curriculum.loss_nats.tolist()), strict=True)
        )
        row["accuracy"] = {task: round(value, 3) for task, value in accuracy.items()}
        self.curve.append(row)
        print(json.dumps(row), flush=True)

    def save(self) -> None:
        """Write the teacher: weights in 16 bits to halve the file, a config that loads them as float32."""
        dtype = getattr(torch, self.args.dtype)
        weights = {name: weight.to(dtype).cpu() for name, weight in self.model.state_dict().items()}
        with tempfile.TemporaryDirectory(dir=self.args.out.parent) as fresh:
            self.model.save_pretrained(fresh, state_dict=weights)
            self.tokenizer.save_pretrained(fresh)
            self.args.out.mkdir(exist_ok=True)
            for path in Path(fresh).iterdir():
                shutil.copyfile(path, self.args.out / path.name)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, required=True, help="wall-clock budget of the training")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--workers", type=int, default=4, help="processes that draw problems")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skip", type=float, default=0.4, help="final share of attention blocks skipped")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden-size", type=int, default=96)
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--adamw-lr", type=float, default=3e-3)
    parser.add_argument("--evaluations", type=int, default=12, help="points of the curve, each with a save")
    parser.add_argument(
        "--num-test", type=int, default=500, help="test problems per task in the final figures"
    )
    parser.add_argument("--num-spread", type=int, default=100, help="problems per task and removal")
    parser.add_argument(
        "--num-validation", type=int, default=100, help="problems per task at points of the curve"
    )
    parser.add_argument(
        "--removed", type=int, nargs="+", help="layers removed in the curves; all if not given"
    )
    parser.add_argument("--measure-batch-size", type=int, default=512, help="rows generated at once")
    parser.add_argument(
        "--dtype", choices=("float16", "bfloat16"), default="float16", help="of the saved weights"
    )
    parser.add_argument("--graph", action="store_true", help="a CUDA graph per padded length; needs a GPU")
    parser.add_argument("--out", type=Path, default=TEACHER_DIR)
    parser.add_argument("--record", type=Path, default=Path("benchmarks/results/bundled_teacher.json"))
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.record.parent.mkdir(parents=True, exist_ok=True)
    training = TeacherTraining(args)
    training.run()
    training.save()
    record: dict[str, Any] = {
        "arguments": {key: value for key, value in vars(args).items() if not isinstance(value, Path)},
        "trained_on": describe_machine(args.device),
        "steps": training.steps,
        "tokens": training.tokens,
        "curve": training.curve,
    }
    args.record.write_text(json.dumps(record, indent=1) + "\n")  # before measuring: a cut run keeps its curve
    shipped = LlamaForCausalLM.from_pretrained(args.out).to(args.device)
    record["measured"] = measure_teacher(
        shipped,
        training.tokenizer,
        seed=args.seed + 1,
        num_test=args.num_test,
        num_spread=args.num_spread,
        num_removed=args.removed,
        batch_size=args.measure_batch_size,
    )
    args.record.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record["measured"]), flush=True)


if __name__ == "__main__":
    main()
