"""Tasks in plain language: what they show, and that the first line alone is judged."""

import pytest

from apriel_assets.errors import UserError
from apriel_assets.evaluation.tasks.problems import Problem, make_problems, verify
from apriel_assets.evaluation.tasks.registry import plain_names
from apriel_assets.evaluation.tasks.specs import SPLITS, TaskSpec

TASKS = plain_names()


def problem_of(task: str, answer: str) -> Problem:
    return Problem(task=task, problem_id="", prompt="", trace="", answer=answer)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("chat", [0, 1])
def test_every_trace_verifies_and_every_cut_fails(task, chat):
    for problem in make_problems(TaskSpec(name=task, knobs={"chat": chat}), "train", 60, seed=3):
        assert verify(task, problem, problem.trace)
        assert verify(task, problem, f"{problem.trace}\nQ: and more\nA: something else")
        words = problem.trace.split()
        for length in range(len(words)):
            assert not verify(task, problem, " ".join(words[:length]))
        assert problem.answer not in problem.prompt.rsplit("\n", 2)[-1]
        # The examples do not give the answer's question away.
        asked = (
            problem.prompt.split("user\n")[-1].split("<|im_end|>")[0]
            if chat
            else problem.prompt.split("Q: ")[-1]
        )
        assert problem.prompt.count(asked.removesuffix("\nA:")) == 1


@pytest.mark.parametrize(
    ("task", "answer", "completion", "right"),
    [
        ("addition", "31 + 5 = 36", " 31 + 5 = 36", True),
        ("addition", "31 + 5 = 36", "36", False),
        ("addition", "31 + 5 = 36", "31 + 5 = 361", False),
        ("repeat", "lamp, river", "Lamp, river.", True),
        ("repeat", "lamp, river", "lamp, river, bread", False),
        ("repeat", "lamp, river", "river, lamp", False),
        ("lookup", "river: 58", "river: 58\nQ: What", True),
        ("lookup", "river: 58", "lamp: 58", False),
        ("lookup", "river: 58", "river: 5 8", False),
        ("reading", "Anna lives in Oslo.", "", False),
        ("reading", "Anna lives in Oslo.", "Well:\nAnna lives in Oslo.", False),
    ],
)
def test_verdicts_by_hand(task, answer, completion, right):
    assert verify(task, problem_of(task, answer), completion) is right


def test_markup_by_hand():
    plain, chat = (
        make_problems(TaskSpec(name="addition", knobs={"examples": 1, "chat": chat}), "test", 1, seed=0)[0]
        for chat in (0, 1)
    )
    shown, asked = plain.prompt.split("\n")[:2], plain.prompt.split("\n")[2:]
    assert shown[0].startswith("Q: ")
    assert shown[1].startswith("A: ")
    assert asked == [f"Q: {plain.answer.split('=')[0]}=", "A:"]
    assert plain.trace == f" {plain.answer}"  # white space belongs to the trace
    assert chat.prompt.endswith(f"user\n{chat.answer.split('=')[0]}=<|im_end|>\n<|im_start|>assistant\n")
    assert chat.trace == chat.answer
    assert chat.prompt.count("<|im_start|>") == 4


@pytest.mark.parametrize("task", TASKS)
def test_splits_cannot_overlap_and_problems_are_distinct_and_repeatable(task):
    num = 40 if task == "addition" else 300
    drawn = {
        split: {
            problem.problem_id: problem
            for seed, examples in ((0, 4), (1, 0))
            for problem in make_problems(TaskSpec(name=task, knobs={"examples": examples}), split, num, seed)
        }
        for split in SPLITS
    }
    assert not drawn["train"].keys() & drawn["test"].keys()
    assert not drawn["validation"].keys() & (drawn["train"].keys() | drawn["test"].keys())
    assert (
        make_problems(TaskSpec(name=task), "test", 20, seed=0)
        == make_problems(TaskSpec(name=task), "test", 30, seed=0)[:20]
    )


def test_a_wrong_knob_is_refused():
    with pytest.raises(UserError, match="chat"):
        TaskSpec(name="reading", knobs={"chat": 2})
