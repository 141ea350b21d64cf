"""Retrieval by length: prompts of exactly the words asked for, one fact to find, and it stands where it should."""

import pytest

from apriel_assets.bundled.tokenizer import build_tokenizer
from apriel_assets.errors import UserError
from apriel_assets.evaluation.tasks.problems import make_problems, verify
from apriel_assets.evaluation.tasks.specs import TaskSpec


def drawn(name, num=4, seed=0, **knobs):
    return make_problems(TaskSpec(name=name, knobs=knobs), "test", num, seed)


@pytest.mark.parametrize("words", [100, 1000, 4096, 32000])
def test_a_needle_prompt_has_the_words_asked_for_and_says_its_fact_once(words):
    for problem in drawn("needle", words=words):
        tokens = problem.prompt.split()
        assert len(tokens) == words
        fact = " ".join([*problem.answer.split()[:3], "=", *problem.answer.split()[3:], "."])
        assert problem.prompt.count(fact) == 1
        assert problem.prompt.count("=") == 1
        assert problem.prompt.endswith(f"ask {' '.join(problem.answer.split()[:3])} ?")
        assert verify("needle", problem, problem.trace)


@pytest.mark.parametrize("depth", [0, 50, 100])
def test_depth_says_where_the_needle_is(depth):
    for problem in drawn("needle", words=2000, depth=depth):
        place = problem.prompt.split().index("=") / 2000
        assert place == pytest.approx(depth / 100, abs=0.02)


@pytest.mark.parametrize("words", [100, 1000, 32000])
@pytest.mark.parametrize("queries", [1, 4])
def test_multikey_fills_its_words_with_pairs_of_distinct_keys(words, queries):
    for problem in drawn("multikey", num=2, words=words, queries=queries):
        assert words - 6 < len(problem.prompt.split()) <= words
        facts, asked = problem.prompt.removeprefix("recall : ").split(" . ask ")
        pairs = dict(pair.split(" = ") for pair in facts.split(" , "))
        assert len(pairs) == facts.count("=")
        items = problem.answer.split()
        assert asked == " ".join(letter for i, letter in enumerate(items) if i % 4 < 3) + " ?"
        for i in range(0, len(items), 4):
            assert pairs[" ".join(items[i : i + 3])] == items[i + 3]


def test_a_word_is_a_token_of_the_bundled_tokenizer():
    tokenizer = build_tokenizer()
    for name in ("needle", "multikey"):
        (problem,) = drawn(name, num=1, words=500)
        ids = tokenizer(problem.prompt, add_special_tokens=False).input_ids
        assert len(ids) == len(problem.prompt.split())
        assert tokenizer.unk_token_id not in ids


@pytest.mark.parametrize(("completion", "right"), [
    ("answer : q b z = 7 4 2 .", True), ("7 4 2 .", True), ("7 4 .", False), ("q b k = 7 4 2 .", False),
    ("7 4 2", False),
])  # fmt: skip
def test_verdicts_by_hand(completion, right):
    from apriel_assets.evaluation.tasks.problems import Problem

    problem = Problem(task="needle", problem_id="", prompt="", trace="", answer="q b z 7 4 2")
    assert verify("needle", problem, completion) is right


def test_knobs_out_of_range_are_refused():
    with pytest.raises(UserError, match="within 64 to 72000"):
        drawn("multikey", words=80_000)
    with pytest.raises(UserError, match="no knob 'length'; it has words, depth"):
        drawn("needle", length=3)
