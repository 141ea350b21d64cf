"""Rows of tasks of the harness: figures with errors and counts, samples, and what is refused in one line."""

import json
import random
import sys

import pytest
import torch
from lm_eval_files import CHOICES, question, write_tasks

pytest.importorskip("lm_eval")

from apriel_assets.errors import UserError
from apriel_assets.evaluation.lm_eval_adapter import evaluate_lm_eval, task_accuracy
from apriel_assets.evaluation.lm_eval_config import LmEvalTask
from apriel_assets.hybrid.model import HybridForCausalLM


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path))


@pytest.fixture(scope="module")
def model(tiny_llama):
    return HybridForCausalLM.from_teacher(tiny_llama(seed=2))


def run(model, tokenizer, folder, task="local_choice", seed=0, **how):
    asked = LmEvalTask(task=task, include_path=folder, **how)
    tables = evaluate_lm_eval(model, tokenizer, asked, model_name="h4", seed=seed)
    return {name: table.to_pylist() for name, table in tables.items()}


@torch.no_grad()
def likeliest(model, tokenizer, text):
    """The choice with the highest log-likelihood after a text, by the plain definition."""
    scores = []
    for choice in CHOICES:
        ids = tokenizer(text).input_ids
        target = tokenizer(choice, add_special_tokens=False).input_ids
        log_probs = model(torch.tensor([ids + target])).logits[0, len(ids) - 1 : -1].log_softmax(-1)
        scores.append(log_probs.gather(-1, torch.tensor(target)[:, None]).sum().item())
    return max(range(len(CHOICES)), key=scores.__getitem__)


def test_accuracy_equals_the_definition(model, tokenizer, folder):
    right = [likeliest(model, tokenizer, question(i)) == i % 3 for i in range(9)]
    assert 0 < sum(right) < 9, "the test needs right and wrong answers"
    rows = run(model, tokenizer, folder, num_fewshot=0)
    assert [row["value"] for row in rows["lm_evals"]] == [pytest.approx(sum(right) / 9)]
    found = {row["doc_id"]: json.loads(row["metrics"])["acc"] for row in rows["lm_eval_samples"]}
    assert found == {i: float(own) for i, own in enumerate(right)}


def test_a_group_has_rows_of_its_own_and_of_its_tasks(model, tokenizer, folder):
    rows = run(model, tokenizer, folder, "local_group", limit=6, seed=3)
    figures = {(row["task"], row["metric"]): row for row in rows["lm_evals"]}
    assert set(figures) == {
        ("local_group", "acc"), ("local_choice", "acc"), ("local_completion", "acc"), ("local_completion", "perplexity")
    }  # fmt: skip
    for row in figures.values():
        assert (row["model"], row["placement"], row["asked"], row["seed"]) == (
            "h4",
            ["fa", "fa"],
            "local_group",
            3,
        )
    own = figures["local_choice", "acc"]
    assert (own["num_samples"], own["num_fewshot"], own["task_version"]) == (6, 2, "2.0")
    assert own["higher_is_better"] is True
    assert own["harness_version"]
    assert own["stderr"] == pytest.approx((own["value"] * (1 - own["value"]) / 5) ** 0.5)
    assert [own["high"] - own["value"], own["value"] - own["low"]] == pytest.approx(
        [1.96 * own["stderr"]] * 2
    )
    assert figures["local_group", "acc"]["num_samples"] == 12
    assert {row["task"] for row in rows["lm_eval_samples"]} == {"local_choice", "local_completion"}


def test_samples_say_what_was_asked_and_answered(model, tokenizer, folder):
    choice = run(model, tokenizer, folder, num_fewshot=1, limit=2)["lm_eval_samples"]
    assert [row["doc_id"] for row in choice] == [0, 1]
    assert choice[0]["prompt"].endswith(question(0))
    assert choice[0]["prompt"].count("ask a ?") == 2
    assert [own.strip() for own in json.loads(choice[0]["continuations"])] == CHOICES
    assert len(json.loads(choice[0]["responses"])) == 3
    written = run(model, tokenizer, folder, "local_writing", limit=2, gen_kwargs={"max_gen_toks": 2})[
        "lm_eval_samples"
    ]
    assert written[0]["continuations"] is None
    assert len(json.loads(written[0]["responses"])[0][0].split()) <= 2
    rolling = run(model, tokenizer, folder, "local_rolling", limit=1)["lm_eval_samples"]
    assert json.loads(rolling[0]["continuations"]) == []


def test_our_procedural_tasks_are_tasks_of_the_harness(tokenizer):
    from apriel_assets.bundled.tokenizer import TEACHER_DIR
    from apriel_assets.hybrid.any_checkpoint import load_any

    teacher = load_any(TEACHER_DIR)
    rows = run(teacher, tokenizer, None, "apriel_recall", limit=20)
    assert [(row["metric"], row["num_samples"]) for row in rows["lm_evals"]] == [("accuracy", 20)]
    assert rows["lm_evals"][0]["value"] >= 0.9
    far = run(
        teacher, tokenizer, None, "apriel_needle_1k", metadata={"knobs": {"words": 64}, "num_problems": 3}
    )
    assert len(far["lm_eval_samples"]) == 3
    assert {len(row["prompt"].split()) for row in far["lm_eval_samples"]} == {64}


def test_global_generators_are_left_alone(model, tokenizer, folder):
    torch.manual_seed(123)
    random.seed(123)
    before = torch.get_rng_state(), random.getstate()
    run(model, tokenizer, folder, "local_completion", limit=2)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


def test_an_unknown_task_names_the_nearest(model, tokenizer, folder):
    with pytest.raises(UserError, match=r"no task 'local_choise'; did you mean local_choice"):
        run(model, tokenizer, folder, "local_choise")


def test_a_task_without_accuracy_is_refused_for_ranking(model, tokenizer, folder):
    with pytest.raises(UserError, match="no accuracy, only bits_per_byte, word_perplexity"):
        task_accuracy(model, tokenizer, LmEvalTask(task="local_rolling", include_path=folder))


@pytest.mark.parametrize("task", ["local_gone", "local_hub"])
def test_data_that_cannot_be_had_is_one_line(model, tokenizer, folder, task):
    with pytest.raises(UserError, match=f"{task}: its data cannot be had"):
        run(model, tokenizer, folder, task)


def test_a_chat_template_that_is_not_there_is_refused(model, tokenizer, folder):
    with pytest.raises(UserError, match="local_choice: the model's tokenizer has no chat template"):
        run(model, tokenizer, folder, apply_chat_template=True)


def test_a_request_that_does_not_fit_is_refused(tiny_llama, tokenizer, folder):
    small = HybridForCausalLM.from_teacher(tiny_llama(seed=2, max_position_embeddings=32))
    with pytest.raises(UserError, match="longer than the model's 32 positions"):
        run(small, tokenizer, folder)
    assert run(small, tokenizer, folder, truncation=True)["lm_evals"]


def test_a_missing_harness_names_the_extra(model, tokenizer, monkeypatch):
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "lm_eval" else sys.modules[name].__spec__
    )
    with pytest.raises(UserError, match=r"apriel-assets\[lm-eval\]"):
        run(model, tokenizer, None)
