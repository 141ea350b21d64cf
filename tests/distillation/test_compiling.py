"""Compiled blocks: what is compiled, that results stay, that nothing of it is left behind."""

from dataclasses import replace

import torch

from apriel_assets.distillation import compiling
from apriel_assets.distillation.compiling import compiled_blocks
from apriel_assets.distillation.trainer import train
from tests.distillation.test_trainer import CONFIG, make_llama, make_traces
from tests.scoring.tiny_hybrid import make_hybrid


def test_all_but_the_mixers_is_compiled_and_only_within(monkeypatch):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    monkeypatch.setattr(compiling, "_BACKEND", backend)
    model = make_hybrid()
    model.convert([1], "mamba")
    ids = torch.arange(12).view(2, 6)
    expected = model(ids).logits
    with compiled_blocks(model):
        assert torch.equal(model(ids).logits, expected)
        compiled = {name for name, module in model.named_modules() if module._compiled_call_impl}
        assert {name.rpartition(".")[2] for name in compiled} == {
            "mlp", "input_layernorm", "post_attention_layernorm",
        }  # fmt: skip
    assert graphs
    assert not any(module._compiled_call_impl for module in model.modules())


def test_training_goes_the_same_way(monkeypatch):
    monkeypatch.setattr(compiling, "_BACKEND", "aot_eager")
    curves = []
    for compile_blocks in (False, True):
        student = make_llama(1)
        rows = train(
            student, make_traces(), replace(CONFIG, compile=compile_blocks), teacher=make_llama(0), seed=0
        )
        curves.append(rows.column("loss_nats").to_numpy())
        assert not any(module._compiled_call_impl for module in student.modules())
    torch.testing.assert_close(torch.tensor(curves[1]), torch.tensor(curves[0]), rtol=1e-4, atol=1e-6)
