"""Before and after: the same problems, paired; what did not move has no difference at all."""

from copy import deepcopy

import pytest
import torch

from apriel_assets.errors import UserError
from apriel_assets.evaluation.config import EvalConfig
from apriel_assets.posttraining.before_after import Answers, answer_by_placement, before_after_table
from apriel_assets.tables.schemas import to_table
from tests.scoring.tiny_hybrid import TASKS
from tests.scoring.tiny_supernet import TOKENIZER

CONFIG = EvalConfig(num_problems=4, max_new_tokens=4)


def answers(*verdicts, logit=0.0):
    rows = [
        {"model": "safe", "task": "recall", "problem_id": f"p{number}", "correct": correct}
        for number, correct in enumerate(verdicts)
    ]
    return {"safe": Answers(to_table("eval_samples", rows), torch.full((1, 1), logit))}


def test_rows_by_hand():
    before, after = answers(*[True] * 6, *[False] * 14), answers(*[True] * 20, logit=0.25)
    whole, task = before_after_table(before, after, stage="rl").to_pylist()
    assert (whole["task"], task["task"]) == ("all tasks", "recall")
    for row in (whole, task):
        assert (row["stage"], row["placement"], row["changed"]) == ("rl", "safe", "better")
        assert (row["before"], row["after"], row["difference"]) == pytest.approx((0.3, 1.0, 0.7))
        assert (row["num_problems"], row["num_differing"], row["max_logit_difference"]) == (20, 14, 0.25)
        assert 0.4 < row["low"] < 0.7 < row["high"] < 0.95
    (other, _) = before_after_table(after, before, stage="rl").to_pylist()
    assert other["changed"] == "worse"
    assert (other["low"], other["high"]) == pytest.approx((-whole["high"], -whole["low"]), abs=0.03)


def test_a_few_lost_problems_are_not_called_worse_and_the_row_says_what_may_hide():
    before, after = answers(*[True] * 20), answers(*[False] * 3, *[True] * 17)
    row = before_after_table(before, after, stage="sft").to_pylist()[0]
    assert row["changed"] == "none"
    assert row["difference"] == pytest.approx(-0.15)
    assert row["could_hide"] >= 0.15


def test_the_same_checkpoint_twice_differs_in_nothing(matryoshka):
    matryoshka.set_placement("turbo")
    twice = [answer_by_placement(matryoshka, TOKENIZER, TASKS, CONFIG, seed=1) for _ in range(2)]
    assert matryoshka.placement == ("gdn", "fa", "kda")
    rows = before_after_table(*twice, stage="sft").to_pylist()
    assert [(row["placement"], row["task"]) for row in rows] == [
        (name, task) for name in ("safe", "turbo", "fast") for task in ("all tasks", "arithmetic", "recall")
    ]
    assert {row["num_problems"] for row in rows} == {4, 8}
    assert {row["max_logit_difference"] for row in rows} == {0.0}
    assert {row["num_differing"] for row in rows} == {0}
    test = answer_by_placement(matryoshka, TOKENIZER, TASKS, CONFIG, split="test", seed=1)
    problems = [own["safe"].samples.column("problem_id").to_pylist() for own in (twice[0], test)]
    assert not set(problems[0]) & set(problems[1])


def test_one_placement_s_own_weights_move_that_placement_alone(matryoshka):
    changed = deepcopy(matryoshka)
    with torch.no_grad():
        for parameter in changed.banks[2].mixers["kda"].parameters():  # turbo's alone
            parameter.mul_(1.5)
    both = [answer_by_placement(model, TOKENIZER, TASKS, CONFIG, seed=0) for model in (matryoshka, changed)]
    rows = before_after_table(*both, stage="rl").to_pylist()
    moved = {row["placement"]: row["max_logit_difference"] for row in rows}
    assert moved["safe"] == moved["fast"] == 0
    assert moved["turbo"] > 0


def test_other_placements_are_refused():
    with pytest.raises(UserError, match="placements before and after differ: safe and turbo"):
        before_after_table(answers(True), {"turbo": answers(True)["safe"]}, stage="sft")
