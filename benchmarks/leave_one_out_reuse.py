"""What leave-one-out scores cost with and without reused prefixes: evaluations, seconds, same scores.

    python benchmarks/leave_one_out_reuse.py

Writes benchmarks/results/leave_one_out_reuse.json. Target: at most 0.55 of the naive loop's mixer
evaluations, the whole model's pass included in both, and scores equal to 1e-5 nats.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from apriel_assets.distillation.batches import Traces, length_sorted_batches
from apriel_assets.distillation.causal_lm import final_hidden_states, lm_head
from apriel_assets.distillation.losses import TeacherHead, token_divergences
from apriel_assets.hybrid.model import HybridForCausalLM
from apriel_assets.scoring.leave_one_out import layer_divergences
from apriel_assets.scoring.prefix import count_layers
from resources.provenance import code_revision, device_name, library_versions

VOCAB_SIZE = 128
BATCH_SIZE = 64


def make_model(num_layers: int) -> HybridForCausalLM:
    """Return a random model as wide as the bundled teacher."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
    )
    return HybridForCausalLM.from_teacher(LlamaForCausalLM(config), copy=False).eval()


def make_traces(num: int) -> Traces:
    """Return random tokens, about as long as the bundled tasks' traces."""
    generator = torch.Generator().manual_seed(0)

    def draw(shortest: int, longest: int) -> tuple[int, ...]:
        length = int(torch.randint(shortest, longest, (1,), generator=generator))
        return tuple(torch.randint(4, VOCAB_SIZE, (length,), generator=generator).tolist())

    return Traces(tuple(draw(15, 35) for _ in range(num)), tuple(draw(10, 35) for _ in range(num)))


@torch.inference_mode()
def naive_divergences(model: HybridForCausalLM, traces: Traces) -> list[float]:
    """Score every layer by whole passes."""
    sums, tokens = [0.0] * model.num_layers, 0
    for indices in length_sorted_batches(traces, BATCH_SIZE):
        batch = traces.batch(indices)
        whole = final_hidden_states(model, batch.input_ids, batch.attention_mask)
        reference = TeacherHead(whole[batch.mask], lm_head(model))
        tokens += len(reference.hidden_states)
        for layer in range(model.num_layers):
            with model.skip_mixers([layer]):
                hidden = final_hidden_states(model, batch.input_ids, batch.attention_mask)
            reverse, _, _ = token_divergences(hidden[batch.mask], lm_head(model), reference)
            sums[layer] += float(reverse.double().sum())
    return [total / tokens for total in sums]


def measure(num_layers: int, num_traces: int) -> dict[str, float]:
    """Return evaluations (one = one layer on one batch), seconds, and the largest difference of a score."""
    model, traces = make_model(num_layers), make_traces(num_traces)
    naive_divergences(model, traces.select(range(BATCH_SIZE)))  # warm-up
    figures: dict[str, float] = {"num_layers": num_layers, "num_traces": num_traces}
    scores = {}
    for name in ("naive", "reused"):
        started = time.perf_counter()
        with count_layers(model) as counts:
            if name == "naive":
                scores[name] = naive_divergences(model, traces)
            else:
                scores[name] = [pair[0] for pair in layer_divergences(model, traces, BATCH_SIZE)]
        figures[f"{name}_seconds"] = time.perf_counter() - started
        figures[f"{name}_mixers"] = counts.mixers
        figures[f"{name}_decoder_layers"] = counts.decoder_layers
    for what in ("mixers", "decoder_layers", "seconds"):
        figures[f"{what}_ratio"] = figures[f"reused_{what}"] / figures[f"naive_{what}"]
    pairs = zip(scores["naive"], scores["reused"], strict=True)
    return {**figures, "largest_difference_nats": max(abs(a - b) for a, b in pairs)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--traces", type=int, default=128)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "leave_one_out_reuse.json"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    report = {
        "depths": [measure(num_layers, arguments.traces) for num_layers in (12, 30)],
        "target_mixers_ratio": 0.55,
        "device": device_name(),
        "versions": library_versions(),
        "code_revision": code_revision(),
    }
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    for figures in report["depths"]:
        print({name: round(value, 8) for name, value in figures.items()})


if __name__ == "__main__":
    main()
