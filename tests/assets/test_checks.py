import math

import pytest

from apriel_assets.assets.checks import (
    ALL_FA_CHECK,
    CHECKPOINT_CHECK,
    COST_CHECK,
    ESS_CHECK,
    LEADERBOARD_CHECK,
    LOSS_FALLS_CHECK,
    LOSS_FINITE_CHECK,
    PLACEMENTS_CHECK,
    PROBES_FALL_CHECK,
    SHARING_CHECK,
    audit_check,
    evals_check,
)
from apriel_assets.assets.regression_checks import EVALS_REGRESSION_CHECK, LEADERBOARD_REGRESSION_CHECK
from tests.evaluation.sample_rows import sample_rows


def losses(*values):
    return {"training": [{"step": step, "loss_nats": loss} for step, loss in enumerate(values, 1)]}


def probes(first, last, placement=("gdn", "fa")):
    rows = [
        {"step": 0, "probe": "all_gdn", "placement": list(placement), "kl_nats": first},
        {"step": 9, "probe": "all_gdn", "placement": list(placement), "kl_nats": last},
        # All-FA is the teacher before and after, and an output error is no KL.
        {"step": 0, "probe": "all_fa", "placement": ["fa", "fa"], "kl_nats": 0.0},
        {"step": 9, "probe": "all_fa", "placement": ["fa", "fa"], "kl_nats": 0.0},
        {"step": 9, "probe": "mixer_gdn", "output_error": 5.0},
    ]
    return {"supernet_curves": rows}


def evals(metrics=("accuracy", "reverse_kl_nats", "forward_kl_nats"), num_problems=20, value=0.5):
    row = {"model": "h1", "task": "recall", "num_problems": num_problems, "low": value, "high": value}
    return {"evals": [{**row, "metric": metric, "value": value} for metric in metrics]}


def leaderboard(*models, num_tasks=2, accuracy=0.5):
    return {"leaderboard": [{"model": m, "num_tasks": num_tasks, "accuracy": accuracy} for m in models]}


def ess(under):
    return {
        "figures": {"num_scored": 6, "num_under_ess_floor": under},
        "recipe_slice": {"estimator": {"ess_floor": 9}},
    }


def audit(spearman):
    figures = {"estimator": "ois", "spearman": spearman, "spearman_low": None, "spearman_high": None}
    return {"figures": {**figures, "pearson": 0.5}}


ASKED = {"recipe_slice": {"models": ["teacher", "h1"], "tasks": ["recall", "copy"]}}
WEIGHTS = {"files": {"model.safetensors": b"weights"}}

# Check, an artifact that holds, artifacts that do not, artifacts that do not tell.
CASES = {
    "all-FA": (
        ALL_FA_CHECK,
        {"figures": {"all_fa_max_difference": 0.0}},
        [{"figures": {"all_fa_max_difference": 1e-9}}, {"figures": {"all_fa_max_difference": math.nan}}],
        [{"figures": {}}],
    ),
    "placements": (
        PLACEMENTS_CHECK,
        {"figures": {"max_difference_safe": 0.0, "max_difference_turbo": 0.0}},
        [{"figures": {"max_difference_safe": 0.0, "max_difference_turbo": 0.25}}],
        [{"figures": {}}],
    ),
    "finite": (
        LOSS_FINITE_CHECK,
        {"tables": losses(3.0, 2.0)},
        [{"tables": losses(3.0, math.nan)}, {"tables": losses(3.0, None)}, {"tables": losses()}],
        [],
    ),
    "falls": (
        LOSS_FALLS_CHECK,
        {"tables": losses(3.0, 2.0)},
        [{"tables": losses(3.0, 3.0)}, {"tables": losses(2.0, 3.0)}, {"tables": losses(2.0, math.nan)}],
        [],
    ),
    "probes": (
        PROBES_FALL_CHECK,
        {"tables": probes(3.0, 2.0)},
        [{"tables": probes(2.0, 3.0)}, {"tables": probes(2.0, math.nan)}],
        [{"tables": probes(3.0, 2.0, placement=("fa", "fa"))}],
    ),
    "ESS": (ESS_CHECK, ess(5), [ess(6)], []),
    "audit": (audit_check(0.8), audit(0.8), [audit(0.79), audit(None)], []),
    "cost model": (
        COST_CHECK,
        {"figures": {"r2": 0.9, "worst_error": 0.1}},
        [{"figures": {"r2": r2, "worst_error": 0.1}} for r2 in (0.5, math.nan)],
        [],
    ),
    "sharing": (
        SHARING_CHECK,
        {"figures": {"shared_share": 0.4}},
        [{"figures": {"shared_share": 0.0}}],
        [],
    ),
    "evals": (
        evals_check(20),
        {"tables": evals()},
        [
            {"tables": evals(num_problems=19)},
            {"tables": evals(metrics=("accuracy", "reverse_kl_nats"))},
            {"tables": evals(metrics=("accuracy", "accuracy", "reverse_kl_nats", "forward_kl_nats"))},
            {"tables": evals(value=math.inf)},
        ],
        [],
    ),
    "leaderboard": (
        LEADERBOARD_CHECK,
        {"tables": leaderboard("teacher", "h1"), **ASKED},
        [
            {"tables": leaderboard("teacher"), **ASKED},
            {"tables": leaderboard("teacher", "h1", num_tasks=1), **ASKED},
            {"tables": leaderboard("teacher", "h1", accuracy=None), **ASKED},
        ],
        [],
    ),
    "checkpoint": (
        CHECKPOINT_CHECK,
        {**WEIGHTS, "figures": {"num_tensors_changed_by_saving": 0}},
        [
            {**WEIGHTS, "figures": {"num_tensors_changed_by_saving": 1}},
            {"files": {"config.json": b"{}"}, "figures": {"num_tensors_changed_by_saving": 0}},
        ],
        [{**WEIGHTS, "figures": {}}],
    ),
}
BLOCKING = {"all-FA", "placements", "finite", "evals", "leaderboard", "checkpoint"}


@pytest.mark.parametrize("case", CASES)
def test_check_tells_good_from_bad(case, make_artifact):
    check, good, bad, silent = CASES[case]
    assert check.passes(make_artifact(**good), None)[0] is True
    assert [check.passes(make_artifact(**one), None)[0] for one in bad] == [False] * len(bad)
    assert [check.passes(make_artifact(**one), None)[0] for one in silent] == [None] * len(silent)
    assert check.blocking == (case in BLOCKING)


def test_checkpoint_with_other_bytes_than_recorded_fails(make_artifact):
    artifact = make_artifact(**CASES["checkpoint"][1])
    (artifact.path / "model.safetensors").write_bytes(b"weightz")
    passed, figures = CHECKPOINT_CHECK.passes(artifact, None)
    assert passed is False
    assert figures["hash_differs"] == "model.safetensors"


def measured(accuracy, kl, width=0.1, seed=0):
    rows = [
        {"metric": metric, "value": value, "low": value - width, "high": value + width}
        for metric, value in (("accuracy", accuracy), ("reverse_kl_nats", kl))
    ]
    return {"tables": {"evals": rows}, "recipe_slice": {"accuracy": {"num_problems": 20}, "seed": seed}}


@pytest.mark.parametrize(
    ("after", "passed", "worse"),
    [
        (measured(0.8, 1.0), True, None),
        (measured(0.7, 1.1), True, None),  # within the interval of the change, 0.14 wide each way
        (measured(0.6, 1.0), False, "accuracy"),
        (measured(0.8, 1.2), False, "reverse_kl_nats"),  # more KL is worse
        (measured(0.99, 0.5), True, None),
        (measured(0.1, 1.0, seed=1), None, None),  # other problems: nothing to compare
    ],
)
def test_evals_regress_when_the_whole_interval_is_worse(after, passed, worse, make_artifact):
    before, now = make_artifact(**measured(0.8, 1.0)), make_artifact(**after)
    verdict, figures = EVALS_REGRESSION_CHECK.passes(now, before)
    assert verdict is passed
    assert figures.get("worse") == worse
    assert EVALS_REGRESSION_CHECK.passes(now, None)[0] is True


def answered(*, wrong, kl=0.1):
    rows = sample_rows("h4", [0] * wrong + [1] * (60 - wrong), kl=kl)
    return {"tables": {"eval_samples": rows}, "recipe_slice": {"seed": 0}}


@pytest.mark.parametrize(
    ("after", "passed", "worse"),
    [
        (answered(wrong=5), True, None),  # the same
        (answered(wrong=9), True, None),  # four more: a coin does as much
        (answered(wrong=15), False, "accuracy"),  # ten more, of intervals that overlap
        (answered(wrong=5, kl=0.2), False, "reverse_kl_nats, forward_kl_nats"),
        (answered(wrong=5, kl=0.1 + 1e-8), True, None),  # rounding
    ],
)
def test_evals_that_keep_their_problems_are_compared_problem_by_problem(after, passed, worse, make_artifact):
    verdict, figures = EVALS_REGRESSION_CHECK.passes(
        make_artifact(**after), make_artifact(**answered(wrong=5))
    )
    assert (verdict, figures.get("worse")) == (passed, worse)


def ranked(**accuracies):
    rows = [
        {"model": model, "accuracy": value, "accuracy_low": value - 0.1, "accuracy_high": value + 0.1}
        for model, value in accuracies.items()
    ]
    return {"tables": {"leaderboard": rows}, "recipe_slice": {"tasks": ["recall"]}}


def test_leaderboard_names_the_models_that_lost_accuracy(make_artifact):
    before = make_artifact(**ranked(teacher=0.9, h1=0.8, h2=0.7))
    good = make_artifact(**ranked(teacher=0.9, h1=0.75, h3=0.1))
    bad = make_artifact(**ranked(teacher=0.9, h1=0.5, h2=0.7))
    assert LEADERBOARD_REGRESSION_CHECK.passes(good, before)[0] is True
    passed, figures = LEADERBOARD_REGRESSION_CHECK.passes(bad, before)
    assert passed is False
    assert figures == {"change_of_h1": "-0.3 [-0.4414, -0.1586]", "worse": "h1"}
