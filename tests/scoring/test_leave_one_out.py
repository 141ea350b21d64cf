"""Layer scores against a loop without reuse, their ranking, and what they refuse."""

import pytest
import torch

from apriel_assets.bundled.tokenizer import build_tokenizer
from apriel_assets.errors import UserError
from apriel_assets.scoring import leave_one_out
from apriel_assets.scoring.config import LooConfig
from apriel_assets.scoring.leave_one_out import layer_divergences, score_layers, spread_choice
from apriel_assets.scoring.prefix import count_layers
from tests.scoring.tiny_hybrid import TASKS, make_hybrid, make_problem_set, make_random_traces

TOKENIZER = build_tokenizer()


def naive_divergences(model, traces):
    """One trace at a time, whole passes, whole logits."""
    sums, tokens = torch.zeros(model.num_layers, 2, dtype=torch.float64), 0
    for index in range(len(traces)):
        batch = traces.batch([index])
        with torch.no_grad():
            log_m = model(batch.input_ids).logits.log_softmax(-1)[batch.mask].double()
            tokens += len(log_m)
            for layer in range(model.num_layers):
                with model.skip_mixers([layer]):
                    log_w = model(batch.input_ids).logits.log_softmax(-1)[batch.mask].double()
                sums[layer, 0] += (log_w.exp() * (log_w - log_m)).sum()
                sums[layer, 1] += (log_m.exp() * (log_m - log_w)).sum()
    return (sums / tokens).tolist()


@pytest.mark.parametrize("swapped", [[], [1]])
def test_scores_equal_the_naive_loop(swapped):
    model, traces = make_hybrid(noise=0.1), make_random_traces(10)
    model.convert(swapped, "mamba")
    expected = naive_divergences(model, traces)
    for batch_size in (1, 4, 64):
        actual = layer_divergences(model, traces, batch_size)
        for mine, plain in zip(actual, expected, strict=True):
            assert mine == pytest.approx(plain, abs=1e-5)
    assert min(min(pair) for pair in expected) > 1e-3  # there is something to compare


@pytest.mark.parametrize("num_layers", [1, 5, 12])
def test_mixers_evaluated(num_layers):
    model, traces = make_hybrid(num_hidden_layers=num_layers), make_random_traces(2)
    with count_layers(model) as counts:
        layer_divergences(model, traces, batch_size=2)
    assert counts.mixers == num_layers * (num_layers + 1) // 2  # the naive loop: num_layers ** 2
    if num_layers == 12:
        assert counts.mixers <= 0.55 * num_layers**2


def test_a_mixer_that_adds_nothing_ranks_first():
    model = make_hybrid(noise=0.1, vocab_size=len(TOKENIZER))
    with torch.no_grad():
        model.banks[1].mixers["fa"].o_proj.weight.zero_()
    rows = score_layers(model, TOKENIZER, make_problem_set(), LooConfig()).to_pylist()
    assert rows[1]["rank"] == 0
    assert rows[1]["kl_nats"] == pytest.approx(0, abs=1e-6)
    assert [row["layer"] for row in rows] == [0, 1, 2]
    assert sorted(row["rank"] for row in rows) == [0, 1, 2]
    importances = {row["rank"]: row["importance"] for row in rows}
    assert importances[0] < importances[1] < importances[2]


def test_ties_go_to_the_lower_layer():
    model = make_hybrid(vocab_size=len(TOKENIZER))
    with torch.no_grad():
        for bank in model.banks:
            bank.mixers["fa"].o_proj.weight.zero_()
    rows = score_layers(model, TOKENIZER, make_problem_set(), LooConfig()).to_pylist()
    assert [row["rank"] for row in rows] == [0, 1, 2]


def test_accuracy_ranks_by_what_is_lost(monkeypatch):
    model = make_hybrid(noise=0.1, vocab_size=len(TOKENIZER))
    right_without = {frozenset(): 4, frozenset([0]): 4, frozenset([1]): 1, frozenset([2]): 3}  # of 6 problems

    def answers(model, tokenizer, task, problems, config):
        right = right_without[model._skipped]
        return [index < right for index in range(6)] if task is TASKS[0] else []

    monkeypatch.setattr(leave_one_out, "answer_problems", answers)
    rows = score_layers(
        model, TOKENIZER, make_problem_set(), LooConfig(metric="accuracy"), tasks=TASKS
    ).to_pylist()
    assert [row["accuracy"] for row in rows] == pytest.approx([4 / 6, 1 / 6, 3 / 6])
    assert [row["importance"] for row in rows] == pytest.approx([0, 3 / 6, 1 / 6])
    assert [row["rank"] for row in rows] == [0, 2, 1]


def test_accuracy_generates_for_real():
    model = make_hybrid(vocab_size=len(TOKENIZER))
    rows = score_layers(model, TOKENIZER, make_problem_set(4), LooConfig(metric="accuracy"), tasks=TASKS)
    assert set(rows.column("accuracy").to_pylist()) == {0.0}  # it knows nothing


def test_the_model_comes_back_as_it_was():
    model, traces = make_hybrid(), make_random_traces(4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    layer_divergences(model, traces, batch_size=4)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_choice_of_problems_keeps_the_tasks_shares():
    chosen = spread_choice(make_problem_set(12), 4)
    assert [problem.task for problem in chosen] == ["recall", "recall", "arithmetic", "arithmetic"]


def test_refuses_no_problems():
    with pytest.raises(UserError, match="no traces"):
        score_layers(make_hybrid(vocab_size=len(TOKENIZER)), TOKENIZER, [], LooConfig())


def test_refuses_accuracy_of_tasks_that_nobody_can_judge():
    model = make_hybrid(vocab_size=len(TOKENIZER))
    with pytest.raises(UserError, match="arithmetic"):
        score_layers(model, TOKENIZER, make_problem_set(), LooConfig(metric="accuracy"), tasks=TASKS[:1])
