"""What the endpoint costs over the bare engine, and what memory it takes to host all placements of a release.

    python benchmarks/serving.py [RELEASE]

Without RELEASE, of a random model of 12 layers of width 768. Writes benchmarks/results/serving.json. Targets: at most
5% fewer tokens/s through the endpoint at 16 streams; at most 1.3 times the weights of all-FA alone at the 15B shape.
On a machine that does other work the wall says little: CPU time per token, of the engine bare and served and of the
process before it, says what the endpoint adds; the latter runs beside the engine, on another core.
"""

import asyncio
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import psutil
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from apriel_assets.distillation.supernet import build_supernet
from apriel_assets.evaluation.decode_runner_projections import weights_in_place
from apriel_assets.evaluation.roofline import ModelShape
from apriel_assets.hybrid.any_checkpoint import load_any
from apriel_assets.hybrid.matryoshka import make_matryoshka
from apriel_assets.hybrid.teacher import BUNDLED
from apriel_assets.serving.batching import ContinuousBatch, Request
from apriel_assets.serving.export import export_release
from apriel_assets.serving.hosting import hosted_weight_bytes, hosted_weight_bytes_of_counts
from apriel_assets.serving.release import Release, read_release
from apriel_assets.serving.sampling import Sampling
from apriel_assets.serving.server import bound_socket
from resources.provenance import code_revision, device_name, library_versions

STREAMS, NEW_TOKENS, PROMPT_TOKENS, REPEATS = 16, 64, 16, 9
TARGET_OVERHEAD, TARGET_MEMORY = 0.05, 1.3
OUT = Path(__file__).parent / "results" / "serving.json"

# fa, swa, kda, gdn of 48 layers, as published (docs of the table `published`).
PUBLISHED = ((12, 26, 6, 4), (3, 25, 4, 16), (0, 30, 5, 13), (0, 16, 13, 19), (0, 10, 5, 33))
SHAPE_15B = ModelShape(
    hidden_size=5120, num_heads=32, num_kv_heads=8, head_size=128, intermediate_size=14336, vocab_size=131072
)


def make_release(directory: Path) -> None:
    """Export a random model with three placements: 75 M parameters of all-FA."""
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED)
    torch.manual_seed(0)
    sizes = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "head_dim": 64}
    config = LlamaConfig(
        vocab_size=len(tokenizer), num_attention_heads=12, num_key_value_heads=4, max_position_embeddings=1024,
        bos_token_id=1, eos_token_id=2, pad_token_id=0, **sizes,
    )  # fmt: skip
    supernet = build_supernet(LlamaForCausalLM(config), [("fa", "gdn", "swa")] * 12, copy=False)
    placements = {"turbo": ("fa", "gdn") * 6, "max": ("fa", "gdn", "swa", "gdn") * 3}
    export_release(make_matryoshka(supernet, placements, copy=False), tokenizer, directory, name="bench")


def prompt(number: int) -> list[int]:
    return [10 + (number * 7 + index) % 60 for index in range(PROMPT_TOKENS)]


def bare_tokens_per_s(batch: ContinuousBatch) -> float:
    """Return what the engine's own loop gives with nobody to tell: prompts read and all tokens decoded."""
    began = time.perf_counter()
    for number in range(STREAMS):
        sampling = Sampling(max_new_tokens=NEW_TOKENS)
        batch.submit(Request(id=number, prompt=tuple(prompt(number)), sampling=sampling))
    count = 0
    while not batch.is_idle:
        count += len(batch.step())
    return count / (time.perf_counter() - began)


async def _stream(port: int, model: str, number: int) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    content = {"model": model, "prompt": prompt(number), "max_tokens": NEW_TOKENS, "temperature": 0, "stream": True,
               "stream_options": {"include_usage": True}}  # fmt: skip
    body = json.dumps(content).encode()
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nHost: bench\r\nConnection: close\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    answer = await reader.read(-1)
    writer.close()
    assert b"[DONE]" in answer, answer[:300]
    usage = answer[answer.rindex(b'"completion_tokens":') :]
    return int(usage.split(b":")[1].split(b",")[0])


async def endpoint_tokens_per_s(port: int, model: str) -> float:
    """Return what 16 clients get through the endpoint, together."""
    began = time.perf_counter()
    counts = await asyncio.gather(*(_stream(port, model, number) for number in range(STREAMS)))
    return sum(counts) / (time.perf_counter() - began)


class Served:
    """`apriel serve` with one thread an engine; this process keeps the other core."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        with bound_socket("127.0.0.1", 0) as own:
            self.port = own.getsockname()[1]
        command = [
            sys.executable,
            "-m",
            "apriel_assets.cli",
            "serve",
            str(directory),
            "--port",
            str(self.port),
        ]
        command += [
            "--threads",
            "1",
            "--slots",
            str(STREAMS),
            "--context",
            str(2 * (PROMPT_TOKENS + NEW_TOKENS)),
        ]
        self._process = subprocess.Popen([*command, *arguments], stdout=subprocess.DEVNULL)

    def __enter__(self) -> "Served":
        until = time.monotonic() + 180
        while time.monotonic() < until:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health") as answer:
                    if json.load(answer)["status"] == "ok":
                        return self
            except OSError:
                time.sleep(0.2)
        raise TimeoutError("the server did not start")

    def __exit__(self, *error: object) -> None:
        self._process.terminate()
        self._process.wait()

    def cpu_seconds(self) -> tuple[float, float]:
        """Return the CPU time of the engine, and of the endpoint before it."""
        endpoint = psutil.Process(self._process.pid)
        (engine,) = endpoint.children()
        times = (own.cpu_times() for own in (engine, endpoint))
        engine_s, endpoint_s = (own.user + own.system for own in times)
        return engine_s, endpoint_s

    def mapped_weight_bytes(self) -> dict[str, dict[str, int]]:
        """Return, per engine, the bytes of weight files that it has in memory, whole and its share of shared pages."""
        found = {}
        for process in psutil.Process(self._process.pid).children():
            maps = [own for own in process.memory_maps() if own.path.endswith(".safetensors")]
            name = (
                next(word for word in process.cmdline() if "engines/" in word)
                .split("engines/")[1]
                .split('"')[0]
            )
            info = process.memory_info()
            found[name] = {
                "resident": sum(own.rss for own in maps),
                "share": sum(own.pss for own in maps),
                "other_resident": info.rss - sum(own.rss for own in maps),
            }
        return found


def overhead(release: Release) -> dict:
    """Return tokens/s of the bare engine and through the endpoint, measured in turn."""
    torch.set_num_threads(1)
    model = load_any(release.engine_directory(release.default))
    with weights_in_place():
        batch = ContinuousBatch(model, num_slots=STREAMS, capacity=2 * (PROMPT_TOKENS + NEW_TOKENS))
    bare, served, cpu = [], [], []
    with Served(release.directory, "--placements", release.default) as server:
        for repeat in range(REPEATS + 1):
            before = time.process_time(), server.cpu_seconds()
            own = bare_tokens_per_s(batch)
            spent = time.process_time() - before[0]
            through = asyncio.run(endpoint_tokens_per_s(server.port, release.name))
            if repeat:  # the first warms up
                bare.append(own)
                served.append(through)
                after = server.cpu_seconds()
                cpu.append((spent, *(there - here for here, there in zip(before[1], after, strict=True))))
    per_token = [
        1e3 * statistics.median(column) / (STREAMS * NEW_TOKENS) for column in zip(*cpu, strict=True)
    ]
    return {
        "streams": STREAMS,
        "new_tokens": NEW_TOKENS,
        "bare_tokens_per_s": bare,
        "endpoint_tokens_per_s": served,
        "overhead_of_medians": 1 - statistics.median(served) / statistics.median(bare),
        "overhead_of_best": 1 - max(served) / max(bare),
        "cpu_ms_per_token": dict(zip(("bare_engine", "served_engine", "endpoint"), per_token, strict=True)),
        "engine_cpu_overhead": per_token[1] / per_token[0] - 1,
        "target": TARGET_OVERHEAD,
    }


def measured_memory(release: Release) -> dict:
    """Return what the engines of a release have of its weights in memory, against what the shape says."""
    gc.collect()  # what this process maps takes a share, too
    with Served(release.directory) as server:
        asyncio.run(_touch(server.port, release))
        found = server.mapped_weight_bytes()
    model = load_any(release.directory / "matryoshka")
    shape = ModelShape.from_config(
        model.config.get_text_config(), weight_bytes=model.lm_head.weight.element_size()
    )
    full = model.placements[release.default]
    computed = hosted_weight_bytes(shape, model.placements.values()) / hosted_weight_bytes(shape, [full])
    alone = sum(
        path.stat().st_size for path in release.engine_directory(release.default).glob("*.safetensors")
    )
    return {
        "engines": found,
        "all_fa_weight_bytes": alone,
        "hosted_over_all_fa": sum(own["share"] for own in found.values()) / alone,
        "computed_hosted_over_all_fa": computed,
    }


async def _touch(port: int, release: Release) -> None:
    """Let every engine read all of its weights once."""
    for placement in release.placements:
        await _stream(port, f"{release.name}-{placement}", 0)


def memory_15b() -> list[dict]:
    """Return weights of all-FA and published placements over all-FA alone: least and most, as they nest or not."""
    full = hosted_weight_bytes(SHAPE_15B, [("fa",) * 48])
    counts = [dict(zip(("fa", "swa", "kda", "gdn"), own, strict=True)) for own in PUBLISHED]
    kept = [[own] for own in counts] + [counts[:2], counts[:3], counts]
    rows = []
    for own in kept:
        least, most = hosted_weight_bytes_of_counts(SHAPE_15B, 48, own)
        rows.append(
            {"placements": own, "least": least / full, "most": most / full, "apart": 1 + _apart(own, full)}
        )
    return rows


def _apart(counts: list[dict], full: float) -> float:
    """Return the weights of engines that share nothing, over all-FA's."""
    return sum(
        hosted_weight_bytes(SHAPE_15B, [tuple(name for name, count in own.items() for _ in range(count))])
        / full
        for own in counts
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(scratch) / "release"
        if len(sys.argv) == 1:
            directory.mkdir()
            make_release(directory)
        release = read_release(directory)
        result = {
            "release": release.name,
            "hardware": "2 CPU cores",
            "device": device_name(),
            "code": code_revision(),
            "libraries": library_versions(),
            "overhead": overhead(release),
            "memory": measured_memory(release),
            "memory_15b": memory_15b(),
            "memory_target": TARGET_MEMORY,
        }
    name = OUT if len(sys.argv) == 1 else OUT.with_name(f"serving_{release.name}.json")
    name.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
