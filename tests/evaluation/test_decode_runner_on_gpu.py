"""The runner's CUDA graph against the model's own forward pass."""

import pytest
import torch

from apriel_assets.evaluation.decode_runner import DecodeRunner
from tests.evaluation.test_decode_runner import NUM_NEW, PROMPTS, TEACHERS, generate_alone, make_hybrid
from tests.hybrid.tiny_teachers import random_ids

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SIZES = {"hidden_size": 128, "head_dim": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
PLACEMENTS = (("fa", "fa", "fa"), ("swa", "gdn", "mamba"), ("kda", "fa", "kda"))


def relative(mine, theirs):
    return ((mine.float() - theirs.float()).norm() / theirs.float().norm()).item()


@pytest.mark.parametrize("kind", TEACHERS)
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_replayed_logits_are_those_of_the_models_forward(kind, placement, dtype):
    model, ids = make_hybrid(placement, kind, **SIZES), random_ids(2, 40).cuda()
    expected = model.cuda()(ids, use_cache=False).logits  # fp32
    model = model.to(dtype)
    own = relative(
        model(ids, use_cache=False).logits[:, 8:], expected[:, 8:]
    )  # what rounding does to any form
    runner = DecodeRunner(model, batch_size=2, capacity=40)
    runner.prefill(ids[:, :8].tolist())
    logits = torch.stack([runner.step(ids[:, position]).clone() for position in range(8, 40)], dim=1)
    # fp32: products of attention run in tf32, which keeps 11 bits
    assert relative(logits, expected[:, 8:]) < 5e-3 + 1.5 * own


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_greedy_tokens_are_those_of_generate(placement):
    model = make_hybrid(placement, **SIZES).cuda()
    expected = [generate_alone(model, prompt) for prompt in PROMPTS]
    runner = DecodeRunner(model, batch_size=3, capacity=40)
    # Twice: a graph must not remember where it was captured.
    for _ in range(2):
        assert [row.token_ids for row in runner.generate(PROMPTS, NUM_NEW)] == expected


def test_graph_and_plain_step_sample_the_same():
    model = make_hybrid(("swa", "gdn", "mamba"), **SIZES).cuda()
    rows = [
        DecodeRunner(model, batch_size=3, capacity=40, graph=graph).generate(
            PROMPTS, NUM_NEW, temperature=1.0, seed=2
        )
        for graph in (True, False)
    ]
    assert [row.token_ids for row in rows[0]] == [row.token_ids for row in rows[1]]
