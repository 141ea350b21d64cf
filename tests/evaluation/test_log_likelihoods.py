"""Which rows share a prefill, and that no request is lost."""

import random

import pytest
import torch

from apriel_assets.evaluation import log_likelihoods as module
from apriel_assets.evaluation.log_likelihoods import (
    Request,
    log_likelihoods,
    make_rows,
    plan_batches,
    token_log_probs,
)
from apriel_assets.hybrid.model import HybridForCausalLM

EXAMPLES = tuple(range(100, 140))


def choices(question, answers):
    return [Request((*EXAMPLES, *question), answer) for answer in answers]


def test_last_tokens_of_one_context_share_a_row():
    rows = make_rows(choices((1, 2), [(3,), (4,), (5, 6), (5, 7)]))
    assert [(row.tokens[-2:], row.asked, row.first) for row in rows] == [
        ((1, 2), [0, 1], 41),
        ((2, 5), [2, 3], 41),
    ]


def test_rows_that_begin_alike_share_what_predicts_nothing():
    requests = [own for number in range(4) for own in choices((number, 9), [(3, 1), (4, 1)])]
    (batch,) = plan_batches(make_rows(requests), 10**6, None, least_saved=1)
    assert batch.shared == len(EXAMPLES)
    assert len(batch.rows) == 8
    assert batch.num_tokens == 40 + 8 * 3
    assert batch.input_ids(batch.shared).shape == (8, 3)
    # A continuation that begins within the examples is asked of positions that sharing would not read.
    early = Request(EXAMPLES[:20], EXAMPLES[20:])
    *shared, alone = plan_batches(make_rows([*requests, early]), 10**6, None, least_saved=1)
    assert (alone.shared, alone.rows[0].asked) == (0, [8])
    assert [len(batch.rows) for batch in shared] == [8]


def test_the_partition_saves_the_most():
    """Two questions with many choices each, after few common tokens: each question for itself, then the other way."""
    deep = [Request((*EXAMPLES[:5], *([number] * 40)), (1, i)) for number in (1, 2) for i in range(2, 8)]
    deep = [Request(own.context, (i, 1)) for i, own in enumerate(deep)]
    assert sorted(b.shared for b in plan_batches(make_rows(deep), 10**6, None, least_saved=1)) == [44, 44]
    flat = [Request((*EXAMPLES, number), (i, 1)) for number in (1, 2, 3) for i in (4, 5)]
    assert [b.shared for b in plan_batches(make_rows(flat), 10**6, None, least_saved=1)] == [40]


def test_little_that_is_shared_is_read_again():
    requests = choices((1,), [(3, 1), (4, 1)])
    assert [b.shared for b in plan_batches(make_rows(requests), 10**6, None, least_saved=40)] == [0]
    assert [b.shared for b in plan_batches(make_rows(requests), 10**6, None, least_saved=39)] == [40]
    assert [b.shared for b in plan_batches(make_rows(requests), 10**6, None, least_saved=None)] == [0]


@pytest.mark.parametrize("seed", range(20))
def test_every_request_is_in_one_batch_within_the_limits(seed):
    rng = random.Random(seed)
    requests = []
    for _ in range(60):
        base = EXAMPLES[: rng.choice((0, 10, 25, 40))]
        context = (*base, *(rng.randrange(3) for _ in range(rng.randint(1, 30))))
        requests.append(Request(context, tuple(rng.randrange(3) for _ in range(rng.randint(1, 6)))))
    batches = plan_batches(make_rows(requests), 200, 7, least_saved=rng.choice((None, 1, 50)))
    assert sorted(p for b in batches for row in b.rows for p in row.asked) == list(range(60))
    for batch in batches:
        assert len(batch.rows) <= 7
        assert len(batch.rows) == 1 or batch.num_tokens - batch.shared <= 200
        assert len({row.tokens[: batch.shared] for row in batch.rows}) == 1
        assert all(row.first >= batch.shared for row in batch.rows)


@pytest.mark.parametrize("mixers", [("fa", "fa"), ("mamba", "fa"), ("gdn", "kda"), ("swa", "mamba")])
@torch.no_grad()
def test_shared_prefills_change_no_answer(tiny_llama, mixers, monkeypatch):
    model = HybridForCausalLM.from_teacher(tiny_llama(seed=3))
    for layer, mixer in enumerate(mixers):
        if mixer != "fa":
            model.convert([layer], mixer, seed=layer, options={"swa": {"window": 16}})
    model.eval()
    rng = random.Random(0)
    base = [rng.randrange(3, 60) for _ in range(50)]
    requests = [
        Request(
            (*base, *(rng.randrange(3, 60) for _ in range(rng.randint(0, 9)))),
            tuple(rng.choices(range(3, 60), k=n)),
        )
        for n in (1, 2, 5, 1, 3, 4)
    ]
    found = {}
    monkeypatch.setattr(module, "least_saved", lambda model: 200)
    log_likelihoods(model, requests, max_tokens=60, answered=lambda i, answer: found.update({i: answer}))
    assert plan_batches(make_rows(requests), 60, None, least_saved=200)[0].shared == 49
    for position, request in enumerate(requests):
        ids = torch.tensor([[*request.context, *request.continuation]])
        logits = model(ids, use_cache=False).logits[0, len(request.context) - 1 : -1].log_softmax(-1)
        expected = logits.gather(-1, torch.tensor(request.continuation)[:, None]).sum().item()
        assert found[position][0] == pytest.approx(expected, abs=1e-4)
        assert found[position][1] == (tuple(logits.argmax(-1).tolist()) == request.continuation)


def test_chunked_log_probs_are_those_of_the_whole(monkeypatch):
    torch.manual_seed(0)
    head, hidden, targets = torch.nn.Linear(8, 20, bias=False), torch.randn(7, 8), torch.randint(0, 20, (7,))
    monkeypatch.setitem(module._CHUNK_LOGITS, "cpu", 45)  # two tokens a chunk
    monkeypatch.setattr(module, "_LEAST_CHUNK", 1)
    log_probs, is_top = token_log_probs(hidden, head, targets)
    whole = head(hidden).log_softmax(-1)
    torch.testing.assert_close(log_probs, whole.gather(-1, targets[:, None])[:, 0])
    assert is_top.tolist() == (whole.argmax(-1) == targets).tolist()
