import json
import random
import sys

import pytest
import torch

from apriel_assets.errors import UserError
from apriel_assets.evaluation import lm_eval_adapter
from apriel_assets.evaluation.lm_eval_adapter import evaluate_lm_eval_task, task_accuracy

pytest.importorskip("lm_eval")

CHOICES = ["1", "2", "3 4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Task files of the harness: multiple choice, a group of it, one without accuracy, one without data."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [{"question": f"recall : a = {i} . ask a ?", "choices": CHOICES, "label": i % 3} for i in range(9)]
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}}}
    common = {"test_split": "test", "doc_to_text": "{{question}}", **data}
    choice = {
        **common,
        "output_type": "multiple_choice",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{label}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    rolling = {**common, "output_type": "loglikelihood_rolling", "doc_to_target": "{{question}}"}
    rolling["metric_list"] = [{"metric": "word_perplexity"}]
    files = {
        "apriel_choice": {"task": "apriel_choice", **choice},
        "apriel_rolling": {"task": "apriel_rolling", **rolling},
        "apriel_gone": {
            "task": "apriel_gone",
            **choice,
            "dataset_kwargs": {"data_files": {"test": "/no/such.jsonl"}},
        },
        "apriel_group": {
            "group": "apriel_group",
            "task": ["apriel_choice"],
            "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
        },
    }
    for name, content in files.items():
        (folder / f"{name}.yaml").write_text(json.dumps(content))
    return str(folder)


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """Only our task files: the harness's own 14,000 take many seconds to index."""
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setattr(
        lm_eval_adapter, "_task_manager", lambda path: TaskManager(include_path=path, include_defaults=False)
    )


@pytest.fixture(scope="module")
def model(tiny_llama):
    return tiny_llama(seed=2)


@torch.no_grad()
def likeliest(model, tokenizer, question):
    """The choice with the highest log-likelihood after the question, by the plain definition."""
    scores = []
    for choice in CHOICES:
        ids = tokenizer(question).input_ids
        target = tokenizer(choice, add_special_tokens=False).input_ids
        log_probs = model(torch.tensor([ids + target])).logits[0, len(ids) - 1 : -1].log_softmax(-1)
        scores.append(log_probs.gather(-1, torch.tensor(target)[:, None]).sum().item())
    return max(range(len(CHOICES)), key=scores.__getitem__)


def test_accuracy_equals_the_definition(model, tokenizer, folder):
    right = [likeliest(model, tokenizer, f"recall : a = {i} . ask a ?") == i % 3 for i in range(9)]
    assert 0 < sum(right) < 9, "the test needs right and wrong answers"
    assert task_accuracy(model, tokenizer, "apriel_choice", include_path=folder) == pytest.approx(
        sum(right) / 9
    )


def test_hybrid_answers_as_its_teacher(model, tokenizer, folder):
    hybrid_model = pytest.importorskip("apriel_assets.hybrid.model")
    hybrid = hybrid_model.HybridForCausalLM.from_teacher(model)
    expected = evaluate_lm_eval_task(model, tokenizer, "apriel_choice", model_name="m", include_path=folder)
    found = evaluate_lm_eval_task(hybrid, tokenizer, "apriel_choice", model_name="m", include_path=folder)
    assert found.to_pylist() == expected.to_pylist()


def test_rows_hold_group_and_tasks_with_intervals_and_counts(model, tokenizer, folder):
    table = evaluate_lm_eval_task(
        model, tokenizer, "apriel_group", model_name="h4", include_path=folder, limit=6, seed=3
    )
    rows = {row["task"]: row for row in table.to_pylist()}
    assert set(rows) == {"apriel_group", "apriel_choice"}
    for row in rows.values():
        assert (row["model"], row["metric"], row["num_problems"], row["seed"]) == ("h4", "acc", 6, 3)
        half = 1.96 * (row["value"] * (1 - row["value"]) / 5) ** 0.5
        assert row["high"] - row["value"] == pytest.approx(half)
        assert row["value"] - row["low"] == pytest.approx(half)


def test_global_generators_are_left_alone(model, tokenizer, folder):
    torch.manual_seed(123)
    random.seed(123)
    before = torch.get_rng_state(), random.getstate()
    task_accuracy(model, tokenizer, "apriel_choice", include_path=folder)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


def test_unknown_task_names_the_nearest(model, tokenizer, folder):
    with pytest.raises(UserError, match=r"no task 'apriel_choise'; did you mean apriel_choice"):
        task_accuracy(model, tokenizer, "apriel_choise", include_path=folder)


def test_a_task_without_accuracy_is_refused(model, tokenizer, folder):
    with pytest.raises(UserError, match="no accuracy, only word_perplexity"):
        task_accuracy(model, tokenizer, "apriel_rolling", include_path=folder)


def test_data_that_cannot_be_had_is_one_line(model, tokenizer, folder):
    with pytest.raises(UserError, match="apriel_gone: its data cannot be had") as error:
        task_accuracy(model, tokenizer, "apriel_gone", include_path=folder)
    assert "\n" not in str(error.value)


def test_missing_harness_names_the_extra(model, tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match=r"apriel-assets\[lm-eval\]"):
        task_accuracy(model, tokenizer, "apriel_choice")
