"""Layer scores on tasks of the harness: the same figures as whole passes, for half of the evaluations."""

import json

import pytest
import torch

pytest.importorskip("lm_eval")

from apriel_assets.bundled.tokenizer import build_tokenizer
from apriel_assets.evaluation.kept_answers import KeptAnswers
from apriel_assets.evaluation.lm_eval_adapter import task_accuracy
from apriel_assets.evaluation.lm_eval_config import LmEvalTask
from apriel_assets.evaluation.log_likelihoods import Request
from apriel_assets.hybrid.model import HybridForCausalLM
from apriel_assets.scoring.config import LooConfig
from apriel_assets.scoring.leave_one_out import score_layers
from apriel_assets.scoring.lm_eval_layers import accuracies_without_layers, answers_without_layers
from apriel_assets.scoring.prefix import count_layers
from tests.evaluation.conftest import make_llama

NUM_LAYERS = 4


@pytest.fixture(scope="module")
def model_and_tokenizer():
    return HybridForCausalLM.from_teacher(
        make_llama(seed=1, num_hidden_layers=NUM_LAYERS)
    ).eval(), build_tokenizer()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    letters = "bcdefghjklmnopqrstuvwxyz"
    rows = [{"q": f"copy : {letters[i % 23]} {letters[i * 7 % 23]}", "choices": ["3 .", "4", "k then"], "label": i % 3}
            for i in range(40)]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    task = {
        "task": "local_choice", "dataset_path": "json", "test_split": "test", "output_type": "multiple_choice",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}}, "doc_to_text": "{{q}}",
        "doc_to_choice": "{{choices}}", "doc_to_target": "{{label}}", "num_fewshot": 1, "fewshot_split": "test",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    (tmp_path / "local.yaml").write_text(json.dumps(task))
    return str(tmp_path)


def drawn(seed=0):
    torch.manual_seed(seed)
    ids = torch.randint(3, 60, (9, 20)).tolist()
    return [Request(tuple(row[: 6 + i]), tuple(row[6 + i : 8 + 2 * i])) for i, row in enumerate(ids[:6])]


def test_answers_are_those_of_whole_passes_bit_for_bit(model_and_tokenizer):
    model, _ = model_and_tokenizer
    requests = drawn()
    whole, *without = answers_without_layers(model, requests, batch_size=3)
    again, *_ = answers_without_layers(model, requests, batch_size=3)
    assert again == whole
    for layer in range(NUM_LAYERS):
        with model.skip_mixers([layer]):
            by_whole_pass, *_ = answers_without_layers(model, requests, batch_size=3)
        assert without[layer] == by_whole_pass
        assert without[layer] != whole


def test_layers_below_the_missing_one_are_not_computed_again(model_and_tokenizer):
    model, _ = model_and_tokenizer
    seen = []
    with count_layers(model) as counts:
        answers_without_layers(
            model, drawn(), batch_size=3, progress=lambda done, total: seen.append((done, total))
        )
    batches = 2
    assert counts.mixers == batches * (NUM_LAYERS + NUM_LAYERS * (NUM_LAYERS - 1) // 2)
    assert counts.decoder_layers == batches * (NUM_LAYERS + NUM_LAYERS * (NUM_LAYERS + 1) // 2)
    assert seen[-1] == (batches * NUM_LAYERS, batches * NUM_LAYERS)


def test_an_interrupted_call_goes_on_from_the_batches_that_it_answered(model_and_tokenizer, tmp_path):
    model, _ = model_and_tokenizer
    whole = answers_without_layers(model, drawn(), batch_size=3)

    def interrupt(done, total):
        if done > NUM_LAYERS:  # in the second of two batches
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), KeptAnswers(tmp_path, "m") as kept:
        answers_without_layers(model, drawn(), batch_size=3, progress=interrupt, kept=kept)
    seen = []
    with KeptAnswers(tmp_path, "m") as kept, count_layers(model) as counts:
        progress = lambda done, total: seen.append(done)  # noqa: E731
        again = answers_without_layers(model, drawn(), batch_size=3, progress=progress, kept=kept)
    assert again == whole
    assert counts.mixers == NUM_LAYERS + NUM_LAYERS * (NUM_LAYERS - 1) // 2  # of one batch
    assert seen == [NUM_LAYERS + 1 + layer for layer in range(NUM_LAYERS)]
    with KeptAnswers(tmp_path, "m") as kept, count_layers(model) as counts:
        other = answers_without_layers(model, drawn(seed=1), batch_size=3, kept=kept)
    assert counts.mixers == 2 * (
        NUM_LAYERS + NUM_LAYERS * (NUM_LAYERS - 1) // 2
    )  # other requests, other answers
    assert other != whole


def test_accuracies_are_those_of_running_the_task_for_each_layer(model_and_tokenizer, folder):
    model, tokenizer = model_and_tokenizer
    asked = LmEvalTask(task="local_choice", include_path=folder)
    whole, without = accuracies_without_layers(model, tokenizer, asked)
    assert whole == pytest.approx(task_accuracy(model, tokenizer, asked))
    expected = []
    for layer in range(NUM_LAYERS):
        with model.skip_mixers([layer]):
            expected.append(task_accuracy(model, tokenizer, asked))
    assert without == pytest.approx(expected)
    assert len({whole, *without}) > 1, "the test needs layers that matter"


def test_a_task_that_generates_is_run_for_each_layer(model_and_tokenizer):
    model, tokenizer = model_and_tokenizer
    asked = LmEvalTask(task="apriel_recall", limit=4)
    whole, without = accuracies_without_layers(model, tokenizer, asked)
    assert (whole, without) == (0.0, [0.0] * NUM_LAYERS)


def test_the_ranking_is_by_accuracy_lost(model_and_tokenizer, folder):
    from apriel_assets.evaluation.tasks.problems import make_problems
    from apriel_assets.evaluation.tasks.specs import TaskSpec

    model, tokenizer = model_and_tokenizer
    asked = LmEvalTask(task="local_choice", include_path=folder)
    problems = make_problems(TaskSpec(name="recall"), "validation", 4, seed=0)
    rows = score_layers(
        model, tokenizer, problems, LooConfig(metric="lm_eval", lm_eval_task=asked)
    ).to_pylist()
    whole, without = accuracies_without_layers(model, tokenizer, asked)
    assert [row["accuracy"] for row in rows] == without
    assert [row["importance"] for row in rows] == [whole - accuracy for accuracy in without]
    order = sorted(range(NUM_LAYERS), key=lambda i: (rows[i]["importance"], rows[i]["kl_nats"], i))
    assert [row["rank"] for row in rows] == [order.index(i) for i in range(NUM_LAYERS)]
