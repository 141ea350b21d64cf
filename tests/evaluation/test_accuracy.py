import copy

import numpy as np
import pytest
import torch

from apriel_assets.distillation.batches import Traces
from apriel_assets.errors import UserError
from apriel_assets.evaluation import accuracy
from apriel_assets.evaluation.accuracy import divergences_per_token, evaluate_samples
from apriel_assets.evaluation.bootstrap import mean_interval
from apriel_assets.evaluation.config import EvalConfig
from apriel_assets.evaluation.eval_rows import eval_rows
from apriel_assets.evaluation.tasks.problems import make_problems
from apriel_assets.evaluation.tasks.specs import TaskSpec

TASK = TaskSpec(name="recall")
CONFIG = EvalConfig(num_problems=12, max_new_tokens=4, resamples=300)


def evaluate(*arguments, **options):
    return eval_rows(evaluate_samples(*arguments, **options), CONFIG)


@pytest.fixture(scope="module")
def teacher(tiny_llama):
    return tiny_llama(seed=0)


@pytest.fixture(scope="module")
def student(tiny_llama):
    return tiny_llama(seed=1)


@pytest.fixture(scope="module")
def traces(tokenizer):
    problems = [
        p for task in ("recall", "arithmetic") for p in make_problems(TaskSpec(name=task), "test", 5, seed=0)
    ]
    return Traces.from_problems(problems, tokenizer)


def by_metric(table):
    return {row["metric"]: row for row in table.to_pylist()}


@torch.no_grad()
def dense_divergences(model, teacher, traces):
    """The plain formula, one unpadded trace at a time, fp64."""
    reverse, forward = [], []
    for prompt, completion in zip(traces.prompts, traces.completions, strict=True):
        ids = torch.tensor([prompt + completion])
        log_q, log_p = (
            m(ids).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1) for m in (model, teacher)
        )
        reverse.append((log_q.exp() * (log_q - log_p)).sum(-1))
        forward.append((log_p.exp() * (log_p - log_q)).sum(-1))
    return torch.cat(reverse), torch.cat(forward)


def test_divergences_equal_the_dense_formula_on_unpadded_traces(student, teacher, traces, monkeypatch):
    monkeypatch.setattr(accuracy, "_TRACES_PER_BATCH", 4)
    reverse, forward, owners = divergences_per_token(student, teacher, traces)
    order = torch.argsort(owners, stable=True)
    expected_reverse, expected_forward = dense_divergences(student, teacher, traces)
    torch.testing.assert_close(reverse[order].double(), expected_reverse, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(forward[order].double(), expected_forward, atol=1e-4, rtol=1e-4)
    assert torch.bincount(owners).tolist() == [len(completion) for completion in traces.completions]


def test_teacher_against_itself_diverges_by_nothing(teacher, tokenizer):
    rows = by_metric(evaluate(teacher, tokenizer, TASK, CONFIG, model_name="teacher", teacher=teacher))
    for metric in ("reverse_kl_nats", "forward_kl_nats"):
        assert [rows[metric][key] for key in ("value", "low", "high")] == pytest.approx([0, 0, 0], abs=1e-7)


def traced_tokens(problems, tokenizer):
    """Number of completion tokens, and the problem that each belongs to."""
    lengths = [len(completion) for completion in Traces.from_problems(problems, tokenizer).completions]
    return sum(lengths), np.repeat(np.arange(len(lengths)), lengths)


def test_mean_is_over_tokens_and_interval_over_problems(student, teacher, tokenizer):
    rows = by_metric(evaluate(student, tokenizer, TASK, CONFIG, model_name="h1", teacher=teacher))
    problems = make_problems(TASK, "test", 12, seed=0)
    reverse, _ = dense_divergences(student, teacher, Traces.from_problems(problems, tokenizer))
    row = rows["reverse_kl_nats"]
    assert row["value"] == pytest.approx(reverse.mean().item(), rel=1e-4)
    tokens, problems = traced_tokens(problems, tokenizer)
    assert len(reverse) == tokens
    expected = mean_interval(reverse.numpy(), groups=problems, resamples=300)
    assert (row["value"], row["low"], row["high"]) == pytest.approx(expected, rel=1e-5)
    assert {r["num_problems"] for r in rows.values()} == {12}
    assert {r["model"] for r in rows.values()} == {"h1"}


def test_accuracy_is_the_share_that_the_verifier_accepts(student, tokenizer, monkeypatch):
    problems = make_problems(TASK, "test", 12, seed=3)
    right = {problem.problem_id for problem in problems[:3]}
    judged = []

    def verify(task, problem, completion):
        judged.append((problem.problem_id, completion))
        return problem.problem_id in right

    monkeypatch.setattr(accuracy, "verify", verify)
    rows = by_metric(evaluate(student, tokenizer, TASK, CONFIG, model_name="h1", seed=3))
    assert list(rows) == ["accuracy"]
    assert rows["accuracy"]["value"] == 3 / 12
    assert 0 <= rows["accuracy"]["low"] < 3 / 12 < rows["accuracy"]["high"] < 0.7
    assert [problem_id for problem_id, _ in judged] == [problem.problem_id for problem in problems]


def test_reference_solutions_are_judged_right(student, tokenizer, monkeypatch):
    def perfect(model, tokenizer, prompts, **options):
        from apriel_assets.evaluation.generation import Completion

        traces = {p.prompt: p.trace for p in make_problems(TASK, "test", 12, seed=0)}
        return [[Completion([], [], traces[prompt], True)] for prompt in prompts]

    monkeypatch.setattr(accuracy, "generate", perfect)
    rows = by_metric(evaluate(student, tokenizer, TASK, CONFIG, model_name="h1"))
    assert rows["accuracy"]["value"] == 1.0


def test_same_seed_same_rows_another_seed_other_problems(student, teacher, tokenizer):
    def run(seed):
        return evaluate(
            student, tokenizer, TASK, CONFIG, model_name="h1", teacher=teacher, seed=seed
        ).to_pylist()

    assert run(0) == run(0)
    assert run(0)[1]["value"] != run(1)[1]["value"]


def test_another_vocabulary_is_refused(student, tiny_llama, traces):
    with pytest.raises(UserError, match="vocabulary"):
        divergences_per_token(student, tiny_llama(vocab_size=200), traces)


def test_a_damaged_model_diverges_more(teacher, traces):
    mild, wild = copy.deepcopy(teacher), copy.deepcopy(teacher)
    with torch.no_grad():
        mild.model.layers[0].mlp.down_proj.weight.mul_(0.9)
        wild.model.layers[0].mlp.down_proj.weight.mul_(0.0)
    means = [
        np.mean(divergences_per_token(model, teacher, traces)[0].numpy()) for model in (teacher, mild, wild)
    ]
    assert means[0] < means[1] < means[2]


@pytest.mark.parametrize(
    "changes", [{"num_problems": 0}, {"max_new_tokens": 0}, {"batch_size": 0}, {"confidence": 1.0}]
)
def test_wrong_settings_are_refused(changes):
    with pytest.raises(UserError, match=next(iter(changes))):
        EvalConfig(**changes)
