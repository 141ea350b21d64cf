"""The store's log-probs are the teacher's own, whatever the temperature; shares; refusals."""

import pytest
import torch

from apriel_assets.bundled.tokenizer import build_tokenizer
from apriel_assets.distillation.batches import Traces
from apriel_assets.distillation.causal_lm import final_hidden_states, lm_head
from apriel_assets.distillation.losses import token_log_probs
from apriel_assets.errors import UserError
from apriel_assets.evaluation.tasks.problems import Problem, verify
from apriel_assets.scoring.config import StoreConfig
from apriel_assets.scoring.store import even_shares, sample_store
from tests.scoring.tiny_hybrid import TASKS, make_hybrid

TOKENIZER = build_tokenizer()


def make_teacher():
    teacher = make_hybrid(noise=0.3, vocab_size=len(TOKENIZER))
    teacher.generation_config.eos_token_id = TOKENIZER.eos_token_id
    return teacher


def make_store(teacher, **settings):
    config = StoreConfig(**{"problems": 5, "samples": 3, "max_new_tokens": 12, **settings})
    return sample_store(teacher, TOKENIZER, TASKS, config, seed=0)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_teacher_forced_log_probs_equal_the_stored_ones(temperature):
    teacher = make_teacher()
    table = make_store(teacher, temperature=temperature, batch_size=7)
    traces = Traces.from_completions(table)
    batch = traces.batch(range(len(traces)))
    with torch.no_grad():
        hidden = final_hidden_states(teacher, batch.input_ids, batch.attention_mask)
        log_probs, is_top = token_log_probs(hidden[batch.mask], lm_head(teacher), batch.targets[batch.mask])
    stored = torch.tensor([value for row in table.column("log_probs").to_pylist() for value in row])
    torch.testing.assert_close(log_probs, stored, atol=1e-4, rtol=0)
    assert bool(is_top.all()) == (temperature == 0)


def test_rows_say_what_was_sampled():
    table = make_store(make_teacher())
    assert table.num_rows == 15
    for row in table.to_pylist():
        assert row["prompt_token_ids"] == TOKENIZER(row["prompt"]).input_ids
        assert TOKENIZER.decode(row["token_ids"], skip_special_tokens=True) == row["completion"]
        assert row["finished"] == (row["token_ids"][-1] == TOKENIZER.eos_token_id)
        problem = Problem(
            task=row["task"],
            problem_id=row["problem_id"],
            prompt=row["prompt"],
            trace="",
            answer=row["answer"],
        )
        assert row["correct"] == verify(row["task"], problem, row["completion"])
        assert row["top_k_token_ids"] is None
    assert len({tuple(row["token_ids"]) for row in table.to_pylist()}) > 5  # samples vary


def test_same_seed_same_store():
    assert make_store(make_teacher()) == make_store(make_teacher())


def test_top_k_holds_the_sampled_token_where_it_is_among_the_likeliest():
    teacher = make_teacher()
    table = make_store(teacher, top_k_log_probs=4)
    hits = 0
    for row in table.to_pylist():
        assert len(row["top_k_token_ids"]) == len(row["token_ids"])
        for token, log_prob, ids, top in zip(
            row["token_ids"], row["log_probs"], row["top_k_token_ids"], row["top_k_log_probs"], strict=True
        ):
            assert top == sorted(top, reverse=True)
            if token in ids:
                hits += 1
                assert top[ids.index(token)] == pytest.approx(log_prob, abs=1e-4)
            else:
                assert log_prob <= top[-1] + 1e-4
    assert hits > 10


def test_tasks_share_the_problems_evenly():
    assert even_shares(7, 3) == [3, 2, 2]
    tasks = make_store(make_teacher(), samples=1).column("task").to_pylist()
    assert tasks == ["recall"] * 3 + ["arithmetic"] * 2


def test_refuses_more_tokens_than_the_vocabulary_has():
    with pytest.raises(UserError, match="exceeds the vocabulary"):
        make_store(make_teacher(), top_k_log_probs=10_000)
