import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, GPTNeoXConfig
from transformers.cache_utils import DynamicCache

from apriel_assets.errors import UserError
from apriel_assets.hybrid.config import MambaConfig, MixerOptions, SlidingWindowConfig
from apriel_assets.hybrid.model import HybridForCausalLM
from tests.hybrid.tiny_teachers import TEACHERS, random_ids, tiny_teacher

OPTIONS = {"swa": SlidingWindowConfig(window=8), "mamba": MambaConfig(state_size=4)}


@pytest.fixture
def model():
    return HybridForCausalLM.from_teacher(tiny_teacher())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", TEACHERS)
@torch.no_grad()
def test_all_fa_is_the_teacher_bit_for_bit(kind, attention):
    teacher = tiny_teacher(kind, attention)
    model, ids = HybridForCausalLM.from_teacher(teacher), random_ids(2, 19)
    mask = torch.tensor([[1] * 19, [0] * 7 + [1] * 12])
    assert torch.equal(model(ids).logits, teacher(ids).logits)
    assert torch.equal(model(ids, use_cache=False).logits, teacher(ids, use_cache=False).logits)
    ours, theirs = (m(ids[:, :11], attention_mask=mask[:, :11]) for m in (model, teacher))
    assert torch.equal(ours.logits, theirs.logits)
    for start, end in ((11, 12), (12, 19)):
        ours, theirs = (
            m(ids[:, start:end], attention_mask=mask[:, :end], past_key_values=before.past_key_values)
            for m, before in ((model, ours), (teacher, theirs))
        )
        assert torch.equal(ours.logits, theirs.logits)
    assert model.backbone.config._attn_implementation == attention
    assert torch.equal(model.generate(ids, max_new_tokens=5), teacher.generate(ids, max_new_tokens=5))


@torch.no_grad()
def test_all_fa_takes_transformers_own_caches(model):
    ids = random_ids(1, 9)
    cache = DynamicCache(config=model.backbone.config)
    model(ids[:, :4], past_key_values=cache)
    torch.testing.assert_close(model(ids[:, 4:], past_key_values=cache).logits, model(ids).logits[:, 4:])


def test_attention_can_be_switched_after_loading(model):
    ids = random_ids(1, 9)
    model.convert([1], "swa", options=OPTIONS)
    before = model(ids).logits
    model.set_attn_implementation("eager")
    assert model.banks[0].mixers["fa"].config._attn_implementation == "eager"
    torch.testing.assert_close(model(ids).logits, before)


@torch.no_grad()
def test_final_hidden_states_are_what_the_head_reads(model):
    model.convert([1], "mamba", options=OPTIONS)
    ids, mask = random_ids(2, 9), torch.tensor([[1] * 9, [0] * 3 + [1] * 6])
    hidden = model.final_hidden_states(ids, mask)
    assert torch.equal(model.lm_head(hidden), model(ids, attention_mask=mask, use_cache=False).logits)


def test_copy_leaves_the_teacher_alone_and_no_copy_takes_it_over():
    teacher, ids = tiny_teacher(), random_ids(1, 5)
    before = teacher(ids).logits
    copied = HybridForCausalLM.from_teacher(teacher)
    copied.convert([0, 1, 2], "mamba")
    assert torch.equal(teacher(ids).logits, before)
    assert HybridForCausalLM.from_teacher(teacher, copy=False).backbone is teacher


def test_a_hybrids_backbone_can_be_the_teacher_again(model):
    ids = random_ids(1, 5)
    assert torch.equal(HybridForCausalLM.from_teacher(model.backbone)(ids).logits, model(ids).logits)
    model.convert([1], "mamba")
    with pytest.raises(UserError, match=r"layers \[1\] hold no full attention any more"):
        HybridForCausalLM.from_teacher(model.backbone)


@torch.no_grad()
@pytest.mark.parametrize("layers", [[0], [1, 2], [0, 1, 2]])
def test_skipped_mixers_add_nothing(layers):
    teacher, ids = tiny_teacher(), random_ids(2, 12)
    model = HybridForCausalLM.from_teacher(teacher)
    silenced = copy.deepcopy(teacher)
    for layer in layers:
        silenced.model.layers[layer].self_attn.o_proj.weight.zero_()
    expected = silenced(ids).logits
    with model.skip_mixers(layers):
        torch.testing.assert_close(model(ids).logits, expected)
        head = model(ids[:, :5])
        tail = model(ids[:, 5:], past_key_values=head.past_key_values)
        torch.testing.assert_close(tail.logits, expected[:, 5:])
        assert tail.past_key_values.get_seq_length() == 12
        torch.testing.assert_close(
            model.generate(ids, max_new_tokens=4), silenced.generate(ids, max_new_tokens=4)
        )
    assert torch.equal(model(ids).logits, teacher(ids).logits)


def test_skipping_ends_with_an_error_too(model):
    with pytest.raises(UserError, match="layers 0 to 2"), model.skip_mixers([3]):
        pass
    with pytest.raises(ZeroDivisionError), model.skip_mixers([1]):
        raise ZeroDivisionError
    assert model._layout() == ("fa", "fa", "fa")


@torch.no_grad()
def test_convert_replaces_or_keeps(model):
    ids, teacher = random_ids(1, 8), tiny_teacher()
    model.convert([1], "mamba", keep=True, options=OPTIONS)
    model.convert([2], "swa", options=OPTIONS)
    assert model.placement == ("fa", "mamba", "swa")
    assert model.mixers == (("fa",), ("fa", "mamba"), ("swa",))
    model.set_placement(("fa", "fa", "swa"))
    torch.testing.assert_close(model(ids).logits, teacher(ids).logits)  # 8 tokens fit the window of 8
    model.prune()
    assert model.mixers == (("fa",), ("fa",), ("swa",))
    assert not [name for name in model.state_dict() if ".mamba." in name]


def test_named_placements_keep_their_mixers(model):
    model.name_placement("safe")
    model.convert([0, 1], "mamba", options=OPTIONS)
    model.name_placement("turbo")
    model.set_placement("safe")
    model.prune()
    assert model.mixers == (("fa", "mamba"), ("fa", "mamba"), ("fa",))
    model.set_placement("turbo")
    assert model.placement == ("mamba", "mamba", "fa")


@pytest.mark.parametrize(
    ("placement", "message"),
    [
        (("fa", "fa"), "2 mixers for 3 layers"),
        (("fa", "mamba", "fa"), "layer 1 holds no 'mamba', only fa"),
        ("turbo", "no placement 'turbo'; named: none"),
    ],
)
def test_placements_the_model_cannot_run_are_refused(model, placement, message):
    with pytest.raises(UserError, match=message):
        model.set_placement(placement)
    assert model.placement == ("fa", "fa", "fa")


@pytest.mark.parametrize(
    ("layers", "mixer", "message"),
    [
        ([0, 3], "mamba", r"layers \[3\] do not exist"),
        ([0], "fa", "cannot convert to 'fa'"),
        ([0], "rnn", "unknown mixer 'rnn'"),
        ([0, 2], "swa", r"layers \[2\] hold no full attention"),
    ],
)
def test_conversions_that_cannot_be_done_change_nothing(model, layers, mixer, message):
    model.convert([2], "mamba", options=OPTIONS)
    before = model.mixers, model.placement
    with pytest.raises(UserError, match=message):
        model.convert(layers, mixer)
    assert (model.mixers, model.placement) == before


def gradients(model, ids, checkpointing, between=lambda: None):
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train().zero_grad()
    mask = torch.tensor([[1] * 12, [0] * 5 + [1] * 7])
    loss = model(ids, attention_mask=mask, labels=ids).loss
    between()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_recomputed_layers_see_the_pass_they_belong_to(model):
    """Another placement, batch and mask run between the forward pass and its recomputation."""
    model.convert([0], "mamba", keep=True, options=OPTIONS)
    model.convert([1], "swa", keep=True, options=OPTIONS)
    ids = random_ids(2, 12)

    def meanwhile():
        placement = model.placement
        model.set_placement(("fa", "fa", "fa"))
        model(random_ids(3, 7), labels=random_ids(3, 7))
        model.set_placement(("mamba", "fa", "fa") if placement[0] == "fa" else ("fa", "swa", "fa"))

    plain = gradients(copy.deepcopy(model), ids, checkpointing=False)
    recomputed = gradients(model, ids, checkpointing=True, between=meanwhile)
    assert plain.keys() == recomputed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, msg=name)


def test_unsampled_mixers_get_no_gradient(model):
    model.convert([0], "mamba", keep=True, options=OPTIONS)
    model(random_ids(1, 6), labels=random_ids(1, 6)).loss.backward()
    assert all(p.grad is None for p in model.banks[0].mixers["fa"].parameters())


def test_a_layer_on_its_own_says_what_it_lacks(model):
    with pytest.raises(RuntimeError, match="gradient_checkpointing_enable"):
        model.banks[0](hidden_states=torch.zeros(1, 2, 32))


def test_packed_rows_and_prepared_masks_are_refused(model):
    model.convert([0], "mamba", options=OPTIONS)
    ids, packed = random_ids(1, 6), torch.tensor([[0, 1, 2, 0, 1, 2]])
    with pytest.raises(ValueError, match="packed sequences"):
        model(ids, position_ids=packed, use_cache=False)
    with pytest.raises(ValueError, match=r"mask as \[batch, seq\]"):
        model(ids, attention_mask=torch.ones(1, 1, 6, 6))


def test_training_makes_no_cache_unless_asked(model):
    assert model.train()(random_ids(1, 4)).past_key_values is None
    assert model.eval()(random_ids(1, 4)).past_key_values is not None


def test_models_without_the_usual_attention_are_refused_by_name():
    config = GPTNeoXConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    with pytest.raises(UserError, match="GPTNeoXForCausalLM has 0 lists of 2 decoder layers"):
        HybridForCausalLM.from_teacher(AutoModelForCausalLM.from_config(config))


def test_attention_without_the_usual_arguments_is_refused_by_name():
    class OddAttention(torch.nn.Module):
        def forward(self, hidden_states, attention_mask=None):
            return hidden_states, None

    teacher = tiny_teacher()
    teacher.model.layers[1].self_attn = OddAttention()
    with pytest.raises(
        UserError, match="layer 1: OddAttention does not take position_embeddings, past_key_values"
    ):
        HybridForCausalLM.from_teacher(teacher)


def test_options_may_be_an_object_with_one_field_per_mixer(model):
    model.convert([0], "swa", options=MixerOptions(swa=SlidingWindowConfig(window=5)))
    assert model.banks[0].mixers["swa"].window == 5
