"""Traces and batches: masks by hand, batches as a function of (seed, step), refusals."""

import pytest
import torch

from apriel_assets.bundled.tokenizer import build_tokenizer
from apriel_assets.distillation.batches import BatchOrder, Traces, check_tokenizers
from apriel_assets.errors import UserError

THREE = Traces(prompts=((1, 5, 6), (1, 7), (1, 5)), completions=((8, 2), (9, 9, 9, 2), (2,)))


def test_batch_by_hand():
    batch = THREE.batch([0, 1])
    assert batch.input_ids.tolist() == [[1, 5, 6, 8, 2], [1, 7, 9, 9, 9]]
    assert batch.targets.tolist() == [[5, 6, 8, 2, 0], [7, 9, 9, 9, 2]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1]]
    # the last prompt token predicts the first completion token; end-of-sequence is learnt, what follows it is
    # not
    assert batch.mask.int().tolist() == [[0, 0, 1, 1, 0], [0, 1, 1, 1, 1]]


@pytest.mark.parametrize("longest", [64, 65, 66, 193, 257])
def test_no_batch_has_a_width_at_which_cudnn_attention_loses_gradients(longest):
    traces = Traces(prompts=((1,) * 9, (1,) * 5), completions=((3,) * (longest - 9), (4, 2)))
    batch = traces.batch([0, 1])
    assert batch.input_ids.shape[1] == longest - 1 + (longest in (65, 193))
    assert batch.input_ids.shape[1] % 128 != 64
    assert batch.attention_mask.sum(1).tolist() == [longest - (longest not in (65, 193)), 7]
    assert batch.mask.sum(1).tolist() == [longest - 9, 2]


def test_loss_carrying_positions_are_exactly_the_completion_tokens():
    batch = THREE.batch([2, 0, 1])
    chosen = [row[mask].tolist() for row, mask in zip(batch.targets, batch.mask, strict=True)]
    assert chosen == [list(THREE.completions[i]) for i in (2, 0, 1)]
    assert (batch.attention_mask.sum(1) >= batch.mask.sum(1)).all()


def test_text_ends_with_end_of_sequence_and_begins_with_the_tokenizers_start():
    tokenizer = build_tokenizer()
    words = [w for w in tokenizer.get_vocab() if not w.startswith("<")][:3]
    traces = Traces.from_text([(words[0], f" {words[1]} {words[2]}")], tokenizer)
    assert traces.prompts == ((tokenizer.bos_token_id, tokenizer.get_vocab()[words[0]]),)
    assert traces.completions[0][-1] == tokenizer.eos_token_id
    assert tokenizer.decode(traces.completions[0][:-1]) == f"{words[1]} {words[2]}"


def test_a_batch_depends_on_seed_and_step_alone():
    lengths = [7 + i % 13 for i in range(50)]
    order, again = BatchOrder(lengths, 4, seed=3), BatchOrder(lengths, 4, seed=3)
    forwards = [order.indices(step) for step in range(30)]
    assert [again.indices(step) for step in reversed(range(30))] == forwards[::-1]
    assert [BatchOrder(lengths, 4, seed=4).indices(step) for step in range(30)] != forwards


def test_an_epoch_holds_no_trace_twice_and_the_next_is_another_permutation():
    order = BatchOrder([5] * 50, 4, seed=0)
    epochs = [[order.indices(12 * epoch + step) for step in range(12)] for epoch in range(2)]
    for epoch in epochs:
        seen = [index for batch in epoch for index in batch]
        assert len(seen) == len(set(seen)) == 48  # the last two wait
    assert epochs[0] != epochs[1]


def test_buckets_halve_the_padding():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(10, 100, (640,), generator=generator).tolist()
    order = BatchOrder(lengths, 16, seed=0)

    def padding(batches):
        return sum(16 * max(batch) - sum(batch) for batch in batches)

    bucketed = [[lengths[i] for i in order.indices(step)] for step in range(40)]
    assert padding(bucketed) < padding([lengths[i : i + 16] for i in range(0, 640, 16)]) / 2


def test_truncates_only_when_told_to(caplog):
    assert THREE.limited(6, "refuse") == THREE
    with pytest.raises(UserError, match=r"1 of 3 traces .*trace 1 has 6"):
        THREE.limited(5, "refuse")
    cut = THREE.limited(5, "truncate")
    assert cut.completions == ((8, 2), (9, 9, 9), (2,))
    assert "cut 1 of 3" in caplog.text
    with pytest.raises(UserError, match="prompt of trace 0 has 3 tokens"):
        THREE.limited(3, "truncate")


@pytest.mark.parametrize(
    ("prompts", "completions", "message"),
    [
        ((), (), "no traces"),
        (((1,),), ((),), "trace 0 has an empty completion"),
        (((),), ((2,),), "empty prompt"),
    ],
)
def test_refuses_empty_traces(prompts, completions, message):
    with pytest.raises(UserError, match=message):
        Traces(prompts, completions)


def test_refuses_no_text_at_all():
    with pytest.raises(UserError, match="no traces"):
        Traces.from_text([], build_tokenizer())


def test_refuses_token_ids_beyond_the_embedding():
    THREE.check_vocabulary(10)
    with pytest.raises(UserError, match="token id 9, the model's embedding has 9 rows"):
        THREE.check_vocabulary(9)


def test_refuses_two_tokenizers():
    first, second = build_tokenizer(), build_tokenizer()
    check_tokenizers(first, second)
    second.add_tokens(["zebra"])
    with pytest.raises(UserError, match=r"differ in 1 tokens .*zebra"):
        check_tokenizers(first, second)


def test_refuses_a_batch_larger_than_the_traces():
    with pytest.raises(UserError, match="batch_size=4 but only 3 traces"):
        BatchOrder([5, 5, 5], 4, seed=0)
