"""Does a long run keep what it no longer needs? Memory and open files along training, scoring and serving.

    python -m tests.soak.flat_memory --steps 10000 --candidates 1000 --requests 1000

Each part is sampled twenty times. After the first third, in which caches fill, nothing may grow but what is documented:
rows of results, about a hundred bytes a training step and two kilobytes a scored candidate.
"""

import argparse
import gc
import itertools
import json
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

RESULTS = Path(__file__).parent.parent.parent / "benchmarks" / "results" / "soak_flat_memory.json"
MOST_GROWTH_BYTES = 16 << 20
_SAMPLES = 20


@dataclass(frozen=True)
class Sample:
    """What processes hold at one moment."""

    done: int
    resident_bytes: int
    open_files: int
    tensors: int  # alive in this process; 0 where another one works


def sampled(done: int, processes: Sequence[psutil.Process] = ()) -> Sample:
    """Return what some processes hold now; without any, this one and its tensors."""
    import torch

    gc.collect()
    tensors = 0 if processes else sum(issubclass(type(own), torch.Tensor) for own in gc.get_objects())
    own = processes or [psutil.Process()]
    return Sample(
        done=done,
        resident_bytes=sum(process.memory_info().rss for process in own),
        open_files=sum(process.num_fds() for process in own),
        tensors=tensors,
    )


def training(steps: int, scratch: Path, samples: int = _SAMPLES) -> list[Sample]:
    """Distil a tiny student for so many steps, saving as the recipes do."""
    from apriel_assets.distillation.config import DistillConfig
    from apriel_assets.distillation.trainer import train
    from tests.distillation.tiny_llama import make_llama, make_traces

    config = DistillConfig(steps=steps, batch_size=4, learning_rate=1e-3, save_every=max(1, steps // 40))
    every, found = max(1, steps // samples), []

    def progress(done: int, total: int, **figures: float) -> None:
        if done % every == 0:
            found.append(sampled(done))

    train(
        make_llama(1), make_traces(), config, teacher=make_llama(0), seed=0, resume_dir=scratch / "state",
        progress=progress,
    )  # fmt: skip
    return found


def scoring(candidates: int, scratch: Path, samples: int = _SAMPLES) -> list[Sample]:
    """Score so many placements of a tiny supernet in batches of ten, as a search does."""
    from apriel_assets.scoring.config import EstimatorConfig
    from apriel_assets.scoring.memo import ScoreMemo
    from apriel_assets.scoring.placements import PlacementScorer
    from tests.scoring.tiny_supernet import make_store, make_supernet

    supernet = make_supernet(num_hidden_layers=7)
    memo = ScoreMemo(scratch / "scores")
    scorer = PlacementScorer(
        supernet, make_store(supernet, problems=2), EstimatorConfig(resamples=20), memo=memo
    )
    every = list(itertools.product(*supernet.mixers))
    chosen = random.Random(0).sample(every, candidates)
    found, batch = [], 10
    for start in range(0, candidates, batch):
        scorer.score(chosen[start : start + batch])
        if start // batch % max(1, candidates // batch // samples) == 0:
            found.append(sampled(start + batch))
    return found


def serving(requests: int, scratch: Path, samples: int = _SAMPLES) -> list[Sample]:
    """Put so many requests, plain and streamed, to a real `apriel serve`."""
    from transformers import AutoTokenizer

    from apriel_assets.serving.export import export_release
    from tests.conftest import BUNDLED
    from tests.serving.conftest import make_model
    from tests.serving.served import Served, is_up

    release = scratch / "release"
    release.mkdir()
    export_release(make_model(), AutoTokenizer.from_pretrained(BUNDLED), release, name="tiny")
    served = Served(release, "--placements", "safe,turbo", log=scratch / "log.txt")
    try:
        served.wait(is_up, seconds=600)
        return asked(served, requests, samples)
    finally:
        served.end()


def asked(served: Any, requests: int, samples: int) -> list[Sample]:
    """Ask a running server, good requests and bad ones; return what it and its engines held along the way."""
    main = psutil.Process(served.process.pid)
    processes = [main, *main.children(recursive=True)]
    found, every = [], max(1, requests // samples)
    for number in range(1, requests + 1):
        request: dict[str, Any] = {
            "model": ("tiny-safe", "tiny-turbo")[number % 2],
            "prompt": f"a = {number % 10}",
        }
        request |= {"max_tokens": 4, "stream": number % 3 == 0}
        if number % 10 == 0:
            request["max_tokens"] = "many"  # refused
        code, answer = served.post("/v1/completions", request)
        assert code == (400 if number % 10 == 0 else 200), (code, answer)
        if number % every == 0:
            found.append(sampled(number, processes))
    return found


def growth(samples: Sequence[Sample]) -> dict[str, int]:
    """Return what came on between the first third and the end."""
    first, last = samples[len(samples) // 3], samples[-1]
    return {name: getattr(last, name) - getattr(first, name) for name in asdict(last) if name != "done"}


def main() -> int:
    """Run all three, write the result file; 1 if something grows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts: dict[str, tuple[Callable[[int, Path], list[Sample]], int]] = {
        "steps": (training, 10_000),
        "candidates": (scoring, 1_000),
        "requests": (serving, 1_000),
    }
    for name, (_, count) in parts.items():
        parser.add_argument(f"--{name}", type=int, default=count, help="0: leave it out")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    report: dict[str, Any] = {"command": "python -m tests.soak.flat_memory " + " ".join(sys.argv[1:])}
    failed = False
    for name, (part, _) in parts.items():
        if (count := getattr(given, name)) == 0:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            samples = part(count, Path(scratch))
        own = growth(samples)
        report[name] = {"count": count, "growth": own, "samples": [asdict(sample) for sample in samples]}
        failed |= own["resident_bytes"] > MOST_GROWTH_BYTES or own["open_files"] > 0 or own["tensors"] > 0
        print(name, count, own, flush=True)
        given.out.write_text(json.dumps(report, indent=1) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
