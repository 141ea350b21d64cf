"""The audit against hand arithmetic and scipy-free oracles; the spread of its placements; real generation."""

import itertools

import numpy as np
import pytest

from apriel_assets.errors import UserError
from apriel_assets.evaluation.config import EvalConfig
from apriel_assets.scoring import audit
from apriel_assets.scoring.audit import (
    GeneratedAccuracy,
    audit_placements,
    audit_points,
    audit_rows,
    average_ranks,
    correlation,
    generated_accuracies,
)
from apriel_assets.scoring.config import EstimatorConfig
from apriel_assets.scoring.estimators import ESTIMATORS
from apriel_assets.scoring.rating import rate
from tests.scoring.tiny_hybrid import TASKS
from tests.scoring.tiny_supernet import TOKENIZER, make_supernet

MIXERS = [("fa", "swa", "gdn")] * 6


def make_score(**estimates):
    figures = {name + end: 0.0 for name in ESTIMATORS for end in ("", "_low", "_high")}
    for name, value in estimates.items():
        figures |= {name: value, f"{name}_low": value, f"{name}_high": value}
    return rate(("fa",), figures, EstimatorConfig())


def made_up(accuracies):
    return [GeneratedAccuracy(value, value - 0.1, value + 0.1, 20) for value in accuracies]


def rows_by_estimator(scores, generated):
    return {row["estimator"]: row for row in audit_rows(scores, generated).to_pylist()}


def test_correlations_and_bias_by_hand():
    # accuracy 0.9 0.6 0.3 0.0; deviations from the means: accuracy +-0.45, +-0.15, ois +0.35 -0.05 +0.05 -0.35
    scores = [
        make_score(ois=ois, snis=snis, reverse_kl=kl)
        for ois, snis, kl in [(0.8, 0.7, 0.1), (0.4, 0.8, 0.5), (0.5, 0.9, 2.0), (0.1, 1.0, 9.0)]
    ]
    rows = rows_by_estimator(scores, made_up([0.9, 0.6, 0.3, 0.0]))
    pearson = (0.45 * 0.35 - 0.15 * 0.05 - 0.15 * 0.05 + 0.45 * 0.35) / np.sqrt(0.45 * 0.25)
    assert rows["ois"]["pearson"] == pytest.approx(pearson)
    assert rows["ois"]["spearman"] == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert rows["ois"]["bias"] == pytest.approx(0.0)
    assert rows["snis"]["spearman"] == pytest.approx(-1)
    assert rows["snis"]["bias"] == pytest.approx(0.4)
    assert rows["reverse_kl"]["spearman"] == pytest.approx(1)  # turned: a small divergence is good
    assert rows["reverse_kl"]["bias"] is None
    assert rows["log_q"]["spearman"] is None  # constant: no order to compare
    assert rows["ois"]["num_placements"] == 4
    assert rows["ois"]["spearman_low"] < rows["ois"]["spearman"] <= rows["ois"]["spearman_high"]


def test_the_interval_narrows_with_more_placements():
    rng = np.random.default_rng(0)
    widths = []
    for num in (8, 80):
        truth = rng.random(num)
        scores = [make_score(ois=value) for value in truth + 0.1 * rng.normal(size=num)]
        row = rows_by_estimator(scores, made_up(truth))["ois"]
        assert row["spearman_low"] < row["spearman"] < row["spearman_high"]
        widths.append(row["spearman_high"] - row["spearman_low"])
    assert widths[1] < 0.5 * widths[0]


def test_ranks_share_ties():
    values = np.array([3.0, 1.0, 3.0, 2.0, 3.0])
    assert average_ranks(values).tolist() == [3, 0, 3, 1, 3]
    # Kendall's textbook definition of average ranks: the mean of the ranks that the tied could have had.
    orders = [p for p in itertools.permutations(range(5)) if list(values[list(p)]) == sorted(values)]
    mean = np.mean([np.argsort(order) for order in orders], axis=0)
    assert average_ranks(values).tolist() == mean.tolist()


def test_a_constant_has_no_correlation():
    assert np.isnan(correlation(np.full(4, 0.1), np.arange(4.0)))


def test_points_are_one_row_per_placement_and_estimator():
    table = audit_points([make_score(ois=0.5), make_score(ois=0.6)], made_up([0.4, 0.7]))
    rows = [row for row in table.to_pylist() if row["estimator"] == "ois"]
    assert [(row["estimate"], row["generated_accuracy"]) for row in rows] == [(0.5, 0.4), (0.6, 0.7)]


def test_refuses_an_audit_of_too_little():
    with pytest.raises(UserError, match="at least 3"):
        audit_rows([make_score()] * 2, made_up([0.1, 0.2]))
    with pytest.raises(UserError, match="3 and 2"):
        audit_rows([make_score()] * 3, made_up([0.1, 0.2]))


@pytest.mark.parametrize("ranking", [None, [5, 4, 3, 2, 1, 0]])
def test_placements_run_from_all_full_attention_to_none(ranking):
    found = audit_placements(24, MIXERS, layer_ranking=ranking, seed=3)
    assert found == audit_placements(24, MIXERS, layer_ranking=ranking, seed=3)
    assert len(set(found)) == 24
    assert found[0] == ("fa",) * 6
    counts = [sum(mixer != "fa" for mixer in placement) for placement in found]
    assert "fa" not in found[-1]
    assert all(counts.count(number) >= 1 for number in range(7))
    if ranking:  # least important first: the last layers
        ordered = [
            p for p in found if "fa" in p and set(p) - {"fa"} and list(p) == sorted(p, key="fa".__ne__)
        ]
        assert len(ordered) >= 6
    assert {"swa", "gdn"} in [set(placement) for placement in found]
    assert {"swa"} in [set(placement) - {"fa"} for placement in found]


def test_placements_keep_to_what_layers_hold():
    mixers = [("fa",), ("fa", "swa"), ("fa", "gdn", "swa")]
    found = audit_placements(6, mixers)  # all there are
    assert sorted(found) == sorted(itertools.product(*mixers))
    with pytest.raises(UserError, match="give only 6"):
        audit_placements(7, mixers)
    with pytest.raises(UserError, match="at least 2"):
        audit_placements(1, mixers)


def test_generation_judges_each_placement_on_the_same_unseen_problems(monkeypatch):
    model, asked = make_supernet(), []

    def answers(net, tokenizer, pairs, config):
        verdicts = []
        for task, problems in pairs:
            asked.append((net.placement, task.task, [problem.problem_id for problem in problems]))
            verdicts += [net.placement[0] == "fa" or number == 0 for number in range(len(problems))]
        return verdicts

    placements, config = [("fa", "fa", "fa"), ("swa", "fa", "fa")], EvalConfig(num_problems=4, resamples=50)
    settings = {"seed": 1, "exclude": ()}
    monkeypatch.setattr(audit, "answer_tasks", answers)
    found = generated_accuracies(model, TOKENIZER, TASKS, placements, config, **settings)
    assert [(own.accuracy, own.num_problems) for own in found] == [(1.0, 8), (0.25, 8)]
    assert found[1].low < 0.25 < found[1].high
    assert [row[0] for row in asked] == [placements[0]] * 2 + [placements[1]] * 2
    assert [row[1:] for row in asked[:2]] == [row[1:] for row in asked[2:]]
    assert model.placement == ("fa", "fa", "fa")
    excluded = asked[0][2][:2]
    asked.clear()
    generated_accuracies(model, TOKENIZER, TASKS, placements, config, seed=1, exclude=excluded)
    assert len(asked[0][2]) == 4
    assert not set(excluded) & set(asked[0][2])


def test_generation_is_for_real():
    model = make_supernet()
    config = EvalConfig(num_problems=2, max_new_tokens=4, resamples=20)
    found = generated_accuracies(model, TOKENIZER, TASKS, [("swa", "mamba", "fa")], config, seed=0)
    assert found[0].accuracy == 0.0  # it knows nothing
    with pytest.raises(UserError, match="holds no 'mamba'"):
        generated_accuracies(model, TOKENIZER, TASKS, [("fa", "fa", "mamba")], config, seed=0)
