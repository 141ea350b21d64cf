"""What is written is read back bit for bit, without the teacher; anything else is an error."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from apriel_assets.errors import UserError
from apriel_assets.hybrid.config import MambaConfig, MixerOptions, SlidingWindowConfig
from apriel_assets.hybrid.model import HybridForCausalLM
from tests.hybrid.tiny_teachers import TEACHERS, random_ids, tiny_teacher

OPTIONS = MixerOptions(swa=SlidingWindowConfig(window=5), mamba=MambaConfig(state_size=4, dt_rank=3))


def supernet(kind="llama"):
    model = HybridForCausalLM.from_teacher(tiny_teacher(kind))
    model.name_placement("safe")
    model.convert([0], "mamba", options=OPTIONS)
    model.convert([2], "kda", options=OPTIONS, keep=True)
    model.convert([2], "gdn", options=OPTIONS, keep=True)
    model.set_placement(("mamba", "fa", "fa"))
    model.convert([1], "swa", options=OPTIONS, keep=True)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", TEACHERS)
def test_round_trip_is_bit_for_bit(kind, dtype, tmp_path):
    # Loaded in its dtype, not cast: a cast rounds the rotary frequencies too, which no checkpoint holds.
    supernet(kind).save_pretrained(tmp_path / "first")
    model, ids = AutoModelForCausalLM.from_pretrained(tmp_path / "first", dtype=dtype), random_ids(2, 12)
    model.save_pretrained(tmp_path / "second")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "second")
    assert type(loaded) is HybridForCausalLM
    assert not loaded.training
    before, after = model.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) and after[name].dtype == dtype for name in before)
    assert (loaded.placement, loaded.placements, loaded.mixers) == (
        model.placement,
        model.placements,
        model.mixers,
    )
    assert loaded.config.mixers == model.config.mixers
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    loaded.set_placement("safe")
    model.set_placement("safe")
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert loaded.generation_config.eos_token_id == model.generation_config.eos_token_id


def test_a_pruned_checkpoint_holds_only_its_mixers(tmp_path):
    model = HybridForCausalLM.from_teacher(tiny_teacher())
    model.convert([0, 2], "mamba", options=OPTIONS)
    model.save_pretrained(tmp_path)
    names = load_file(tmp_path / "model.safetensors").keys()
    kinds = {
        name.split("self_attn.mixers.")[1].split(".")[0]
        for name in names
        if "layers.0." in name and "self_attn" in name
    }
    assert kinds == {"mamba"}
    assert "backbone.model.layers.1.self_attn.mixers.fa.q_proj.weight" in names
    assert "backbone.model.layers.0.mlp.up_proj.weight" in names
    assert AutoModelForCausalLM.from_pretrained(tmp_path).mixers == (("mamba",), ("fa",), ("mamba",))


def test_tied_embeddings_are_stored_once_and_stay_tied(tmp_path):
    model = supernet("llama_tied")
    model.save_pretrained(tmp_path)
    assert "backbone.lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight
    assert loaded.lm_head.weight is loaded.backbone.model.embed_tokens.weight


@pytest.mark.parametrize("kind", ["llama", "llama_tied", "qwen3"])
def test_saving_twice_gives_the_same_bytes(kind, tmp_path):
    supernet(kind).save_pretrained(tmp_path / "one")
    AutoModelForCausalLM.from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "two")
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


def edit_weights(path, edit):
    weights = load_file(path / "model.safetensors")
    edit(weights)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


DT_BIAS = "backbone.model.layers.0.self_attn.mixers.mamba.dt_proj.bias"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda weights: weights.update({DT_BIAS: torch.ones(3)}), f"mismatched keys: .*{DT_BIAS}"),
        (lambda weights: weights.pop(DT_BIAS), f"missing keys: {DT_BIAS}"),
        (lambda weights: weights.update(surprise=torch.ones(2)), "unexpected keys: surprise"),
    ],
)
def test_incomplete_checkpoints_are_refused(edit, message, tmp_path):
    supernet().save_pretrained(tmp_path)
    edit_weights(tmp_path, edit)
    with pytest.raises(UserError, match=message):
        HybridForCausalLM.from_pretrained(tmp_path)


def test_a_mixer_this_version_does_not_know_is_refused(tmp_path):
    supernet().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["mixers"][2] = {"retnet": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="unknown mixer 'retnet'"):
        HybridForCausalLM.from_pretrained(tmp_path)


def test_config_says_what_each_layer_holds(tmp_path):
    supernet().save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.model_type == "apriel_hybrid"
    assert config.backbone.model_type == "llama"
    assert config.placement == ["mamba", "swa", "fa"]
    assert config.mixer_options(0) == {"fa": config.mixer_options(2)["fa"], "mamba": OPTIONS.mamba}
    assert config.mixer_options(1)["swa"] == OPTIONS.swa
    assert (config.num_hidden_layers, config.vocab_size, config.hidden_size) == (3, 61, 32)
