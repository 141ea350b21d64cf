"""Bytes by formula against tensors that torch really keeps, and against peaks that were measured on a GPU."""

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from apriel_assets.capacity.memory import (
    activation_bytes,
    inference_memory,
    layer_activation_bytes,
    loss_bytes,
    model_parameters,
    optimizer_state_bytes,
    placement_layers,
    rows_that_fit,
    training_memory,
)
from apriel_assets.distillation.config import DistillConfig
from apriel_assets.distillation.optimizers import choose_trained, make_optimizers
from apriel_assets.errors import UserError
from apriel_assets.evaluation.roofline import ModelShape
from apriel_assets.recipe import load_recipe

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
SHAPE_15B = load_recipe("apriel-15b").capacity.shape.model_shape(window=4096)
FA_15B = ("fa",) * 50


def tiny(num_layers=3, num_kv_heads=2, dtype=torch.float32):
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=num_layers, num_attention_heads=4,
        num_key_value_heads=num_kv_heads, head_dim=8, vocab_size=50,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(dtype).train(), ModelShape.from_config(config)


@pytest.mark.parametrize("tied", [False, True])
def test_parameters_are_a_real_models(tied):
    model, shape = tiny()
    if tied:
        model.config.tie_word_embeddings = True
        model.tie_weights()
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert model_parameters(shape, placement_layers(("fa",) * 3), tied=tied) == counted


def test_the_15b_teacher_has_15b_parameters():
    assert model_parameters(SHAPE_15B, placement_layers(FA_15B)) == pytest.approx(14.97e9, rel=1e-3)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_states_are_those_of_a_real_optimizer(optimizer):
    model, shape = tiny()
    choose_trained(model, "all")
    optimizers = make_optimizers(model, DistillConfig(optimizer=optimizer))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for own in optimizers:
        own.step()
    states = [
        value for own in optimizers for state in own.state.values() for value in state.values() if value.dim()
    ]
    counted = sum(value.numel() * value.element_size() for value in states)
    layers = placement_layers(("fa",) * 3)
    assert optimizer_state_bytes(shape, layers, optimizer) == counted
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    memory = training_memory(shape, layers, tokens=1, optimizer=optimizer, teacher=False)
    assert (memory.weights, memory.gradients, memory.optimizer) == (weights, weights, counted)


def saved_bytes(model, tokens):
    """Bytes of all matrices and larger tensors, weights aside, that autograd keeps after a forward pass."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if tensor.dim() > 1 and storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model.model(torch.zeros(2, tokens // 2, dtype=torch.long), use_cache=False)
    assert output.last_hidden_state.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("num_kv_heads", [2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_are_what_autograd_keeps(dtype, num_kv_heads):
    two, three = (saved_bytes(tiny(depth, num_kv_heads, dtype)[0], 128) for depth in (2, 3))
    shape = tiny(3, num_kv_heads)[1]
    # Beyond the formula: a few numbers per token and head (norms' factors, softmax sums), 24 bytes here.
    assert (three - two) / 128 == layer_activation_bytes(shape, "fa", dtype.itemsize) + 24


def test_checkpointing_keeps_inputs_and_one_layer():
    layers = placement_layers(FA_15B)
    kept = activation_bytes(SHAPE_15B, layers, 8192, checkpointing=True)
    assert kept == 50 * 8192 * 5120 * 2 + 8192 * layer_activation_bytes(SHAPE_15B, "fa")
    assert activation_bytes(SHAPE_15B, layers, 8192, checkpointing=False) > 10 * kept


def test_loss_needs_what_was_measured():
    result = json.loads((RESULTS / "loss_gpu.json").read_text())
    sizes = result["shape"]
    shape = ModelShape(
        hidden_size=sizes["hidden_size"], vocab_size=sizes["vocab_size"], num_heads=1, num_kv_heads=1, head_size=1,
        intermediate_size=1,
    )  # fmt: skip
    measured = result["ours"]["peak_gib"] * 2**30
    assert loss_bytes(shape, sizes["tokens"]) == pytest.approx(measured, rel=0.1)


def decode_rows():
    result = json.loads((RESULTS / "decode_gpu.json").read_text())
    return [row for row in result["rows"] if row["placement"].startswith("all-FA")]


@pytest.mark.parametrize(
    "row", decode_rows(), ids=lambda row: f"{row['layers']}-{row['context']}-{row['batch_size']}"
)
def test_decoding_model_needs_what_was_measured(row):
    layers = placement_layers(("fa",) * row["layers"])
    memory = inference_memory(SHAPE_15B, layers, rows=row["batch_size"], context=row["context"])
    assert memory.total / 2**30 == pytest.approx(row["peak_gib"], rel=0.03)


def test_as_many_rows_fit_as_were_run():
    # The benchmark kept 40 tokens a row in reserve and a little more memory was free.
    for row in decode_rows():
        if row["batch_size"] > 1:
            fitting = rows_that_fit(SHAPE_15B, ("fa",) * row["layers"], row["context"] + 40, 79.2 * 2**30)
            assert abs(fitting - row["batch_size"]) <= 1


def test_what_is_sharded_falls_with_gpus_and_the_rest_does_not():
    layers = placement_layers(("mamba",) * 30 + ("fa",) * 20)
    eight, many = (training_memory(SHAPE_15B, layers, tokens=16384, num_gpus=n) for n in (8, 64))
    for name in ("weights", "gradients", "optimizer", "teacher"):
        assert getattr(eight, name) == pytest.approx(8 * getattr(many, name))
    for name in ("gathered", "activations", "logits"):
        assert getattr(eight, name) == getattr(many, name)
    assert eight.total == pytest.approx(sum(getattr(eight, name) for name in (
        "weights", "gradients", "optimizer", "teacher", "gathered", "activations", "logits"
    )))  # fmt: skip


def test_supernet_trains_its_mixers_and_contains_its_teacher():
    layers = (("fa", "gdn"),) * 50
    memory = training_memory(SHAPE_15B, layers, tokens=8192, num_gpus=8, trains="mixers")
    everything = training_memory(SHAPE_15B, layers, tokens=8192, num_gpus=8)
    assert memory.teacher == 0
    assert memory.optimizer < everything.optimizer / 3


@pytest.mark.parametrize("change", [{"num_gpus": 0}, {"tokens": 0}])
def test_nothing_to_compute_is_refused(change):
    with pytest.raises(UserError, match="at least 1"):
        training_memory(SHAPE_15B, (("fa",),), **{"tokens": 1, **change})


def test_model_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match="take a larger GPU"):
        rows_that_fit(SHAPE_15B, FA_15B, 32768, 24e9)
