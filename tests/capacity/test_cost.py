"""FLOP by formula against torch's counter, seconds against measured rows, tokens against what was published."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from apriel_assets.capacity import rates as rates_module
from apriel_assets.capacity.cost import (
    Cost,
    decode_step_seconds,
    forward_cost,
    generation_cost,
    training_cost,
)
from apriel_assets.capacity.rates import DECODE_SHARE, FORWARD_MFU, LOSS_MFU, SCANS, TRAIN_MFU, Rates
from apriel_assets.capacity.stages import (
    LINKS,
    REUSE,
    layer_scores_cost,
    probes_cost,
    scoring_cost,
    step_time,
    supernet_cost,
)
from apriel_assets.errors import UserError
from apriel_assets.evaluation.roofline import DEVICES, ModelShape
from apriel_assets.recipe import load_recipe
from apriel_assets.tables.published import published_rows

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
SHAPE_15B = load_recipe("apriel-15b").capacity.shape.model_shape(window=4096)
LLAMA_1B = ModelShape(
    hidden_size=2048, num_heads=32, num_kv_heads=8, head_size=64, intermediate_size=8192, vocab_size=128256
)
RATES = Rates()
TINY = ModelShape(
    hidden_size=32, num_heads=4, num_kv_heads=2, head_size=8, intermediate_size=48, vocab_size=50
)


def result(name):
    return json.loads((RESULTS / f"{name}.json").read_text())


def counted_flops(tokens, *, backward):
    """What torch counts in a pass of three layers, less what attention computes of positions it does not see."""
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, vocab_size=50, attn_implementation="eager",
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with FlopCounterMode(display=False) as counter:
        logits = model(torch.zeros(1, tokens, dtype=torch.long), use_cache=False).logits
        if backward:
            logits.sum().backward()
    unseen = tokens**2 - tokens * (tokens + 1) // 2
    return counter.get_total_flops() - (3 if backward else 1) * 3 * 4 * 32 * unseen


@pytest.mark.parametrize("tokens", [1, 40])
def test_forward_flops_are_torchs(tokens):
    assert forward_cost(TINY, ("fa",) * 3, tokens, RATES).flops == counted_flops(tokens, backward=False)


def test_training_flops_are_torchs():
    step = training_cost(TINY, ("fa",) * 3, 40, RATES, teacher=False, checkpointing=False)
    assert step.flops == counted_flops(40, backward=True)


def test_teacher_and_checkpointing_each_add_a_forward_pass():
    plain = training_cost(TINY, ("fa",) * 3, 40, RATES, teacher=False, checkpointing=False).flops
    forward = forward_cost(TINY, ("fa",) * 3, 40, RATES).flops
    layers = forward_cost(TINY, ("fa",) * 3, 40, RATES, head_tokens=0).flops
    again = training_cost(TINY, ("fa",) * 3, 40, RATES, teacher=False).flops
    assert again - plain == layers
    assert training_cost(TINY, ("fa",) * 3, 40, RATES).flops - again == forward


def test_frozen_weights_save_their_gradients():
    # All-FA with only mixers to train: gradients of inputs alone, and none of the head.
    full = training_cost(TINY, ("fa",) * 3, 40, RATES, teacher=False, checkpointing=False)
    frozen = training_cost(TINY, ("fa",) * 3, 40, RATES, teacher=False, checkpointing=False, trains_all=False)
    assert frozen.flops == pytest.approx(full.flops * 2 / 3)


def test_seconds_are_flops_over_the_share_of_the_peak():
    cost = forward_cost(SHAPE_15B, ("fa",) * 50, 4096, RATES, head_tokens=0)
    assert cost.gpu_seconds == pytest.approx(cost.flops / (FORWARD_MFU.value * 989e12))
    assert cost.times(7200).gpu_hours == pytest.approx(2 * cost.gpu_seconds)
    assert Cost(gpu_seconds=3600).seconds(8) == 450


def test_rates_are_those_of_the_committed_results():
    loss = result("loss_gpu")
    sizes = loss["shape"]
    flops = 4 * 2 * sizes["tokens"] * sizes["hidden_size"] * sizes["vocab_size"]
    measured = flops / (loss["ours"]["milliseconds"] / 1e3) / DEVICES["H100"].flops_per_s
    assert pytest.approx(measured, rel=5e-3) == LOSS_MFU.value
    full = [row for row in result("decode_gpu")["rows"] if row["batch_size"] > 1]
    assert pytest.approx(min(row["datasheet_share"] for row in full), rel=5e-3) == DECODE_SHARE.value
    # What is assumed of 15B on many GPUs is no more than what 1.2B reached on one, layers computed again.
    step = result("training_gpu")["self_distillation"]["ours, 16 rows, compiled, checkpointed"][
        "step_seconds"
    ]
    rates = Rates(train_mfu=0.43)
    assert 32 * training_cost(LLAMA_1B, ("fa",) * 16, 1024, rates).gpu_seconds == pytest.approx(
        step, rel=0.02
    )
    assert TRAIN_MFU.value <= 0.43
    reuse = [row["ratio"] for row in result("placement_scoring")["beam"]]
    assert pytest.approx(max(reuse), rel=1e-2) == REUSE.value


@pytest.mark.parametrize(("mixer", "kernel"), [("mamba", "mamba_ssm"), ("gdn", "fla"), ("kda", "fla")])
def test_recurrences_take_what_was_measured(mixer, kernel):
    measured = result("kernels_gpu")
    convolved = 0.5 if mixer == "mamba" else 1
    for backward, name in ((False, "forward_ms"), (True, "forward_and_backward_ms")):
        expected = measured[mixer][kernel][name] + convolved * measured["convolution"]["fla"][name]
        seconds = RATES.scan_seconds(mixer, 8192, 4096, backward=backward)
        assert seconds * 1e3 == pytest.approx(expected, rel=5e-3)


def test_every_figure_says_where_it_is_from():
    figures = [TRAIN_MFU, FORWARD_MFU, LOSS_MFU, DECODE_SHARE, REUSE, *LINKS.values(), *SCANS.values()]
    for figure in figures:
        kind, _, where = figure.source.partition(":")
        assert kind.split()[0] in ("measured", "assumed")
        if kind.startswith("measured"):
            assert (Path(rates_module.__file__).parents[2] / where.strip().split(",")[0]).is_file()


@pytest.mark.parametrize(
    ("name", "placement"),
    [
        ("all-FA, 50 layers", ("fa",) * 50),
        ("H-30", ("mamba",) * 30 + ("fa",) * 20),
        ("H-40", ("mamba",) * 40 + ("fa",) * 10),
        ("FA/SWA/KDA/GDN 0/10/5/33", ("swa",) * 10 + ("kda",) * 5 + ("gdn",) * 33),
    ],
)
def test_decode_steps_take_what_was_measured(name, placement):
    rows = [row for row in result("decode_gpu")["rows"] if row["placement"] == name and row["batch_size"] > 1]
    assert len(rows) == 2
    for row in rows:
        seconds = decode_step_seconds(SHAPE_15B, placement, row["context"], row["batch_size"], RATES)
        assert seconds == pytest.approx(row["seconds_per_step"], rel=0.1)
        exact = replace(RATES, decode_share=row["datasheet_share"])
        seconds = decode_step_seconds(SHAPE_15B, placement, row["context"], row["batch_size"], exact)
        assert seconds == pytest.approx(row["seconds_per_step"], rel=0.01)


def test_generation_is_rounds_of_steps_and_prompts():
    cost = generation_cost(
        SHAPE_15B, ("fa",) * 50, RATES, num_sequences=30, prompt_tokens=16184, new_tokens=400, rows=15
    )
    step = decode_step_seconds(SHAPE_15B, ("fa",) * 50, 16384, 15, RATES)
    prompts = forward_cost(SHAPE_15B, ("fa",) * 50, 16184, RATES, head_tokens=1)
    assert cost.gpu_seconds == pytest.approx(2 * 400 * step + 30 * prompts.gpu_seconds)
    # FLOP are those of reading prompt and completion in one pass; its last token's logits are counted twice.
    whole = forward_cost(SHAPE_15B, ("fa",) * 50, 16584, RATES, head_tokens=401)
    assert cost.flops == pytest.approx(30 * whole.flops)


def test_layer_scores_run_the_layers_that_the_benchmark_counted():
    for depth in result("leave_one_out_reuse")["depths"]:
        num_layers = depth["num_layers"]
        layer = forward_cost(TINY, ("fa",), 64, RATES, head_tokens=0).flops
        cost = layer_scores_cost(TINY, num_layers, 64, RATES, head_tokens=0)
        # The benchmark's 128 traces were two batches.
        assert cost.flops / layer == pytest.approx(depth["reused_decoder_layers"] / 2)


def test_probes_share_what_candidates_have_in_common():
    one, ten = (probes_cost(SHAPE_15B, ("fa",) * 50, "mamba", n, 4096, RATES).gpu_seconds for n in (1, 10))
    passes = 2 * forward_cost(SHAPE_15B, ("fa",) * 50, 4096, RATES, head_tokens=0).gpu_seconds
    assert ten - passes == pytest.approx(10 * (one - passes))


def test_supernet_step_is_the_mean_over_its_placements():
    def step(*mixers):
        return training_cost(SHAPE_15B, mixers, 4096, RATES, trains_all=False).gpu_seconds

    layers = (("fa", "gdn"), ("fa", "swa", "kda"))
    pairs = [step(one, other) for one in layers[0] for other in layers[1]]
    assert supernet_cost(SHAPE_15B, layers, 4096, RATES).gpu_seconds == pytest.approx(sum(pairs) / 6)


def test_scores_are_forward_passes_with_shared_layers():
    alone = scoring_cost(SHAPE_15B, ("fa",) * 50, 4096, RATES, num_placements=3, reuse=1.0)
    assert alone.flops == 3 * forward_cost(SHAPE_15B, ("fa",) * 50, 4096, RATES).flops
    assert scoring_cost(SHAPE_15B, ("fa",) * 50, 4096, RATES, num_placements=3).flops < 0.6 * alone.flops


def test_steps_on_more_gpus_are_limited_by_the_exchange_sooner():
    sequence = training_cost(SHAPE_15B, ("fa",) * 50, 8192, RATES)
    layers = (("fa",),) * 50

    def step(num_gpus, link, micro_batches):
        return step_time(
            sequence, SHAPE_15B, layers, batch_size=256, num_gpus=num_gpus, micro_batches=micro_batches,
            link_bytes_per_s=LINKS[link].value,
        )  # fmt: skip

    host, cluster = step(8, "NVLink", 32), step(64, "InfiniBand", 4)
    assert host.seconds == host.compute_s == pytest.approx(sequence.gpu_seconds * 32)
    assert cluster.compute_s == pytest.approx(host.compute_s / 8)
    assert cluster.exchange_s / cluster.compute_s > host.exchange_s / host.compute_s
    assert step(1, "NVLink", 256).exchange_s == 0


def test_the_recipe_spends_the_published_tokens():
    recipe = load_recipe("apriel-15b")
    published = {row["num_replaced"]: row["tokens_b"] for row in published_rows() if row["source"] == "h1" and
                 row.get("tokens_b") and "SFT" not in row["model"]}  # fmt: skip
    spent = 0.0
    for k in recipe.h1.schedule:
        train = recipe.h1.distill_of(k)
        spent += train.steps * train.batch_size * recipe.capacity.trace_tokens / 1e9
        if k != 27:  # published from an earlier H-25
            assert spent == pytest.approx(published[k], rel=1e-3)
    sft = recipe.h1.sft.train
    assert sft.steps * sft.batch_size * recipe.capacity.trace_tokens == pytest.approx(20.9e9, rel=1e-3)


@pytest.mark.parametrize(("placement", "tokens"), [((), 8), (("fa",), 0)])
def test_nothing_to_compute_is_refused(placement, tokens):
    with pytest.raises(UserError, match="at least 1"):
        forward_cost(TINY, placement, tokens, RATES)
    with pytest.raises(UserError, match="at least 1"):
        training_cost(TINY, placement, tokens, RATES)


def test_unknown_gpu_is_refused():
    with pytest.raises(UserError, match="known: H100, H200"):
        Rates.of("B200")


@pytest.mark.parametrize("module", ["config", "cost", "memory", "stages"])
def test_imports_no_torch(module):
    code = f"import apriel_assets.capacity.{module}, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
