import copy
from dataclasses import replace

import pytest
import torch

from apriel_assets.errors import UserError
from apriel_assets.evaluation.accuracy import evaluate_samples
from apriel_assets.evaluation.comparison import OVERALL, compare, num_unpaired, paired_change
from apriel_assets.evaluation.config import EvalConfig
from apriel_assets.evaluation.tasks.specs import TaskSpec
from apriel_assets.hybrid.model import HybridForCausalLM
from apriel_assets.hybrid.specs import TeacherSpec
from apriel_assets.hybrid.teacher import load_teacher
from tests.evaluation.sample_rows import sample_rows, samples

CONFIG = EvalConfig(num_problems=40, max_new_tokens=4)


@pytest.fixture(scope="module")
def evaluated(tiny_teacher):
    """The teacher, itself again, and itself with one damaged mixer, on a task that it masters."""
    model, tokenizer = load_teacher(TeacherSpec(model=str(tiny_teacher)))
    teacher = HybridForCausalLM.from_teacher(model, copy=False).eval()
    damaged = copy.deepcopy(teacher)
    with torch.no_grad():
        next(p for name, p in damaged.named_parameters() if "o_proj" in name).mul_(5000)
    task = TaskSpec(file=str(tiny_teacher / "partners.jsonl"), split_by="file")
    other = replace(CONFIG, batch_size=7)  # rounds otherwise
    cases = {"teacher": (teacher, CONFIG), "again": (teacher, other), "damaged": (damaged, CONFIG)}
    return {
        name: evaluate_samples(own, tokenizer, task, config, model_name=name, teacher=teacher)
        for name, (own, config) in cases.items()
    }


def test_planted_regression_is_flagged_in_accuracy_and_in_kl(evaluated):
    rows = compare([(evaluated["damaged"], evaluated["teacher"])])
    assert {(row.metric, row.better) for row in rows} == {("accuracy", "b"), ("reverse_kl_nats", "b")}
    assert {row.verdict for row in rows} == {"B is better"}
    accuracy = rows[0]
    assert accuracy.b == 1.0
    assert accuracy.difference == pytest.approx(accuracy.a - accuracy.b)
    assert accuracy.high < 0
    assert accuracy.p_value < 0.001


def test_identical_model_is_not_flagged(evaluated):
    for row in compare([(evaluated["again"], evaluated["teacher"])]):
        assert (row.better, row.num_differing, row.p_value) == (None, 0, 1.0)
        assert row.verdict.startswith("no detectable difference")
    # Forty problems on which nothing differed cannot rule out a rare difference.
    assert compare([(evaluated["again"], evaluated["teacher"])])[0].could_hide == pytest.approx(3 / 40)


def test_change_between_two_materializations_is_paired(evaluated):
    worse = paired_change(evaluated["damaged"], evaluated["teacher"])
    assert worse["accuracy"].is_detected()
    assert worse["reverse_kl_nats"].low > 0
    same = paired_change(evaluated["again"], evaluated["teacher"])
    assert not any(change.is_detected() for change in same.values())


def test_overall_is_the_mean_over_tasks_and_tasks_are_adjusted():
    lost = [1] * 6 + [0] * 54  # alone p = 0.03; of two tasks 0.06
    a = samples(sample_rows("a", [1] * 60), sample_rows("a", [1] * 60, task="copy"))
    b = samples(
        sample_rows("b", [not value for value in lost]), sample_rows("b", [0] * 6 + [1] * 54, task="copy")
    )
    first, *tasks = compare([(a, b)], ["accuracy"])
    assert (first.task, first.difference) == (OVERALL, pytest.approx((6 / 60 + 6 / 60) / 2))
    assert first.better == "a"
    assert [row.p_value for row in tasks] == pytest.approx([2 * 2 / 2**6] * 2)
    assert [row.better for row in tasks] == [None, None]


def test_only_common_problems_count_in_any_order():
    a, b = sample_rows("a", [1, 1, 0, 0]), sample_rows("b", [1, 0, 0, 1])
    rows = compare([(samples(a[1:]), samples(b[::-1]))], ["accuracy"])
    assert (rows[0].num_problems, rows[0].num_differing) == (3, 2)
    assert num_unpaired([(samples(a[1:]), samples(b))]) == 1


def test_kl_of_another_tokenizer_is_left_out():
    a, b = sample_rows("a", [1, 1]), sample_rows("b", [1, 1], trace_tokens=5)
    assert {row.metric for row in compare([(samples(a), samples(b))])} == {"accuracy"}


def test_seeds_are_pooled_pair_by_pair():
    runs = [
        (
            samples(sample_rows("a", [1] * 30, seed=seed)),
            samples(sample_rows("b", [0] * 10 + [1] * 20, seed=seed)),
        )
        for seed in (0, 1, 2)
    ]
    first, *_ = compare(runs, ["accuracy"])
    assert (first.num_problems, first.num_differing, first.better) == (90, 30, "a")
    assert first.difference == pytest.approx(1 / 3)


def test_nothing_in_common_is_refused():
    with pytest.raises(UserError, match="same tasks and seed"):
        compare([(samples(sample_rows("a", [1])), samples(sample_rows("b", [1], seed=1)))])
