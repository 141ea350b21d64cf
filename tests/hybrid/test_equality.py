import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from apriel_assets.distillation.supernet import build_supernet
from apriel_assets.errors import UserError
from apriel_assets.hybrid.equality import largest_difference, tensors_that_differ
from apriel_assets.hybrid.model import HybridForCausalLM

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=64, num_hidden_layers=2, head_dim=8, **SIZES)
    return HybridForCausalLM.from_teacher(LlamaForCausalLM(config).eval())


@pytest.fixture
def supernet(teacher):
    return build_supernet(teacher.backbone, [("fa", "swa", "gdn")] * 2, seed=0)


def test_supernet_with_full_attention_is_the_teacher(teacher, supernet):
    supernet.train().set_placement(("gdn", "swa"))
    assert largest_difference(supernet, teacher) == 0.0
    assert (supernet.placement, supernet.training) == (("gdn", "swa"), True)  # left as it was
    assert (teacher.placement, teacher.training) == (("fa", "fa"), False)


def test_one_changed_weight_of_attention_is_seen(teacher, supernet):
    with torch.no_grad():
        supernet.banks[1].mixers["fa"].o_proj.weight[0, 0] += 1e-2
    assert largest_difference(supernet, teacher) > 0
    with torch.no_grad():
        supernet.banks[1].mixers["fa"].o_proj.weight[0, 0] = torch.nan
    assert largest_difference(supernet, teacher) != 0  # NaN is not 0


def test_what_a_mixer_does_is_seen_under_its_placement_alone(supernet):
    other = build_supernet(supernet.backbone, [("fa", "swa", "gdn")] * 2, seed=0)
    with torch.no_grad():
        other.banks[0].mixers["gdn"].out_proj.weight.mul_(2)
    assert largest_difference(other, supernet, ("swa", "gdn")) == 0.0
    assert largest_difference(other, supernet, ("gdn", "swa")) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_and_loaded_is_the_same_until_it_is_changed(dtype, supernet, tmp_path):
    supernet = supernet.to(dtype)
    supernet.save_pretrained(tmp_path)
    assert tensors_that_differ(supernet, tmp_path) == []
    with torch.no_grad():
        supernet.banks[0].mixers["gdn"].out_proj.weight[0, 0] += 1
    assert tensors_that_differ(supernet, tmp_path) == [
        "backbone.model.layers.0.self_attn.mixers.gdn.out_proj.weight"
    ]


def test_incomplete_checkpoint_is_refused(supernet, tmp_path):
    supernet.save_pretrained(tmp_path)
    supernet.convert([0], "kda", keep=True)
    supernet.config.save_pretrained(tmp_path)  # now asks for weights that the file lacks
    with pytest.raises(UserError, match="missing keys"):
        tensors_that_differ(supernet, tmp_path)
