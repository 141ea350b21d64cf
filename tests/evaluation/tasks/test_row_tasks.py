"""Tasks from files and hub data sets: field mapping, answer extraction, and errors that name the line."""

import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from apriel_assets.errors import UserError
from apriel_assets.evaluation.tasks.answers import extract_answer
from apriel_assets.evaluation.tasks.problems import make_problems, verify
from apriel_assets.evaluation.tasks.specs import SPLITS, TaskSpec

ROWS = [
    {"prompt": f"what is {i} + {i} ?", "trace": f"that is {2 * i}", "answer": 2 * i} for i in range(1, 201)
]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_jsonl_and_parquet_give_the_same_problems(tmp_path):
    jsonl = write_jsonl(tmp_path / "sums.jsonl", ROWS)
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "sums.parquet")
    parquet = str(tmp_path / "sums.parquet")
    from_jsonl = make_problems(TaskSpec(file=jsonl), "train", 50, seed=0)
    assert from_jsonl == make_problems(TaskSpec(file=parquet), "train", 50, seed=0)
    assert {problem.task for problem in from_jsonl} == {"sums"}
    assert all((p.prompt + p.trace).endswith(f" ? that is {p.answer}") for p in from_jsonl)


def test_splits_by_content_are_disjoint_and_by_file_are_whole(tmp_path):
    path = write_jsonl(tmp_path / "sums.jsonl", ROWS)
    by_split = {split: make_problems(TaskSpec(file=path), split, 5, seed=0) for split in SPLITS}
    assert len({problem.problem_id for problems in by_split.values() for problem in problems}) == 15
    whole = make_problems(TaskSpec(file=path, split_by="file"), "test", len(ROWS), seed=0)
    assert len({problem.problem_id for problem in whole}) == len(ROWS)
    with pytest.raises(UserError, match="200 distinct problems in split test, 201 asked for"):
        make_problems(TaskSpec(file=path, split_by="file"), "test", 201, seed=0)


def test_worked_solutions_with_a_final_line(tmp_path):
    rows = [{"question": "Pens?", "answer": "He buys 3 boxes of 400.\nSo 3*400=1200.\n#### 1,200"}]
    spec = TaskSpec(
        file=write_jsonl(tmp_path / "pens.jsonl", rows),
        prompt_field="question",
        prompt_template="Question: {prompt}\nAnswer:",
        answer_match="pattern",
        answer_pattern=r"####\s*(-?[\d,.]+)",
        split_by="file",
    )
    (problem,) = make_problems(spec, "test", 1, seed=0)
    assert problem.prompt == "Question: Pens?\nAnswer:"
    assert problem.trace.startswith(" He buys")
    assert problem.answer == "1200"
    assert verify(spec, problem, problem.trace)
    assert verify(spec, problem, "#### 1200.0")
    assert not verify(spec, problem, "#### 120")
    assert not verify(spec, problem, "1200")
    assert not verify(spec, problem, "#### 1100\n#### 1200")


@pytest.mark.parametrize(
    ("text", "match", "pattern", "answer"),
    [
        ("  a  b ", "exact", None, "a b"),
        ("", "exact", None, None),
        ("from 3 to 1,024.50.", "last_number", None, "1024.5"),
        ("it is -7", "last_number", None, "-7"),
        ("none", "last_number", None, None),
        (r"so \boxed{x + 1}.", "pattern", r"\\boxed\{([^}]*)\}", "x + 1"),
        ("B", "pattern", "[A-D]", "B"),
        ("B or C", "pattern", "[A-D]", None),
    ],
)
def test_answer_extraction(text, match, pattern, answer):
    assert extract_answer(text, match, pattern) == answer


def test_trace_column_falls_back_to_completion_then_answer(tmp_path):
    for rows, trace in (
        ([{"prompt": "p", "completion": "c", "answer": "a"}], " c"),
        ([{"prompt": "p", "answer": "a"}], " a"),
    ):
        spec = TaskSpec(file=write_jsonl(tmp_path / "rows.jsonl", rows), split_by="file")
        assert make_problems(spec, "train", 1, seed=0)[0].trace == trace


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no rows"),
        ("\n\n", "has no rows"),
        ('{"prompt": "p", "answer": "a"}\n{"prompt": "p"\n', "line 2 is malformed JSON"),
        ('{"prompt": "p", "answer": "a"}\n\n[1]\n', "line 3 holds list"),
        ('{"prompt": "p", "reply": "a"}\n', "line 1 has no 'answer' but prompt, reply"),
        ('{"prompt": ["p"], "answer": "a"}\n', "line 1: 'prompt' is list, not text"),
        ('{"prompt": "p", "answer": null}\n', "line 1: 'answer' is NoneType, not text"),
        ('{"prompt": " ", "answer": "a"}\n', "line 1: 'prompt' is empty"),
    ],
)
def test_bad_rows_are_named_by_file_and_line(tmp_path, content, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        make_problems(TaskSpec(file=str(path)), "train", 1, seed=0)
    assert str(path) in str(caught.value)


def test_unreadable_files_are_refused(tmp_path):
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "caf\xe9"}\n')
    (tmp_path / "broken.parquet").write_bytes(b"no parquet")
    (tmp_path / "table.csv").write_text("prompt,answer\n")
    for name, message in (
        ("latin.jsonl", "line 1 is not UTF-8"),
        ("broken.parquet", "no readable Parquet file"),
        ("table.csv", r"neither \.jsonl nor \.parquet"),
        ("absent.jsonl", "no file .*absent"),
    ):
        with pytest.raises(UserError, match=message):
            make_problems(TaskSpec(file=str(tmp_path / name)), "train", 1, seed=0)


def test_unextractable_reference_answer_is_refused(tmp_path):
    path = write_jsonl(tmp_path / "words.jsonl", [{"prompt": "p", "answer": "none"}])
    with pytest.raises(UserError, match=r"line 1: last_number .*finds no answer in 'answer'"):
        make_problems(TaskSpec(file=path, answer_match="last_number"), "train", 1, seed=0)


def test_hub_data_is_read_only_through_the_optional_library(monkeypatch):
    spec = TaskSpec(hub="someone/sums", hub_split="test", split_by="file")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'apriel-assets\[hub\]'"):
        make_problems(spec, "test", 1, seed=0)

    class Library:
        @staticmethod
        def load_dataset(name, subset, *, split, revision):
            assert (name, subset, split, revision) == ("someone/sums", None, "test", None)
            return ROWS

    monkeypatch.setitem(sys.modules, "datasets", Library)
    assert len(make_problems(spec, "test", 10, seed=0)) == 10
