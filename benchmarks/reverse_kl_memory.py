"""Peak memory of the chunked reverse KL against the dense formula, forward and backward.

    python benchmarks/reverse_kl_memory.py

Writes benchmarks/results/reverse_kl_memory.json. Target: at 512 tokens and a vocabulary of 128k, less than
1/8 of the dense loss's peak, both beyond their inputs. Each runs in a process of its own: a process's peak
never falls.
"""

import argparse
import json
import multiprocessing
import re
import threading
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from apriel_assets.distillation.losses import TeacherHead, token_loss
from resources.provenance import code_revision, device_name, library_versions

Case = tuple[Tensor, nn.Linear, TeacherHead, Tensor]


def make_case(tokens: int, hidden_size: int, vocab_size: int, dtype: torch.dtype) -> Case:
    """Return hidden states, head, teacher and mask."""
    torch.manual_seed(0)
    hidden = torch.randn(tokens, hidden_size, dtype=dtype).requires_grad_()
    head, teacher_head = (nn.Linear(hidden_size, vocab_size, bias=False, dtype=dtype) for _ in range(2))
    teacher = TeacherHead(torch.randn(tokens, hidden_size, dtype=dtype), teacher_head.requires_grad_(False))
    return hidden, head, teacher, torch.ones(tokens, dtype=torch.bool)


def dense_loss(hidden: Tensor, head: nn.Linear, teacher: TeacherHead, mask: Tensor) -> Tensor:
    """The plain formula."""
    log_q = head(hidden[mask]).float().log_softmax(-1)
    with torch.no_grad():
        log_p = teacher.head(teacher.hidden_states[mask]).float().log_softmax(-1)
    return (log_q.exp() * (log_q - log_p)).sum(-1).mean()


def chunked_loss(hidden: Tensor, head: nn.Linear, teacher: TeacherHead, mask: Tensor) -> Tensor:
    """Ours."""
    return token_loss(hidden, head, mask, teacher=teacher)


LOSSES = {"dense": dense_loss, "chunked": chunked_loss}


def resident_bytes(key: str = "VmRSS") -> int:
    """Return this process's resident memory: now (VmRSS) or at its peak (VmHWM)."""
    match = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match, "needs Linux's /proc"
    return 1024 * int(match[1])


def measure(which: str, sizes: dict[str, int], dtype: str) -> dict[str, float]:
    """Return the loss, its seconds, and the peak resident memory beyond the inputs, forward and backward."""
    loss_of = LOSSES[which]
    small = make_case(8, 8, 64, getattr(torch, dtype))
    loss_of(*small).backward()  # libraries load their kernels and threads
    case = make_case(**sizes, dtype=getattr(torch, dtype))
    before = resident_bytes()
    peak = before
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, resident_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    loss = loss_of(*case)
    loss.backward()
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    # The kernel's own record misses nothing between two looks; before the loss it was lower or this is not
    # used.
    peak = max(peak, resident_bytes("VmHWM"))
    return {"loss_nats": loss.item(), "seconds": seconds, "peak_bytes": peak - before}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--hidden-size", type=int, default=64)
    parser.add_argument("--vocab-size", type=int, default=131_072)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "reverse_kl_memory.json"
    )
    arguments = parser.parse_args()
    sizes = {name: getattr(arguments, name) for name in ("tokens", "hidden_size", "vocab_size")}
    context = multiprocessing.get_context("spawn")
    figures = {}
    for which in LOSSES:
        with context.Pool(1) as pool:
            figures[which] = pool.apply(measure, (which, sizes, arguments.dtype))
    ratio = figures["chunked"]["peak_bytes"] / figures["dense"]["peak_bytes"]
    report = {
        "shape": {**sizes, "dtype": arguments.dtype},
        **figures,
        "chunked_over_dense": ratio,
        "target": 1 / 8,
        "device": device_name(),
        "versions": library_versions(),
        "code_revision": code_revision(),
    }
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
