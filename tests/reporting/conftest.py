"""Result tables as a run would leave them, made up: odd values, so that they can be found on the page."""

import math

import pyarrow as pa
import pytest

from apriel_assets.tables.schemas import to_table
from tests.reporting.h2_rows import h2_tables

NUM_LAYERS = 12
ORDER = (11, 10, 8, 9, 6, 7, 5, 3, 4, 2, 1, 0)  # leave-one-out, easiest first
MODELS = (  # name, kind, parent, layers replaced, accuracy, decode tokens/s
    ("teacher", "teacher", None, 0, 0.9731, 211.0),
    ("h4", "progressive", "teacher", 4, 0.9127, 307.0),
    ("h6", "progressive", "h4", 6, 0.8419, 401.0),
    ("h8", "progressive", "h6", 8, 0.6233, 523.0),
    ("sft", "sft", "h6", 6, 0.8837, 397.0),
    ("merge", "merge", "sft", 6, 0.8641, 409.0),
)
TASKS = ("recall", "copy", "arithmetic")


def placement(num_replaced):
    replaced = ORDER[:num_replaced]
    return ["mamba" if layer in replaced else "fa" for layer in range(NUM_LAYERS)]


def checkpoint_rows():
    rows = []
    for number, (name, kind, parent, replaced, *_) in enumerate(MODELS):
        row = {"model": name, "kind": kind, "parent": parent, "placement": placement(replaced)}
        tokens = None if kind == "teacher" else 50_021 * number
        rows.append({**row, "num_replaced": replaced, "total_tokens": tokens, "seconds": 17.0 * number})
    return rows


def eval_rows():
    rows = []
    for name, _, _, replaced, accuracy, _ in MODELS:
        for shift, task in enumerate(TASKS):
            common = {"model": name, "task": task, "num_problems": 173, "seed": 7}
            value = accuracy - 0.01 * (shift - 1)
            rows.append(
                {**common, "metric": "accuracy", "value": value, "low": value - 0.03, "high": value + 0.02}
            )
            kl = 0.0137 * replaced
            rows.append(
                {**common, "metric": "reverse_kl_nats", "value": kl, "low": kl * 0.9, "high": kl * 1.1}
            )
    return rows


def throughput_rows():
    rows = []
    for name, _, _, replaced, _, speed in MODELS:
        for step, context in enumerate((128, 1024, 4096)):
            for phase in ("prefill", "decode"):
                own = 211.0 + (speed - 211.0) * (step + 1) / 3
                row = {"model": name, "phase": phase, "context_tokens": context, "batch_size": 8}
                row |= {"tokens_per_s": own, "seconds_low": 1.0, "seconds_high": 1.2, "cache_bytes": 10}
                rows.append({**row, "modelled_speedup": 1 + replaced * 0.0931 * step, "device": "An odd CPU"})
    return rows


@pytest.fixture(scope="session")
def tables():
    scores = [
        {"layer": layer, "metric": "kl", "importance": 0.003 * 1.6**rank, "rank": rank}
        for rank, layer in enumerate(ORDER)
    ]
    probes = []
    for step, start in (("h6", 4), ("h8", 6)):
        left = sorted(ORDER[start:], key=lambda layer: (layer * 5) % 11)
        probes += [
            {"step": step, "layer": layer, "loss_nats": 0.05 + 0.011 * rank, "rank": rank}
            for rank, layer in enumerate(left)
        ]
    training = [
        {"model": name, "step": step, "loss_nats": 2.3 * math.exp(-step / 9) + 0.04}
        for name in ("h4", "h6", "h8", "sft")
        for step in range(1, 40)
    ]
    return {
        "checkpoints": to_table("checkpoints", checkpoint_rows()),
        "evals": to_table("evals", eval_rows()),
        "throughput": to_table("throughput", throughput_rows()),
        "layer_scores": to_table("layer_scores", scores),
        "probes": to_table("probes", probes),
        "training": to_table("training", training),
    }


@pytest.fixture(scope="session")
def h2():
    return h2_tables()


@pytest.fixture(scope="session")
def all_tables(tables, h2):
    both = {name: pa.concat_tables([tables[name], h2[name]]) for name in tables.keys() & h2.keys()}
    return {**tables, **h2, **both}
