"""Packed rows against padded ones and against each sequence alone: outputs, gradients, and that nothing leaks."""

import pytest
import torch

from apriel_assets.distillation.batches import Traces
from apriel_assets.distillation.causal_lm import final_hidden_states
from apriel_assets.distillation.supernet import build_supernet
from apriel_assets.errors import UserError
from apriel_assets.hybrid.attention import packable
from apriel_assets.hybrid.packing import Packing
from tests.hybrid.tiny_teachers import TEACHERS, tiny_teacher

MIXERS = ("fa", "swa", "gdn", "kda", "mamba")
LENGTHS = (3, 17, 9, 1, 12)


def make_batch(lengths=LENGTHS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(3, 59, (length + 1,), generator=generator).tolist() for length in lengths]
    return Traces(tuple((row[0],) for row in rows), tuple(tuple(row[1:]) for row in rows)).batch(
        range(len(rows))
    )


def make_model(mixer, **settings):
    model = build_supernet(
        tiny_teacher(**settings), [("fa", *({mixer} - {"fa"}))] * 3, options={"swa": {"window": 4}}
    )
    model.set_placement((mixer, "fa", mixer))
    return model.eval()


def packed_states(model, batch):
    packed = batch.packed()
    with packable(model):
        return final_hidden_states(model, packed.input_ids, packing=packed.packing), packed


@pytest.mark.parametrize("mixer", MIXERS)
def test_packed_rows_are_the_padded_ones(mixer):
    model, batch = make_model(mixer), make_batch()
    real = batch.attention_mask.bool()
    padded = model.final_hidden_states(batch.input_ids, batch.attention_mask)[real]
    packed, _ = packed_states(model, batch)
    assert packed.shape[:2] == (1, int(real.sum()))
    torch.testing.assert_close(packed[0], padded, atol=2e-5, rtol=1e-4)

    pull = torch.randn(padded.shape)
    parameters = [p for p in model.parameters() if p.requires_grad]
    ours = torch.autograd.grad((packed[0] * pull).sum(), parameters, allow_unused=True)
    theirs = torch.autograd.grad((padded * pull).sum(), parameters, allow_unused=True)
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine is None) == (other is None)
        if mine is not None:
            torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("mixer", MIXERS)
def test_no_sequence_sees_another(mixer):
    model, batch = make_model(mixer), make_batch()
    before, packed = packed_states(model, batch)
    batch.input_ids[1, 0] = 60  # the first token of the second sequence: everything else in it may change
    after, _ = packed_states(model, batch)
    rows = packed.packing.places // packed.packing.seq_len
    changed = (before != after).any(-1)[0]
    assert set(rows[changed].tolist()) == {1}
    assert changed[rows == 1].all()


@pytest.mark.parametrize("kind", TEACHERS)
def test_a_plain_teacher_takes_packed_rows(kind):
    teacher, batch = tiny_teacher(kind), make_batch()
    padded = final_hidden_states(teacher, batch.input_ids, batch.attention_mask)[batch.attention_mask.bool()]
    packed, _ = packed_states(teacher, batch)
    torch.testing.assert_close(packed[0], padded, atol=2e-5, rtol=1e-4)
    assert teacher.config._attn_implementation == "sdpa"


def test_unpacking_is_the_way_back():
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1]])
    packing, values = Packing.of(mask), torch.arange(18.0).view(3, 3, 2)
    assert packing.positions.tolist() == [[0, 1, 0, 0, 1, 2]]
    torch.testing.assert_close(packing.unpack(packing.pack(values)), values * mask[..., None])


def test_another_attention_is_refused():
    teacher = tiny_teacher(attention="eager")
    with pytest.raises(UserError, match="packing runs on attention sdpa, not eager"), packable(teacher):
        pass
