"""The plugin without vLLM: names, what is refused, recurrences over vLLM's layout of tokens."""

import ast
import json
import tomllib
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from apriel_assets.errors import UserError
from apriel_assets.hybrid.config import FullAttentionConfig, SlidingWindowConfig
from apriel_assets.hybrid.hybrid_config import HybridConfig
from apriel_assets.hybrid.mixers.delta.reference import delta_rule_reference
from apriel_assets.hybrid.mixers.delta.rule import choose_rule
from apriel_assets.serving.vllm_plugin.servable import (
    attention_window,
    check_features,
    check_head_size,
    layer_plan,
)
from apriel_assets.serving.vllm_plugin.token_batch import (
    TokenBatch,
    read_delta_batch,
    read_mamba_batch,
    recur_decodes,
    recur_prompts,
)
from apriel_assets.serving.vllm_plugin.weight_names import weight_name
from tests.hybrid.tiny_teachers import tiny_teacher

ROOT = Path(__file__).parent.parent.parent


def test_vllm_finds_the_plugin_and_only_layers_need_vllm():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    module, function = declared["vllm.general_plugins"]["apriel_hybrid"].split(":")
    assert callable(getattr(import_module(module), function))
    need = set()
    for path in (ROOT / "apriel_assets").rglob("*.py"):
        named = [
            name
            for node in ast.parse(path.read_text()).body
            for name in (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [str(node.module)]
                if isinstance(node, ast.ImportFrom)
                else []
            )
        ]
        if any(name.split(".")[0] == "vllm" for name in named):
            need.add(path.parent)
    assert need == {ROOT / "apriel_assets/serving/vllm_plugin/layers"}


def test_every_tensor_has_a_name_of_its_own(release):
    for engine in (release / "engines").iterdir():
        names = json.loads((engine / "model.safetensors.index.json").read_text())["weight_map"]
        mapped = [weight_name(name) for name in names]
        assert len(set(mapped)) == len(names)
        assert not [name for name in mapped if "mixers" in name or "backbone" in name]
        # vLLM takes these two for a feed-forward block's, wherever they stand.
        assert all(".mlp." in name for name in mapped if ".gate_proj" in name or ".up_proj" in name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("backbone.lm_head.weight", "lm_head.weight"),
        ("backbone.model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.gate_proj.weight"),
        ("backbone.model.layers.1.self_attn.mixers.fa.q_proj.bias", "model.layers.1.self_attn.q_proj.bias"),
        (
            "backbone.model.layers.1.self_attn.mixers.swa.attention.k_norm.weight",
            "model.layers.1.self_attn.k_norm.weight",
        ),
        (
            "backbone.model.layers.12.self_attn.mixers.gdn.gate_proj.weight",
            "model.layers.12.self_attn.output_gate.weight",
        ),
        (
            "backbone.model.layers.2.self_attn.mixers.kda.gate_in_proj.weight",
            "model.layers.2.self_attn.gate_in_proj.weight",
        ),
        ("backbone.model.layers.0.self_attn.mixers.mamba.A_log", "model.layers.0.self_attn.A_log"),
    ],
)
def test_names_by_hand(name, expected):
    assert weight_name(name) == expected


def test_a_plan_says_what_runs(release):
    plan = layer_plan(HybridConfig.from_pretrained(release / "engines" / "fast"))
    assert plan.placement == ("gdn", "swa", "mamba")
    assert plan.recurrent == ("gdn", "mamba")
    assert plan.options_of("swa") == SlidingWindowConfig(window=6)


def test_a_matryoshka_is_refused_and_so_are_unknown_layers(release):
    with pytest.raises(UserError, match="engines/"):
        layer_plan(HybridConfig.from_pretrained(release / "matryoshka"))
    with pytest.raises(UserError, match="this backbone is olmo2"):
        layer_plan(HybridConfig(backbone=tiny_teacher("olmo2").config))


def test_refusals_name_what_was_asked_and_what_is_allowed(release):
    hybrid = layer_plan(HybridConfig.from_pretrained(release / "engines" / "turbo"))
    safe = layer_plan(HybridConfig.from_pretrained(release / "engines" / "safe"))
    asked = {"--tensor-parallel-size": True, "--speculative-config": False}
    with pytest.raises(UserError, match="gdn, kda layers run without --tensor-parallel-size;"):
        check_features(hybrid, asked)
    check_features(hybrid, dict.fromkeys(asked, False))
    check_features(safe, asked)
    with pytest.raises(UserError, match="heads of 32, 64, not 8"):
        check_head_size(8, [64, 32])
    check_head_size(8, [])


def test_windows_are_the_mixers_or_the_teachers():
    full, windowed = FullAttentionConfig(), SlidingWindowConfig(window=9)
    teachers = {kind: tiny_teacher(kind).config for kind in ("llama", "mistral_windowed", "qwen2")}
    assert [attention_window(own, 0, full) for own in teachers.values()] == [None, 6, None]
    assert [attention_window(own, 0, windowed) for own in teachers.values()] == [9, 9, 9]
    mixed = SimpleNamespace(sliding_window=5, layer_types=["full_attention", "sliding_attention"])
    assert [attention_window(mixed, layer, full) for layer in (0, 1)] == [None, 5]


def streams(num_tokens, heads=2, size=4):
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, num_tokens, heads, size, generator=generator)
    decay = -torch.rand(num_tokens, heads, size, generator=generator)
    return (
        q,
        torch.nn.functional.normalize(k, dim=-1),
        v,
        decay,
        torch.rand(num_tokens, heads, generator=generator),
    )


def step(lengths, slots, continues, decode_slots=()):
    starts = torch.tensor([0, *lengths]).cumsum(0)
    return TokenBatch(
        decode_slots=torch.tensor(decode_slots, dtype=torch.int32),
        prompt_slots=torch.tensor(slots, dtype=torch.int32),
        prompt_starts=starts.int(),
        prompt_continues=torch.tensor(continues),
        num_prompt_tokens=sum(lengths),
    )


def recur(operands, states, batch):
    out = torch.full_like(operands[2], torch.nan)
    for run, seq_len in ((recur_decodes, 1), (recur_prompts, 2)):
        run(choose_rule(out.device, out.dtype, seq_len), operands, states, batch, out)
    return out


def test_requests_in_pieces_and_together_equal_each_alone():
    first, second = streams(9), [stream.flip(0) for stream in streams(5)]
    states = torch.full((4, 2, 4, 4), torch.nan)  # what was there before must not be read
    expected = [delta_rule_reference(*(stream[None] for stream in own)) for own in (first, second)]

    def tokens(*pieces):
        return [torch.cat(parts) for parts in zip(*pieces, strict=True)]

    def piece(own, begin, end):
        return [stream[begin:end] for stream in own]

    one = recur(piece(first, 0, 4), states, step([4], [3], [False]))
    # The rest of one prompt, and a new one before it.
    two = recur(tokens(piece(second, 0, 4), piece(first, 4, 8)), states, step([4, 4], [1, 3], [False, True]))
    # Both decode; then the order in the batch turns round.
    three = recur(tokens(piece(first, 8, 9), piece(second, 4, 5)), states, step([], [], [], [3, 1]))
    torch.testing.assert_close(torch.cat([one, two[4:], three[:1]]), expected[0][0][0])
    torch.testing.assert_close(torch.cat([two[:4], three[1:]]), expected[1][0][0])
    torch.testing.assert_close(states[[3, 1]], torch.cat([state for _, state in expected]))
    assert states[[0, 2]].isnan().all()


def test_decoding_requests_come_before_prompts():
    own, states = streams(6), torch.zeros(3, 2, 4, 4)
    together = recur(own, states, step([5], [2], [False], [1]))
    alone = delta_rule_reference(*(stream[None, 1:] for stream in own))[0][0]
    torch.testing.assert_close(together[1:], alone)
    torch.testing.assert_close(
        together[:1], delta_rule_reference(*(stream[None, :1] for stream in own))[0][0]
    )


def test_metadata_of_both_kinds_describes_the_same_batch():
    slots, starts, continues = torch.tensor([4, 7, 2]), torch.tensor([0, 3, 5]), torch.tensor([True, False])
    counts = {"num_decodes": 1, "num_prefills": 2, "num_prefill_tokens": 5}
    delta = SimpleNamespace(
        non_spec_state_indices_tensor=slots, prefill_state_indices=slots[1:], prefill_query_start_loc=starts,
        prefill_has_initial_state=continues, **counts,
    )  # fmt: skip
    mamba = SimpleNamespace(
        state_indices_tensor_d=slots[:1, None], state_indices_tensor_p=slots[1:], query_start_loc_p=starts,
        has_initial_states_p=continues, **counts,
    )  # fmt: skip
    for batch in (read_delta_batch(delta), read_mamba_batch(mamba)):
        assert batch.num_tokens == 6
        assert batch.decode_slots.tolist() == [4]
        assert list(batch.prompts()) == [(slice(1, 4), 7, True), (slice(4, 6), 2, False)]
    none = {"num_decodes": 3, "num_prefills": 0, "num_prefill_tokens": 0}
    decoding = read_delta_batch(
        SimpleNamespace(non_spec_state_indices_tensor=slots, prefill_state_indices=None, **none)
    )
    assert decoding.num_tokens == 3
    assert list(decoding.prompts()) == []
